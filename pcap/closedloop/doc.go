// Package closedloop replays the TCP connections of a capture through a chain
// that terminates them. What each end sent is taken from the capture; two
// simulated ends play it again, through the real stages and the real netstack,
// many connections at once, in virtual time:
//
//	client end <-> port 0 -- worker: chain -- port 1 <-> server end
//
// An end sends its bytes in the order of the capture: what it sent after it had
// heard something, it sends after it has heard it again. Each end compares what
// it receives with the capture, byte by byte.
//
// Everything runs on one goroutine but netstack's own, of which one works at a
// time (pipeline.Simulation), and chance comes from a seed: two runs write the
// same output, to the byte.
//
// Its one trap: the clock stands still while anything happens. Code that waits
// for time to pass waits for ever.
package closedloop
