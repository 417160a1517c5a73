// Package xsk gives Go programs AF_XDP sockets: one packet memory (UMEM)
// shared by any number of sockets, on any number of interfaces and queues.
//
// A frame is a chunk of the UMEM, named by its address (the offset of its
// first byte). It travels between the program and the kernel through four
// rings per socket, and at any moment exactly one side owns it:
//
//	         program                       kernel
//	Pool --> Fill        == fill ring ==>  (waits for a packet)
//	         Receive     <== RX ring ====  a packet has arrived
//	         Transmit    == TX ring ====>  on its way out
//	Pool <-- Complete    <== completion =  sent; the frame is free again
//
// A frame received on one socket may be transmitted on any other socket of the
// same UMEM: nothing is copied in user space, the descriptor is handed over.
//
// The one trap: a ring has one user. Fill, Receive, WakeRx and Poll of a socket
// belong to one goroutine, Transmit, Complete and Kick to one goroutine (the
// same or another); the package takes no locks. Stats is safe from anywhere.
package xsk
