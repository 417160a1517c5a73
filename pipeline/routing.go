package pipeline

import "sync/atomic"

// Routing is what a router's tables say of a packet. In bridge mode it is
// always Bridged.
type Routing uint8

// The ways of a packet.
const (
	Bridged Routing = iota
	// Routed: the frame is addressed to the next hop, its TTL is less by one,
	// and it leaves by Out.
	Routed
	// KernelRouted: the frame is as it came in, and Out is the kernel: it is
	// fragmented there, or leaves by an interface that is no port.
	KernelRouted
	// Unresolved: the frame is as it came in, and Out is the kernel: the address
	// of the next hop on its link is found there, and the frame comes back.
	// Chains do not see such packets.
	Unresolved
	// Reroute: a frame of a stage's making, as Routed but for where it goes: Out
	// is the kernel, which finds out. In is where packets of that direction come
	// in.
	Reroute
)

// Router is what a stage that sends packets of its own has to know in router
// mode.
type Router struct {
	// Kernel is the port that gives packets to the kernel of this machine.
	Kernel PortID
	// Epoch changes when what was learned from Routed packets may not hold any
	// more: a route, or the address of a next hop, is another one now.
	Epoch atomic.Uint32
}

// Lost reports whether packets must not go the way any more that was learned in
// an epoch. A nil Router loses nothing.
func (r *Router) Lost(epoch uint32) bool { return r != nil && r.Epoch.Load() != epoch }
