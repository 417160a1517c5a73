// Package match finds the first of many rules that a packet meets: addresses, ports, protocol, TCP flags, VLAN, arrival
// port, fragment. Stages embed [Fields] in the rules of their configuration and [Compile] them once.
//
// A compiled [Set] does not try rule after rule. For each field it knows, by a search in a table of intervals, the set
// of rules that the packet's value meets, and it intersects those sets; the cost hardly grows with the number of rules.
//
// The trap: a later fragment has no ports and no flags, so a rule that names any never meets it. Whoever drops by port
// stops the first fragment only; that suffices, since no host can reassemble the rest, but the rest passes.
package match
