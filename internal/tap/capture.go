// Package tap captures packets of a running appliance on demand: at its ports and around its stages, by a filter, into a
// pcapng stream. The packet path copies into a buffer of fixed size for each worker; what does not fit is counted.
//
// Its one trap: flows that a capture holds in user space are XDP's again only when GiveBack has been called on each worker and
// what it returns has been offloaded. Until they have no packet under way the tap must stay where it is.
package tap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync/atomic"
	"time"

	"penstock/internal/packetring"
	"penstock/internal/wire"
	"penstock/pcap"
	"penstock/pipeline"
)

// Options configure a Capture.
type Options struct {
	Points  []Point // at least one
	Filter  *Filter // nil: all packets
	SnapLen int     // bytes that are kept of a packet; 0: all
	Limit   int64   // the stream has at most so many bytes; 0: as many as come
	Count   uint64  // and at most so many packets; 0: as many as come
	Comment string  // about the whole capture
	Workers int
	Ports   []pipeline.PortInfo
	// Chain says what is behind a number: its name and how many stages it has.
	Chain func(pipeline.ChainID) (name string, stages int)
}

// MinLimit is the least that Options.Limit may be.
const MinLimit = 64 << 10

// Capture is one that runs. Its taps belong to the workers, Write to one goroutine; the rest may be called from any.
type Capture struct {
	o        Options
	taps     []*workerTap
	specs    []*pipeline.TapSpec
	wake     chan struct{}
	sleeping atomic.Bool
	stop     chan struct{}
	stopped  atomic.Bool

	packets, bytes atomic.Uint64
	why            atomic.Pointer[string]
}

// Stats are a capture's figures.
type Stats struct {
	Packets uint64 `json:"packets"`       // written
	Bytes   uint64 `json:"bytes"`         // of the stream
	Dropped uint64 `json:"dropped"`       // not captured, for want of room
	Held    uint64 `json:"held_flows"`    // in user space for the capture
	NotHeld uint64 `json:"flows_lost"`    // left user space although they may match: there were too many
	Why     string `json:"end,omitempty"` // why it has ended
}

// New makes a capture that does nothing yet.
func New(o Options) (*Capture, error) {
	if o.Limit != 0 && o.Limit < MinLimit {
		return nil, fmt.Errorf("begin capture: want a limit of at least %d bytes, got %d", MinLimit, o.Limit)
	}
	if o.SnapLen <= 0 || o.SnapLen > pcap.MaxPacket {
		o.SnapLen = pcap.MaxPacket
	}
	c := &Capture{o: o, wake: make(chan struct{}, 1), stop: make(chan struct{})}
	at := make([]pipeline.TapPoint, len(o.Points))
	for i, p := range o.Points {
		at[i] = p.TapPoint
	}
	for range o.Workers {
		t := newWorkerTap(c)
		c.taps = append(c.taps, t)
		c.specs = append(c.specs, &pipeline.TapSpec{Tap: t, Points: at})
	}
	return c, nil
}

// Spec is what worker w is to be given.
func (c *Capture) Spec(w int) *pipeline.TapSpec { return c.specs[w] }

// Wants reports whether packets of a flow could match.
func (c *Capture) Wants(f *wire.Flow) bool { return c.o.Filter.MayMatch(f) }

// Hold makes worker w hold a flow that XDP has, before it comes up. On the worker's goroutine. It reports whether there was room.
func (c *Capture) Hold(w int, f wire.Flow, drop bool, now int64) bool {
	return c.taps[w].hold(&f, heldFlow{drop: drop, pulled: true}, now)
}

// Flow is one that was held.
type Flow struct {
	Flow   wire.Flow
	Drop   bool
	Pulled bool // it was offloaded before the capture began
}

// GiveBack ends what is shown to worker w's tap, and returns the flows that it holds. Those go on being held, until the worker is
// rid of the tap. On the worker's goroutine.
func (c *Capture) GiveBack(w int) (flows []Flow) {
	t := c.taps[w]
	t.closing.Store(true)
	t.ring.Publish() // of this turn; every packet of it has been decided on
	for k, h := range t.held.All() {
		flows = append(flows, Flow{k, h.drop, h.pulled})
	}
	return flows
}

// Stop ends the capture; why is what its statistics say.
func (c *Capture) Stop(why string) {
	if c.stopped.CompareAndSwap(false, true) {
		c.why.Store(&why)
		close(c.stop)
	}
}

// Stats returns the figures.
func (c *Capture) Stats() Stats {
	s := Stats{Packets: c.packets.Load(), Bytes: c.bytes.Load()}
	for _, t := range c.taps {
		for i := range t.dropped {
			s.Dropped += t.dropped[i].Load()
		}
		s.NotHeld += t.notHeld.Load()
		s.Held += t.holding.Load()
	}
	if why := c.why.Load(); why != nil {
		s.Why = *why
	}
	return s
}

