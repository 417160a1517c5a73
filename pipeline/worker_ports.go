package pipeline

// SetPort gives the worker a port, or takes it away (nil): what was to leave by it
// has left or is counted, and from then on packets for it are dropped as no_port. The
// worker does not close it. Only from Call, or before Run.
func (w *Worker) SetPort(id PortID, port Port) {
	for int(id) >= len(w.o.Ports) {
		w.o.Ports, w.eof = append(w.o.Ports, nil), append(w.eof, false)
		w.out, w.emitted = append(w.out, make([]*Packet, 0, emitCap)), append(w.emitted, make([]*Packet, 0, emitCap))
	}
	if w.o.Ports[id] != nil {
		w.transmitForwarded(int(id))
		w.transmitEmitted(int(id))
		w.o.Ports[id].Flush()
	}
	w.o.Ports[id], w.eof[id] = port, false
	if w.taps != nil {
		w.setTaps(w.taps.specs)
	}
}

// CutPorts ends the connections of all chains that go by one of some ports, and
// returns how many. Only from Call; what stages send to their ends leaves with this
// turn, if the ports are there still.
func (w *Worker) CutPorts(gone func(PortID) bool) (n int) {
	now := w.clock()
	for _, c := range w.active {
		for i := range c.stages {
			if s, ok := c.stages[i].stage.(PortCutter); ok {
				w.guard(c, func() bool { n += s.CutPorts(gone, now); return true })
			}
		}
	}
	return n
}

// PortCutter is a Stage that keeps connections. CutPorts is called on the worker's
// goroutine when ports are about to be taken away: it ends those that go by one of
// them, and returns how many there were.
type PortCutter interface {
	CutPorts(gone func(PortID) bool, now int64) (n int)
}
