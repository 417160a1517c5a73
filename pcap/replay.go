package pcap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync/atomic"
	"time"

	"penstock/internal/wire"
	"penstock/pipeline"
	"penstock/pipeline/fault"
)

const (
	replayFrames = 2 * pipeline.BatchSize // in each pool
	maxWorkers   = 64
	// maxTurns bounds how often a stage that always has work to do (Poller) is
	// asked between two batches.
	maxTurns = 64
	// maxIdleTicks bounds how many ticks a gap in the capture has: in a longer
	// one they are spread over it evenly.
	maxIdleTicks  = 64
	progressEvery = 200 * time.Millisecond
)

// Replay runs the packets of a capture through a chain. The clock of the
// stages is the capture's: it stands at the latest packet and never goes back,
// and ticks come every pipeline.TickInterval of it.
//
// The Result is valid also where there is an error: it accounts for what was
// read before. A damaged capture is a *ReadError.
func Replay(ctx context.Context, o ReplayOptions) (Result, error) {
	begin := time.Now()
	r, err := newReplay(&o)
	if err != nil {
		return Result{Dropped: map[string]uint64{}, Error: err.Error()}, err
	}
	err = r.run(ctx)
	err = errors.Join(err, r.close())
	res := r.result()
	res.Seconds = time.Since(begin).Seconds()
	if err == nil && res.Packets+res.Added != res.accounted() {
		err = fmt.Errorf("replay %s: %d packets were read, %d added, %d are accounted for", r.feed.o.Reader.Name(), res.Packets, res.Added, res.accounted())
	}
	if err != nil {
		res.Error = err.Error()
	}
	return res, err
}

// replay is a Replay under way.
type replay struct {
	o       *ReplayOptions
	reader  *Reader
	feed    *Feed
	writer  *Writer
	workers []*pipeline.Worker
	faults  []*fault.Port // two for each worker, or none
	ports   [][]pipeline.Port

	now      atomic.Int64 // the capture's time; stages may read it from other goroutines
	nextTick int64
	badSums  uint64
	totals   pipeline.Totals
	chain    *pipeline.ChainStats
	progress time.Time
}