// kick wakes the writer if it sleeps.
func (c *Capture) kick() {
	if c.sleeping.Load() && c.sleeping.CompareAndSwap(true, false) {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// full ends a capture that has as much as it may have.
var errFull = errors.New("full")

// Write writes the capture to w until it ends: by Stop, by its limits, by the end of ctx, or because w fails, which is the
// error. detach is called before what is left is written: nothing is to come after it.
func (c *Capture) Write(ctx context.Context, w io.Writer, detach func()) error {
	o := pcap.WriterOptions{Comment: c.o.Comment}
	for _, p := range c.o.Points {
		i := pcap.Interface{Name: p.Name, Description: p.Description}
		if c.o.SnapLen < pcap.MaxPacket {
			i.SnapLen = c.o.SnapLen
		}
		o.Interfaces = append(o.Interfaces, i)
	}
	out, err := pcap.NewWriter(w, o)
	if err == nil {
		err = out.Flush()
	}
	e := &encoder{c: c, out: out, limit: c.o.Limit}
	if e.limit > 0 {
		e.limit -= int64(len(c.o.Points)) * pcap.StatisticsSize
	}
	for err == nil && !c.stopped.Load() && ctx.Err() == nil {
		var n int
		if n, err = e.drain(); n > 0 || err != nil {
			continue
		}
		if err = out.Flush(); err != nil {
			break
		}
		c.sleeping.Store(true)
		if c.waiting() {
			c.sleeping.Store(false)
			continue
		}
		select {
		case <-c.wake:
		case <-c.stop:
		case <-ctx.Done():
		}
		c.sleeping.Store(false)
	}
	if err != nil && !errors.Is(err, errFull) {
		c.Stop("its reader has gone")
	} else if ctx.Err() != nil {
		c.Stop("its reader has gone")
	}
	detach()
	for n := 1; n > 0 && err == nil; {
		n, err = e.drain()
	}
	if errors.Is(err, errFull) {
		err = nil
	}
	for i := range c.o.Points {
		if err == nil {
			var dropped uint64
			for _, t := range c.taps {
				dropped += t.dropped[i].Load()
			}
			err = out.WriteStatistics(i, time.Now().UnixNano(), e.seen[i]+dropped, dropped)
		}
	}
	if err == nil {
		err = out.Flush()
	}
	c.bytes.Store(uint64(out.Size()))
	return err
}

func (c *Capture) waiting() bool {
	var rec packetring.Record
	for _, t := range c.taps {
		if t.ring.Peek(&rec) {
			return true
		}
	}
	return false
}

// encoder writes records.
type encoder struct {
	c       *Capture
	out     *pcap.Writer
	limit   int64
	comment []byte
	seen    [maxPoints]uint64
}

// drainAtOnce is how many packets are written before the encoder looks whether it is to end.
const drainAtOnce = 1024

// drain writes what waits, the earliest of all workers first.
func (e *encoder) drain() (n int, err error) {
	var rec, best packetring.Record
	for n < drainAtOnce {
		var from *packetring.Ring
		for _, t := range e.c.taps {
			if t.ring.Peek(&rec) && (from == nil || rec.Time < best.Time) {
				from, best = t.ring, rec
			}
		}
		if from == nil {
			break
		}
		if err := e.write(&best); err != nil {
			return n, err
		}
		from.Done(&best)
		n++
	}
	e.c.bytes.Store(uint64(e.out.Size()))
	return n, nil
}

func (e *encoder) write(rec *packetring.Record) error {
	c := e.c
	if c.o.Count > 0 && c.packets.Load() == c.o.Count {
		c.Stop("--count is reached")
		return errFull
	}
	e.describe(rec)
	if e.limit > 0 && e.out.Size()+int64(pcap.PacketSize(len(rec.Data), len(e.comment))) > e.limit {
		c.Stop("--limit is reached")
		return errFull
	}
	if err := e.out.WritePacket(rec.Point, rec.Time, rec.Wire, rec.Data, e.comment); err != nil {
		return err
	}
	e.seen[rec.Point]++
	if n := c.packets.Add(1); n == c.o.Count {
		c.Stop("--count is reached")
		return errFull
	}
	return nil
}

// describe makes the packet's comment.
func (e *encoder) describe(rec *packetring.Record) {
	b := e.comment[:0]
	if rec.Chain != pipeline.NoChain {
		if name, stages := e.c.o.Chain(rec.Chain); name != "" {
			b = append(append(append(b, "chain="...), name...), ' ')
			if rec.Stage < stages {
				b = append(strconv.AppendInt(append(b, "stage="...), int64(rec.Stage)+1, 10), ' ')
			}
		}
	}
	switch {
	case rec.Held:
		b = append(b, "offloaded "...)
	case rec.Made:
		b = append(b, "made "...)
	}
	b = append(b, "verdict="...)
	if rec.Verdict == 0 {
		e.comment = append(b, "unknown"...)
		return
	}
	b = append(b, rec.Verdict.String()...)
	switch {
	case rec.Verdict == pipeline.Drop:
		b = append(append(b, " reason="...), rec.Reason.String()...)
	case rec.Verdict == pipeline.Forward && int(rec.Out) < len(e.c.o.Ports):
		b = append(append(b, " out="...), e.c.o.Ports[rec.Out].Name...)
	}
	e.comment = b
}
