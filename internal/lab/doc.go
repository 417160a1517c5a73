// Package lab builds small networks on one machine: network namespaces joined by
// veth pairs, for the demo, the end-to-end tests and the benchmarks. It needs root
// and a Linux kernel, and no outside program: links, addresses, routes and offloads
// are set over netlink and ethtool ioctls.
//
// A Lab owns everything made in it. Close ends the processes that were started
// in its namespaces (only those) and removes the namespaces; what a killed
// process left behind is found by SweepStale, which New calls for its own name.
// Namespaces are bound under /run/netns, so `ip netns exec NAME ...` works on them.
//
// The trap: a network namespace belongs to an OS thread, not to a goroutine. Code
// run by NS.Do is inside the namespace, a goroutine that it starts is not. Sockets
// stay in the namespace where they were made, so NS.Dial, NS.Listen, NS.Tap and
// NS.Raw give values that any goroutine may use.
package lab
