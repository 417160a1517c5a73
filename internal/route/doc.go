// Package route is the slow side of router mode: what XDP could not route by
// itself goes to the kernel of this machine, or waits until the kernel has found
// the next hop. It also keeps the kernel's neighbour entries alive, which the
// packets that XDP forwards do not, and tells the workers when what they know of
// the ways of packets has changed.
//
// Its one trap: a Port's packets are answered on another goroutine. What comes
// back is received like packets of any port, in a later turn.
package route
