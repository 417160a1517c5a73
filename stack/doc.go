// Package stack terminates TCP connections transparently: it answers the
// client as the server and dials the server as the client, with one gVisor
// netstack for each worker. It is the only package that imports gvisor.dev.
//
//	client <-> leg 0: netstack endpoint {server addr, client addr}
//	                  | relay, stream stages
//	           leg 1: netstack endpoint {client addr, server addr} <-> server
//
// The server is dialled first, with the options that the client offered; only
// when it has answered does netstack see the client's SYN, with the options
// that the server accepted. So each end sees what the other one can do, and a
// closed port is a reset, a dead host a timeout.
//
// A Stack belongs to its worker: Input, Flush, Poll, Tick, Drain, Flows and
// Close are called on the worker's goroutine only. Netstack has goroutines and
// timers of its own; they reach the worker through queues that Poll empties.
// The copy between frames and netstack is made here, both ways: netstack never
// holds a frame.
//
// The trap: netstack answers any segment that it knows no endpoint for with a
// reset. Nothing but segments of flows whose SYN went through Input may reach
// it, or starting the appliance would reset every connection on the wire.
package stack
