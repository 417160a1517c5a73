// Package bpf loads and attaches Penstock's XDP program, which decides for every packet whether it goes to an AF_XDP socket, to
// the peer port, to the kernel, or nowhere. It is the only package that knows about eBPF.
//
// The trap is lifetime. An attached program lives as long as something holds its link: this process, or a pin
// under Options.PinRoot. With pins the wire stays connected when the process is killed, and Close or Cleanup must be
// called to take the program off again; without them it goes with the process, and Leave cannot keep anything.
//
// README.md has the maps, reasons, options and life cycle.
package bpf
