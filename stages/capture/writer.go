package capture

import (
	"log/slog"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"penstock/internal/packetring"
	"penstock/pcap"
	"penstock/pipeline"
)

// writer writes what the workers have captured to the files. It runs while any worker uses it.
type writer struct {
	files   pcap.RingFiles
	options pcap.WriterOptions
	ports   []pipeline.PortInfo
	chain   string
	log     *slog.Logger

	wake     chan struct{} // something was published, or the writer is to end
	sleeping atomic.Bool   // the writer waits for wake
	space    chan struct{} // a ring has room again
	starving atomic.Int32  // workers that wait for space

	mu      sync.Mutex // guards what follows; never taken on the packet path
	rings   []*ring
	users   int
	closing bool
	ended   chan struct{}

	// The goroutine's own.
	out                 *pcap.Ring
	dirty               bool // written since the last flush
	retryAfter          time.Duration
	retry               time.Time
	broken              bool // an error was logged
	begun               int  // files of earlier pcap.Rings
	before              int  // files that were there before the current one
	counted             time.Time
	comment             []byte
	writeErrors, nFiles *pipeline.Counter
}

// ring is that of a worker, and counts what of it could not be written.
type ring struct {
	*packetring.Ring
	lost *pipeline.Counter
}

func newRing(size int, lost *pipeline.Counter) *ring { return &ring{packetring.New(size), lost} }

// newWriter returns a writer that is not running yet.
func newWriter(c *Config, env *pipeline.Env) *writer {
	w := &writer{
		files: c.ring(env), ports: env.Ports, chain: env.Chain, log: env.Log,
		wake: make(chan struct{}, 1), space: make(chan struct{}, 1), retryAfter: time.Second,
	}
	w.options.Comment = "chain " + env.Chain + ", stage " + strconv.Itoa(env.Index+1)
	for _, p := range env.Ports {
		w.options.Interfaces = append(w.options.Interfaces, pcap.Interface{Name: p.Name, Description: p.Interface, SnapLen: int(c.SnapLen)})
	}
	if len(env.Ports) == 0 {
		w.options.Interfaces = []pcap.Interface{{Name: "unknown", SnapLen: int(c.SnapLen)}}
	}
	return w
}

// join adds a worker's ring; the first one makes the writer begin. The error is that of making the first file.
func (w *writer) join(r *ring, writeErrors, files *pipeline.Counter) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.closing { // the last user of before is still leaving
		ended := w.ended
		w.mu.Unlock()
		<-ended
		w.mu.Lock()
		if w.ended == ended {
			w.closing = false
		}
	}
	if w.users == 0 {
		if err := os.MkdirAll(w.files.Dir, 0o755); err != nil {
			return err
		}
		w.writeErrors, w.nFiles = writeErrors, files
		w.out, w.broken, w.begun = nil, false, 0
		if err := w.open(); err != nil {
			return err
		}
		w.ended = make(chan struct{})
		go w.run()
	}
	w.users++
	w.rings = append(w.rings, r)
	return nil
}

// leave ends a worker's use. The last one waits until everything is written and the file is closed.
func (w *writer) leave() {
	w.mu.Lock()
	w.users--
	last := w.users == 0
	w.closing = w.closing || last
	w.mu.Unlock()
	if last {
		w.poke()
		<-w.ended
	}
}

// kick wakes the writer if it sleeps. It is cheap otherwise.
func (w *writer) kick() {
	if w.sleeping.Load() && w.sleeping.CompareAndSwap(true, false) {
		w.poke()
	}
}

func (w *writer) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// waitSpace blocks until the writer has made some progress.
func (w *writer) waitSpace() {
	w.starving.Add(1)
	w.poke()
	<-w.space
	w.starving.Add(-1)
}

// feedStarving lets waiting workers look again.
func (w *writer) feedStarving() {
	if w.starving.Load() > 0 {
		select {
		case w.space <- struct{}{}:
		default:
		}
	}
}

func (w *writer) run() {
	defer close(w.ended)
	for {
		w.mu.Lock()
		rings, closing := w.rings, w.closing
		w.mu.Unlock()
		if w.drain(rings) > 0 {
			continue
		}
		w.feedStarving()
		w.flush()
		if closing {
			w.close()
			return
		}
		w.sleeping.Store(true)
		if anyWaits(rings) || w.starving.Load() > 0 {
			w.sleeping.Store(false)
			continue
		}
		<-w.wake
		w.sleeping.Store(false)
	}
}

