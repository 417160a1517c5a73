// Package fault makes wires bad on purpose: a Port that wraps any other port
// and loses, repeats, reorders, delays and damages packets, or has a smaller
// MTU, by a seeded generator. The same packets at the same times with the same
// seed meet the same faults.
//
// Its one trap: a packet that the port holds back belongs to nobody else, so
// the worker's pool must have frames to spare for Options.Hold of them in each
// direction.
package fault
