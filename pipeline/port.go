package pipeline

// PortInfo says what a port is. It does not change in the port's lifetime.
type PortInfo struct {
	ID        PortID `json:"id"`
	Name      string `json:"name"`      // the name in the configuration
	Interface string `json:"interface"` // network interface or file
	Queue     int    `json:"queue"`
	MTU       int    `json:"mtu"`  // largest IP packet it carries, bytes; 0 = no limit
	Mode      string `json:"mode"` // as read back: "zero_copy", "copy", "file", "memory"
}

// PortStats are a port's own figures. In-flight frames are those that the port
// holds: free frames of the pools plus the in-flight ones of all ports equal
// the total whenever no turn is running.
type PortStats struct {
	RxPackets uint64            `json:"rx_packets"`
	RxBytes   uint64            `json:"rx_bytes"`
	TxPackets uint64            `json:"tx_packets"`
	TxBytes   uint64            `json:"tx_bytes"`
	TxRefused uint64            `json:"tx_refused"` // given to Transmit, not taken
	InFlight  int               `json:"in_flight"`
	LinkUp    bool              `json:"link_up"`
	Rings     []RingStats       `json:"rings,omitempty"`
	Extra     map[string]uint64 `json:"extra,omitempty"` // figures of this kind of port, lower_snake
}

// RingStats say how full a ring of a port was at the end of its worker's last turn.
type RingStats struct {
	Name string `json:"name"` // "rx", "tx", "fill", "completion"
	Used int    `json:"used"`
	Size int    `json:"size"`
}

// Port is a named attachment of one worker: one queue of an interface, a
// capture file, or memory. Only its worker calls Receive, Transmit and Flush;
// Info and Stats may be called from anywhere.
type Port interface {
	Info() PortInfo

	// Receive appends at most b.Room() packets to b, with the view set, Chain,
	// Hash, Routing and Out where XDP has told them, and Time where the source has a clock
	// of its own (else 0: the worker stamps it). They come from the worker's
	// pool and belong to the caller. (0, nil) means nothing
	// now; io.EOF that nothing will come any more. It does not block.
	Receive(b *Batch) (n int, err error)

	// Transmit takes all of pkts and returns how many it accepted; it accepts
	// from the front, and gives the refused rest back to the pool itself. It
	// does not block. Accepted frames return to the pool when they are sent.
	Transmit(pkts []*Packet) (accepted int)

	// Flush makes sure that what Transmit accepted is on its way, recycles what
	// has been sent, and gives the kernel new frames to receive into. The
	// worker calls it once at the end of every turn.
	Flush()

	Stats() PortStats

	// Close releases the port. Frames it held return to the pool.
	Close() error
}

// Waiter blocks an idle worker.
type Waiter interface {
	// Wait returns when a port of the worker may have packets, when Wake was
	// called since the last Wait, or when the time ns has passed (< 0: no
	// limit). It may return early.
	Wait(ns int64)
	// Wake ends the current or the next Wait. Safe from any goroutine, and
	// cheap when the worker is awake.
	Wake()
}