func newReplay(o *ReplayOptions) (r *replay, err error) {
	if o.Chain != nil {
		if depth, stage, _ := o.Chain.Depth(); depth == pipeline.DepthTerminate {
			return nil, fmt.Errorf("replay: chain %q terminates connections (stage %s): want closed-loop replay", o.Chain.Name, stage)
		}
	}
	if o.Workers == 0 {
		o.Workers = 1
	}
	if o.Workers < 1 || o.Workers > maxWorkers {
		return nil, fmt.Errorf("replay: workers must be 1 to %d, got %d", maxWorkers, o.Workers)
	}
	if o.Speed < 0 || math.IsNaN(o.Speed) || math.IsInf(o.Speed, 0) {
		return nil, fmt.Errorf("replay: speed must be 0 or more, got %v", o.Speed)
	}
	r = &replay{o: o, progress: time.Now()}
	if o.In != nil {
		r.reader, err = NewReader(o.Name, o.In)
	} else {
		r.reader, err = Open(o.Name)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.abort())
		}
	}()
	// The packets of the capture have a pool of their own, so that a frame
	// that a worker is done with still holds the packet when Outcome looks.
	frames := replayFrames
	if o.Faults.Active() {
		hold := o.Faults.Hold
		if hold < 1 {
			hold = fault.Default().Hold
		}
		frames += 4 * hold // both ports, both directions
	}
	arena, err := NewArena(o.Workers+1, frames)
	if err != nil {
		return r, err
	}
	r.feed = NewFeed(FeedOptions{
		Reader: r.reader, Pool: arena.Pool(o.Workers), Names: o.Ports, Speed: o.Speed, Queues: o.Workers,
	})
	r.feed.auto = false
	r.feed.o.onEmit = r.emitted
	if o.Out != nil {
		names := r.feed.o.Names
		r.writer, err = NewWriter(o.Out, WriterOptions{Interfaces: []Interface{{Name: names[0]}, {Name: names[1]}}})
		if err != nil {
			return r, err
		}
		r.feed.o.Writer = r.writer
	}
	for i := range o.Workers {
		if err = r.addWorker(i, arena.Pool(i)); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (r *replay) addWorker(i int, pool *pipeline.Pool) error {
	ports := r.feed.Ports(i)
	infos := []pipeline.PortInfo{ports[0].Info(), ports[1].Info()}
	if r.o.Faults.Active() {
		for i, p := range ports {
			f := fault.Wrap(p, r.o.Faults, fault.PortOptions{Pool: pool, Clock: r.now.Load, Copied: r.feed.copied})
			ports[i] = f
			r.faults = append(r.faults, f)
		}
	}
	r.ports = append(r.ports, ports)
	wo := pipeline.WorkerOptions{
		ID: i, Ports: ports, Infos: infos, Pool: pool, Clock: r.now.Load, Log: r.o.Log,
		Default: pipeline.NoChain, VerifyChecksums: !r.o.AcceptBadChecksums,
	}
	if r.o.Chain != nil {
		wo.Default = 0
	}
	w := pipeline.NewWorker(wo)
	r.workers = append(r.workers, w)
	if r.o.Chain == nil {
		return nil
	}
	env := w.Env()
	env.Workers = r.o.Workers
	env.ChecksumsSettled, env.Recorded = true, true // by wo.VerifyChecksums
	if r.o.Recorder != nil {
		env.Recorder = r.o.Recorder
	}
	chain, err := r.o.Chain.Build(env)
	if err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	w.SetChains([]*pipeline.Chain{chain}, []bool{r.o.Chain.Affinity()})
	return nil
}

// run replays until the capture ends.
func (r *replay) run(ctx context.Context) error {
	if t, err := r.feed.peek(); err == nil {
		// The stages begin when the capture does.
		r.setNow(t)
		r.nextTick = t + int64(pipeline.TickInterval)
		if err := r.turns(); err != nil {
			return err
		}
	}
	for ctx.Err() == nil {
		t, err := r.feed.peek()
		if err == io.EOF {
			return r.release()
		}
		if err != nil {
			return err
		}
		if err := r.idleUntil(t); err != nil {
			return err
		}
		if r.feed.fill(pipeline.BatchSize, r.nextTick) == 0 {
			return fmt.Errorf("replay %s: no frame is free: a stage keeps packets", r.reader.Name())
		}
		r.wait(ctx)
		r.setNow(max(r.feed.last, r.now.Load()))
		r.check()
		if err := r.turns(); err != nil {
			return err
		}
		r.report(false)
	}
	return fmt.Errorf("replay %s: stopped after %d packets: %w", r.reader.Name(), r.feed.packets, context.Cause(ctx))
}

func (r *replay) setNow(t int64) {
	r.now.Store(t)
	if r.o.Clock != nil {
		r.o.Clock.Set(t)
	}
}

// release lets time pass until the ports hold nothing back any more.
func (r *replay) release() error {
	for {
		next, any := int64(math.MaxInt64), false
		for _, f := range r.faults {
			if due, ok := f.Next(); ok {
				next, any = min(next, due), true
			}
		}
		if !any {
			return nil
		}
		r.setNow(max(next, r.now.Load()+1))
		if err := r.turns(); err != nil {
			return err
		}
	}
}

// idleUntil lets time pass up to t, a packet's: it takes the turns that have a
// tick in them.
func (r *replay) idleUntil(t int64) error {
	if t < r.nextTick {
		return nil
	}
	tick := int64(pipeline.TickInterval)
	n, step := (t-r.nextTick)/tick+1, tick
	if n > maxIdleTicks {
		n, step = maxIdleTicks, (t-r.nextTick)/(maxIdleTicks-1)
	}
	for range n {
		r.setNow(r.nextTick)
		if err := r.turns(); err != nil {
			return err
		}
		r.nextTick += step
	}
	r.nextTick = r.now.Load() + tick
	return nil
}

// wait blocks until the packets of this slice are due.
func (r *replay) wait(ctx context.Context) {
	left := r.feed.due(r.feed.last)
	if left <= 0 {
		return
	}
	t := time.NewTimer(time.Duration(left))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done(): // what was read is still accounted for
	}
}

