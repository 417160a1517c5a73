package closedloop

import (
	"fmt"
	"time"

	"penstock/pipeline"
)

// watcher is a stage in front of the chain that sees what becomes of packets.
type watcher struct {
	w    *world
	spec *pipeline.ChainSpec
}

var _ pipeline.Observer = (*watcher)(nil)

// wrap returns the chain with the watcher in front.
func (o *watcher) wrap() *pipeline.ChainSpec {
	var reg pipeline.Registry
	pipeline.Register(&reg, pipeline.Descriptor[struct{}]{
		Kind: "watch", New: func(struct{}, *pipeline.Env) (pipeline.Stage, error) { return o, nil },
	})
	kind := reg.Lookup("watch")
	spec := *o.spec
	spec.Stages = append([]pipeline.StageSpec{{Kind: kind, Config: kind.NewConfig()}}, spec.Stages...)
	return &spec
}

// Process implements pipeline.Stage.
func (*watcher) Process(b *pipeline.Batch) {
	for p := range b.Live() {
		p.Continue()
	}
}

// Observe implements pipeline.Observer.
func (o *watcher) Observe(b *pipeline.Batch) {
	for _, p := range b.All() {
		v, r := p.Verdict()
		if v != pipeline.Drop || !p.HasFlow || p.Stage() == 0 {
			continue
		}
		kind := o.spec.Stages[p.Stage()-1].Kind
		key, _ := name(p.Flow)
		s := o.w.sessions[key]
		if s == nil || kind.Layer != pipeline.PacketLayer {
			continue
		}
		if s.drops++; s.drops == 1 {
			s.dropped, s.dropStage = r, kind.Name
		}
	}
}

// result says what became of a session.
func (s *session) result() *Flow {
	c := s.c
	f := &Flow{
		Number: c.number, Client: c.flow.Client(), Server: c.flow.Server(), Relaxed: s.relaxed, Dropped: s.drops,
		Seconds: float64(s.w.now-s.start) / 1e9, End: "fin",
		ToServer: s.ends[server].delivery(), ToClient: s.ends[client].delivery(),
	}
	switch {
	case c.refused:
		f.End = "refused"
	case c.reset == client:
		f.End = "client_reset"
	case c.reset == server:
		f.End = "server_reset"
	}
	reached := s.ends[client].rcv > 0 && s.ends[server].rcv > 0 // they have heard of each other
	if c.refused {
		reached = s.ends[client].reset
	}
	equal := f.ToServer.Equal && f.ToClient.Equal && reached
	switch {
	case s.isDenied:
		f.Status, f.Why = Denied, s.denied.String()
	case equal:
		f.Status = Equal
	case s.drops > 0:
		f.Status, f.Why, f.By = Denied, s.dropped.String(), s.dropStage
	default:
		f.Status, f.Why = Differs, "bytes"
		f.Detail = s.explain()
		if s.stalled {
			f.Why = "stalled"
		}
	}
	return f
}

// explain says in words how far a session that differs has come.
func (s *session) explain() string {
	words := [2]string{}
	for i, e := range s.ends {
		how := "open"
		switch {
		case e.reset:
			how = "reset"
		case e.failed:
			how = "gave up repeating"
		case e.gotFIN:
			how = "was told the end"
		}
		words[i] = fmt.Sprintf("%d of %d bytes sent, %s", min(max(e.una, 1)-1, uint64(len(e.own.bytes))), len(e.own.bytes), how)
	}
	return "client: " + words[client] + "; server: " + words[server]
}

// delivery compares what an end has received with the capture.
func (e *end) delivery() Delivery {
	d := Delivery{Captured: uint64(len(e.other.bytes)), Received: e.offset()}
	d.Equal = d.Received == d.Captured && e.differs < 0
	if !d.Equal {
		at := int64(min(d.Received, d.Captured))
		if e.differs >= 0 {
			at = min(at, e.differs)
		}
		d.Differs = &at
	}
	return d
}

// report counts a connection.
func (w *world) report(f *Flow) {
	r := &w.res
	r.Flows++
	switch f.Status {
	case Equal:
		r.Equal++
	case Differs:
		r.Differs++
	case Denied:
		r.Denied++
		r.DeniedBy[f.Why]++
	case NotPlayed:
		r.NotPlayed++
		r.WhyNot[f.Why]++
	}
	if f.Status != NotPlayed {
		r.Played++
	}
	r.BytesToServer += f.ToServer.Received
	r.BytesToClient += f.ToClient.Received
	r.List = append(r.List, *f)
	if w.o.Flow != nil {
		w.o.Flow(f)
	}
}

// total takes the worker's figures over.
func (w *world) total(s pipeline.WorkerStats) {
	r := &w.res
	t := s.Totals
	r.Packets, r.Bytes, r.Forwarded, r.Consumed, r.Emitted, r.EmitLost = t.Packets, t.Bytes, t.Forwarded, t.Consumed, t.Emitted, t.EmitLost
	for k, v := range t.Dropped {
		r.Dropped[k] += v
	}
	r.Captured, r.TCP, r.Stray = w.cap.packets, w.cap.tcp, w.stray
	if w.cap.packets > 0 {
		r.First, r.Last = stamp(w.cap.first), stamp(w.cap.last)
	}
	if w.begun != 0 {
		r.VirtualSeconds = float64(w.now-w.begun) / 1e9
	}
	for _, c := range s.Chains {
		c.Stages = c.Stages[1:] // the watcher
		if r.Chain == nil {
			r.Chain = &pipeline.ChainStats{}
		}
		r.Chain.Add(c)
	}
}

func stamp(ns int64) string { return time.Unix(0, ns).UTC().Format(time.RFC3339Nano) }
