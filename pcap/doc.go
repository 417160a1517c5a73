// Package pcap makes capture files ports of the pipeline: it reads pcap and
// pcapng, gives what it reads to chains as Ethernet frames, writes pcapng, and
// replays whole captures through a chain.
//
// The files are read and written by code of our own. gopacket/pcapgo reads the
// same captures and is what the tests compare with, but it cannot stand behind
// an appliance: a record that claims 1 GiB takes 4 GiB of memory, name records
// and secrets are kept for as long as a stream lasts, interface clocks that
// count in powers of two (if_tsresol 0x80 and up) are off by up to 7 % of a
// second, a clock in whole seconds is read as microseconds, and a packet
// written with a comment costs four allocations.
//
// The trap: what Reader.Next returns lies in the reader's buffer and is
// overwritten by the next call.
package pcap
