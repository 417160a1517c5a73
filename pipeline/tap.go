package pipeline

import "penstock/internal/wire"

// TapPoint is a place at which packets are shown to a Tap.
type TapPoint struct {
	Port PortID // NoPort: at a stage
	Sent bool   // what the port is given to transmit; else what it has received

	Chain string // by name: a reload changes which instance that is
	Stage int    // its index
	After bool   // what the stage has seen, when it has decided; else before it looks
}

// Tap is shown packets at some points of a worker, on the worker's goroutine.
// Nothing of it may block or allocate.
type Tap interface {
	// Show shows p as it is at points[point], now. record names what the tap
	// keeps of it until Decide; below 0: nothing.
	Show(point int, p *Packet, now int64) (record int)
	// Decide says what became of the packet of a record, in the same turn. What is
	// said last counts.
	Decide(record int, o Outcome)
	// EndTurn is called after the last Decide of a turn in which there was a Show.
	EndTurn()
	// Hold is told of a flow that no stage wants. It reports whether it is to
	// stay in user space for the tap, which decides on its packets from then on.
	Hold(f *wire.Flow, drop bool, now int64) bool
	// Pass decides on a packet of a flow that is held, in XDP's place: no stage
	// sees it. It reports false for others, and for those that begin a new connection.
	Pass(p *Packet) (held, drop bool)
}

// Outcome is what became of a packet.
type Outcome struct {
	Verdict Verdict // 0: not known; a stage has panicked
	Reason  Reason  // of Drop
	Out     PortID  // of Forward
	Chain   ChainID // NoChain: none has seen it
	Stage   int     // index of the stage that decided, if Chain has stages
	Made    bool    // it did not come in: a stage has made it
	Held    bool    // its flow is offloaded but for the tap
}

// ReasonOffloadedDrop is that of packets that XDP would drop if nobody captured.
var ReasonOffloadedDrop = DefineReason("offloaded_drop", "a packet of a flow that XDP drops, in user space while it is captured")

// TapSpec attaches a Tap to a worker.
type TapSpec struct {
	Tap    Tap
	Points []TapPoint
}

// What stands in Packet.stage if no stage has decided.
const (
	noStage  = 0xff
	heldFlow = 0xfe
)

// tapRef is a point of a tap.
type tapRef struct {
	tap   Tap
	point int
}

// tapRecord is a record whose packet's fate is not known yet.
type tapRecord struct {
	tap    Tap
	record int
	next   int32 // index + 1 of the packet's next one
}

// taps are those of a worker; nil while there are none, which is all that the
// packet path looks at then.
type taps struct {
	w       *Worker
	specs   []*TapSpec
	rx, tx  [][]tapRef // by port
	pending []tapRecord
	sent    []int32 // by packet of a transmission: index + 1 in pending
	used    bool
}

// chainTaps are the taps at the stages of a chain instance.
type chainTaps struct {
	of            *taps
	before, after [][]tapRef // by stage
}

// AddTap attaches a tap. Only from Call.
func (w *Worker) AddTap(s *TapSpec) {
	specs := []*TapSpec{s}
	if w.taps != nil {
		specs = append(specs, w.taps.specs...)
	}
	w.setTaps(specs)
}

// RemoveTap detaches what AddTap has attached; nothing is shown to it any more.
// Only from Call.
func (w *Worker) RemoveTap(s *TapSpec) {
	if w.taps == nil {
		return
	}
	var specs []*TapSpec
	for _, o := range w.taps.specs {
		if o != s {
			specs = append(specs, o)
		}
	}
	w.setTaps(specs)
}

// HandOn offers a flow that a tap has held to the others, and reports whether one
// of them holds it from now on. Only from Call.
func (w *Worker) HandOn(from *TapSpec, f *wire.Flow, drop bool) bool {
	if w.taps == nil {
		return false
	}
	for _, s := range w.taps.specs {
		if s != from && s.Tap.Hold(f, drop, w.clock()) {
			return true
		}
	}
	return false
}

// setTaps finds out what is tapped where. Chains come and go: SetChains calls it
// again.
func (w *Worker) setTaps(specs []*TapSpec) {
	for _, c := range w.active {
		c.taps = nil
	}
	w.taps = nil
	if len(specs) == 0 {
		return
	}
	t := &taps{w: w, specs: specs, rx: make([][]tapRef, len(w.o.Ports)), tx: make([][]tapRef, len(w.o.Ports)), sent: make([]int32, emitCap)}
	points := 0
	for _, s := range specs {
		for i, at := range s.Points {
			points++
			ref := tapRef{s.Tap, i}
			switch {
			case at.Port == NoPort:
				t.atStage(at, ref)
			case int(at.Port) >= len(t.rx):
			case at.Sent:
				t.tx[at.Port] = append(t.tx[at.Port], ref)
			default:
				t.rx[at.Port] = append(t.rx[at.Port], ref)
			}
		}
	}
	// A packet is at each point at most once, and what is under way at once is a
	// batch, or what is transmitted together.
	t.pending = make([]tapRecord, 0, (2*BatchSize+emitCap)*points)
	w.taps = t
}

