// Package pipeline is the core of Penstock: packets, batches, stages, chains,
// ports and the worker that runs them. It knows no kernel interface: a Port is
// an AF_XDP queue (pipeline/afxdp), a capture file (pcap) or memory, and the
// same chain runs over each of them.
//
// Its one trap is ownership. A *Packet belongs to exactly one place at a time:
// a pool, a port, a batch in a worker's turn, or a ring between two workers.
// A stage sees it only during Process and must copy whatever it keeps.
package pipeline