func anyWaits(rings []*ring) bool {
	var rec packetring.Record
	for _, r := range rings {
		if r.Peek(&rec) {
			return true
		}
	}
	return false
}

// drainAtOnce is how many packets are written before the writer looks for new rings.
const drainAtOnce = 1024

// drain writes published packets, the earliest of all rings first, and returns how many.
func (w *writer) drain(rings []*ring) (n int) {
	var rec, best packetring.Record
	for n < drainAtOnce {
		var from *ring
		for _, r := range rings {
			if r.Peek(&rec) && (from == nil || rec.Time < best.Time) {
				from, best = r, rec
			}
		}
		if from == nil {
			break
		}
		if !w.write(&best) {
			from.lost.Add(1)
		}
		from.Done(&best)
		n++
		w.feedStarving()
	}
	return n
}

// write writes one packet and reports whether it is, as far as is known, in a file.
func (w *writer) write(rec *packetring.Record) bool {
	if w.out == nil {
		if time.Now().Before(w.retry) {
			return false
		}
		if err := w.open(); err != nil {
			w.fail(err)
			return false
		}
	}
	iface := int(rec.In)
	if iface >= len(w.options.Interfaces) {
		iface = 0
	}
	w.describe(rec)
	if err := w.out.WritePacket(iface, rec.Time, rec.Wire, rec.Data, w.comment); err != nil {
		w.fail(err)
		return false
	}
	w.dirty = true
	return true
}

// describe makes the packet's comment.
func (w *writer) describe(rec *packetring.Record) {
	b := append(w.comment[:0], "chain="...)
	b = append(b, w.chain...)
	if rec.Verdict == 0 {
		w.comment = append(b, " verdict=unknown"...) // a later stage panicked
		return
	}
	b = append(b, " stage="...)
	b = strconv.AppendInt(b, int64(rec.Stage)+1, 10)
	b = append(b, " verdict="...)
	b = append(b, rec.Verdict.String()...)
	switch {
	case rec.Verdict == pipeline.Drop:
		b = append(b, " reason="...)
		b = append(b, rec.Reason.String()...)
	case rec.Verdict == pipeline.Forward && int(rec.Out) < len(w.ports):
		b = append(b, " out="...)
		b = append(b, w.ports[rec.Out].Name...)
	}
	w.comment = b
}

// open begins a file that is a complete capture from the start.
func (w *writer) open() error {
	out, err := pcap.NewRing(w.files, w.options)
	if err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		_ = out.Close()
		return err
	}
	w.out = out
	s := out.Stats()
	w.before = s.Files + int(s.Removed) - 1
	w.countFiles()
	if w.broken {
		w.broken = false
		w.log.Info("capture goes on", "file", out.Stats().Current)
	}
	return nil
}

// countFiles sets the counter of files that were begun.
func (w *writer) countFiles() {
	w.counted = time.Now()
	n := w.begun
	if w.out != nil {
		s := w.out.Stats()
		n += s.Files + int(s.Removed) - w.before
	}
	w.nFiles.Set(uint64(n))
}

// giveUp closes the current file.
func (w *writer) giveUp() error {
	if w.out == nil {
		return nil
	}
	w.countFiles()
	w.begun = int(w.nFiles.Load())
	err := w.out.Close()
	w.out = nil
	return err
}

func (w *writer) flush() {
	if !w.dirty || w.out == nil {
		return
	}
	w.dirty = false
	if err := w.out.Flush(); err != nil {
		w.fail(err)
	} else if time.Since(w.counted) > time.Second {
		w.countFiles()
	}
}

// fail gives up the current file.
func (w *writer) fail(err error) {
	w.writeErrors.Add(1)
	if !w.broken {
		w.broken = true
		w.log.Error("capture cannot be written; a new file is tried every second", "error", err)
	}
	_ = w.giveUp() // it has failed already
	w.dirty, w.retry = false, time.Now().Add(w.retryAfter)
}

func (w *writer) close() {
	w.mu.Lock()
	w.rings = nil
	w.mu.Unlock()
	if err := w.giveUp(); err != nil {
		w.fail(err)
	}
}