// check counts wrong checksums where the workers do not look.
func (r *replay) check() {
	if !r.o.AcceptBadChecksums {
		return
	}
	for _, p := range r.feed.slice {
		if p.Fault != wire.FaultNone || p.IPVersion == 0 {
			continue
		}
		b := p.Bytes()
		if p.IPVersion == 4 && !wire.VerifyIPv4(b[p.L3:]) ||
			p.HasL4 && p.Frag == wire.FragNone && !wire.VerifyL4(b, &p.Headers) {
			r.badSums++
		}
	}
}

// turns lets the workers take turns until none has anything to do.
func (r *replay) turns() error {
	for i := range maxTurns {
		busy := false
		for _, w := range r.workers {
			b, err := w.Turn()
			if err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("replay %s: %w", r.reader.Name(), err)
			}
			busy = busy || b
		}
		if i == 0 {
			r.outcomes()
		}
		r.feed.flush()
		if r.feed.outErr != nil {
			return fmt.Errorf("replay %s: %w", r.reader.Name(), r.feed.outErr)
		}
		if !busy {
			break
		}
	}
	return nil
}

// outcomes tells what became of the packets of the slice.
func (r *replay) outcomes() {
	slice := r.feed.slice
	r.feed.slice = slice[:0]
	if r.o.Outcome == nil {
		return
	}
	for _, p := range slice {
		m := r.feed.meta[p.Index()]
		o := Outcome{Number: m.number, Time: m.time, Packet: p}
		o.Verdict, o.Reason = p.Verdict()
		if o.Verdict == pipeline.Forward && int(p.Out) >= len(r.feed.o.Names) {
			o.Verdict, o.Reason = pipeline.Drop, pipeline.ReasonNoPort
		}
		r.o.Outcome(&o)
	}
}

// emitted tells of a packet that a stage has made.
func (r *replay) emitted(e *outgoing) {
	if r.o.Outcome != nil {
		r.o.Outcome(&Outcome{Time: e.time, Packet: e.p, Verdict: pipeline.Forward})
	}
}

func (r *replay) report(end bool) {
	if r.o.Progress == nil || !end && time.Since(r.progress) < progressEvery {
		return
	}
	r.progress = time.Now()
	r.o.Progress(Progress{Packets: r.feed.packets, Offset: r.reader.Offset(), Time: time.Unix(0, r.feed.last).UTC()})
}

// close ends the stages and the files, and collects the figures.
func (r *replay) close() error {
	for _, w := range r.workers {
		w.Drain()
	}
	err := r.turns()
	for i, w := range r.workers {
		err = errors.Join(err, w.Close())
		for _, p := range r.ports[i] {
			if perr := p.Close(); perr != nil && err == nil {
				err = fmt.Errorf("replay %s: %w", r.reader.Name(), perr)
			}
		}
		s := w.Stats()
		r.totals.Add(s.Totals)
		r.badSums += s.BadIPSum + s.BadL4Sum
		for _, c := range s.Chains {
			if r.chain == nil {
				r.chain = &pipeline.ChainStats{}
			}
			r.chain.Add(c)
		}
	}
	r.report(true)
	return errors.Join(err, r.reader.Close())
}

// abort undoes newReplay.
func (r *replay) abort() error {
	var err error
	for _, w := range r.workers {
		err = errors.Join(err, w.Close())
	}
	return errors.Join(err, r.reader.Close())
}