func (t *taps) atStage(at TapPoint, ref tapRef) {
	for _, c := range t.w.active {
		if c.Name != at.Chain || at.Stage >= len(c.stages) {
			continue
		}
		if c.taps == nil {
			c.taps = &chainTaps{of: t, before: make([][]tapRef, len(c.stages)), after: make([][]tapRef, len(c.stages))}
		}
		if at.After {
			c.taps.after[at.Stage] = append(c.taps.after[at.Stage], ref)
		} else {
			c.taps.before[at.Stage] = append(c.taps.before[at.Stage], ref)
		}
	}
}

// show shows p at a place and chains the records to it.
func (t *taps) show(refs []tapRef, p *Packet, now int64) {
	for _, r := range refs {
		if len(t.pending) == cap(t.pending) {
			return
		}
		if record := r.tap.Show(r.point, p, now); record >= 0 {
			t.pending = append(t.pending, tapRecord{r.tap, record, p.tapped})
			p.tapped = int32(len(t.pending))
		}
	}
	t.used = true
}

// first shows a packet that is to go to chain id, where it was received, unless
// another worker will; and it decides on it if its flow is held. It reports whether
// that has been done.
func (t *taps) first(p *Packet, id ChainID, mayHandOver bool) bool {
	w := t.w
	chain := p.Live() && id != NoChain && p.IPVersion != 0 && int(id) < len(w.chains) && w.chains[id] != nil
	if chain && mayHandOver && len(w.peers) > 1 && w.affinity[id] && int(p.Hash%uint32(len(w.peers))) != w.o.ID {
		return false
	}
	if p.tapped = 0; int(p.In) < len(t.rx) {
		t.show(t.rx[p.In], p, p.Time)
	}
	if !chain {
		p.stage = noStage
		return false
	}
	p.Chain = id
	return t.pass(p)
}

// decided says what became of p.
func (t *taps) decided(p *Packet) {
	if p.tapped != 0 {
		t.say(p.tapped, outcome(p))
		p.tapped = 0
	}
}

func outcome(p *Packet) Outcome {
	o := Outcome{Verdict: p.verdict, Reason: p.reason, Out: p.Out, Chain: p.Chain, Stage: int(p.stage)}
	if p.stage >= heldFlow {
		o.Chain, o.Held = NoChain, p.stage == heldFlow
	}
	return o
}

// batch shows those packets of a batch that are at stage i, where it looks at them
// next or has decided.
func (c *chainTaps) batch(refs []tapRef, pkts []*Packet, i int, before bool) {
	if len(refs) == 0 {
		return
	}
	now := c.of.w.clock()
	for _, p := range pkts {
		if int(p.stage) == i && (!before || p.verdict == verdictNone) {
			c.of.show(refs, p, now)
		}
	}
}

// transmit gives pkts to a port and shows what it was given; refused ones are
// said to be.
func (t *taps) transmit(port int, pkts []*Packet, made bool) (sent int) {
	refs := t.tx[port]
	if len(refs) == 0 {
		return t.w.o.Ports[port].Transmit(pkts)
	}
	now, from := t.w.clock(), len(t.pending)
	for i, p := range pkts {
		p.tapped = 0
		t.show(refs, p, now)
		t.sent[i], p.tapped = p.tapped, 0
		o := outcome(p)
		if o.Verdict, o.Out = Forward, PortID(port); made {
			o.Made, o.Chain = true, NoChain
		}
		t.say(t.sent[i], o)
	}
	sent = t.w.o.Ports[port].Transmit(pkts) // they are the port's from here on
	for i := sent; i < len(pkts); i++ {
		t.say(t.sent[i], Outcome{Verdict: Drop, Reason: ReasonTxFull, Out: PortID(port), Chain: NoChain, Made: made})
	}
	t.pending = t.pending[:from]
	return sent
}

func (t *taps) say(first int32, o Outcome) {
	for i := first; i > 0; i = t.pending[i-1].next {
		t.pending[i-1].tap.Decide(t.pending[i-1].record, o)
	}
}

func (t *taps) endTurn() {
	if t.used {
		t.used = false
		for _, s := range t.specs {
			s.Tap.EndTurn()
		}
	}
}

// hold keeps a flow that no stage wants, if a tap wants it.
func (t *taps) hold(p *Packet, now int64) bool {
	if !p.HasFlow || p.Frag != wire.FragNone || p.verdict == Consume {
		return false
	}
	for _, s := range t.specs {
		if s.Tap.Hold(&p.Flow, p.verdict == Drop, now) {
			return true
		}
	}
	return false
}

// pass decides on a packet of a flow that is held.
func (t *taps) pass(p *Packet) bool {
	if !p.HasFlow {
		return false
	}
	for _, s := range t.specs {
		if held, drop := s.Tap.Pass(p); held {
			if p.stage = heldFlow; drop {
				p.Drop(ReasonOffloadedDrop)
			} else {
				p.Forward(p.Out)
			}
			return true
		}
	}
	return false
}
