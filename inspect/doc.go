// Package inspect shows TCP connections to stream stages without terminating
// them: packets go by in their own frames, and what the receiver will accept of
// them is put in order and shown.
//
//	client ----> port > [ reassembly ] > port ----> server
//	                        | bytes, in order
//	                     stream stages: observe, deny
//
// Sender and receiver cannot disagree with what was shown, because every byte
// that has passed is remembered until the receiver has acknowledged it: bytes
// that come again must be the same ones. Whatever a receiver makes of overlaps,
// of order, of windows or of packets that never reach it, there is one content
// for each position, and the stages have seen it.
//
// Where a stage may deny, packets wait in a queue, bounded in bytes and time,
// until every stage has let their bytes pass. Else they pass at once.
//
// An Inspector belongs to its worker and takes no lock. It allocates when a
// connection begins and when its memory grows to a new high, not for packets.
//
// The trap: an end that is alone with us can lie to us about itself, and about
// nothing else. A server's acknowledgement is believed about what the server
// has, never about what the client has sent.
package inspect
