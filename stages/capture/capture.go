// Package capture is the packet stage that writes the packets that pass it to pcapng files, with the chain's verdict on
// each. The packet path copies into a buffer of fixed size; a goroutine of its own writes, for all workers.
//
// Its one trap: the verdict is known only when the last stage has decided, so a record is not complete, and the writer
// must not see it, before Observe.
package capture

import (
	_ "embed"
	"fmt"

	"penstock/internal/match"
	"penstock/internal/packetring"
	"penstock/pipeline"
)

//go:embed README.md
var readme string

// Descriptor describes the stage to the registry.
func Descriptor() pipeline.Descriptor[Config] {
	return pipeline.Descriptor[Config]{
		Kind:     "capture",
		Summary:  "writes the packets that pass it to pcapng files, with what the chain decided on each",
		README:   readme,
		Default:  defaults,
		Validate: validate,
		Holds:    func(Config) string { return "records every packet" },
		New:      func(c Config, env *pipeline.Env) (pipeline.Stage, error) { return newStage(c, env) },
	}
}

type stage struct {
	ring     *ring
	writer   *writer
	set      *match.Set // nil: all packets
	snapLen  int
	lossless bool
	pending  []pending // records of this batch

	captured, bytes, overrun *pipeline.Counter
}

// pending is a record whose verdict is not known yet.
type pending struct {
	index int    // in the batch
	at    uint64 // in the ring
}

// shared is what all workers have in common.
type shared struct {
	writer *writer
	set    *match.Set
	err    error
}

var (
	_ pipeline.Observer = (*stage)(nil)
	_ pipeline.Closer   = (*stage)(nil)
)

func newStage(c Config, env *pipeline.Env) (*stage, error) {
	sh := env.Shared.Get("writer", func() any {
		s := &shared{writer: newWriter(&c, env)}
		if len(c.Match) > 0 {
			s.set, s.err = match.Compile(c.Match, env.Ports)
		}
		return s
	}).(*shared)
	if sh.err != nil {
		return nil, sh.err
	}
	size := int(c.Buffer)
	if c.Lossless {
		// A batch that is not published yet, and what is skipped at the end of the buffer.
		size = max(size, (pipeline.BatchSize+2)*packetring.Size(c.snapLen()))
	}
	ctr := env.Counters.Counter
	s := &stage{
		writer: sh.writer, set: sh.set, snapLen: c.snapLen(), lossless: c.Lossless,
		ring:     newRing(size, ctr("lost", "packets that were captured and could not be written")),
		pending:  make([]pending, 0, pipeline.BatchSize),
		captured: ctr("captured", "packets that were copied to be written"),
		bytes:    ctr("captured_bytes", "bytes of them"),
		overrun:  ctr("capture_overrun", "packets that were not captured because the buffer was full"),
	}
	err := s.writer.join(s.ring, ctr("write_errors", "errors of the disk"), ctr("files", "files that were begun"))
	if err != nil {
		return nil, fmt.Errorf("begin capture: %w", err)
	}
	return s, nil
}

// Process implements pipeline.Stage.
func (s *stage) Process(b *pipeline.Batch) {
	if len(s.pending) > 0 {
		// A later stage panicked, and nobody came to observe: what became of them is not known.
		s.finish()
	}
	var captured, bytes, overrun uint64
	for i, p := range b.All() {
		if !p.Live() {
			continue
		}
		p.Continue()
		if s.set != nil && s.set.Match(p) < 0 {
			continue
		}
		data := p.Bytes()
		data = data[:min(len(data), s.snapLen)]
		at, ok := s.ring.Reserve(len(data))
		if !ok && s.lossless {
			at, ok = s.wait(len(data))
		}
		if !ok {
			overrun++
			continue
		}
		s.ring.Put(at, p, data)
		s.pending = append(s.pending, pending{i, at})
		captured++
		bytes += uint64(len(data))
	}
	if captured > 0 {
		s.captured.Add(captured)
		s.bytes.Add(bytes)
	}
	if overrun > 0 {
		s.overrun.Add(overrun)
	}
}

// wait reserves a place as soon as the writer has made room for it.
func (s *stage) wait(n int) (at uint64, ok bool) {
	for {
		idle := s.ring.Empty()
		if at, ok = s.ring.Reserve(n); ok || idle {
			return at, ok // nothing that the writer could do would make more room
		}
		s.writer.waitSpace()
	}
}

// Observe implements pipeline.Observer.
func (s *stage) Observe(b *pipeline.Batch) {
	if len(s.pending) == 0 {
		return
	}
	pkts := b.All()
	for _, r := range s.pending {
		p := pkts[r.index]
		verdict, reason := p.Verdict()
		s.ring.Decide(r.at, pipeline.Outcome{Verdict: verdict, Reason: reason, Out: p.Out, Stage: p.Stage()})
	}
	s.finish()
}

// finish hands the records of the batch to the writer.
func (s *stage) finish() {
	s.pending = s.pending[:0]
	s.ring.Publish()
	s.writer.kick()
}

// Close implements pipeline.Closer.
func (s *stage) Close() error {
	s.finish()
	s.writer.leave()
	return nil
}
