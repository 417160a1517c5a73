package main

import (
	"sync"

	"penstock/bpf"
	"penstock/pipeline"
)

// chainSYNs has XDP answer the SYNs of a chain while any of its workers wants it.
type chainSYNs struct {
	steerer *bpf.Steerer
	chain   int

	mu     sync.Mutex
	wanted int // workers that want it
}

// workerSYNs is a worker's share. It implements pipeline.SYNAnswerer.
type workerSYNs struct {
	*chainSYNs
	wants bool
}

// AnswerSYNs implements pipeline.SYNAnswerer.
func (w *workerSYNs) AnswerSYNs(a *pipeline.SYNAnswer) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	wanted := w.wanted
	if w.wants {
		wanted--
	}
	var answer *bpf.CookieAnswer
	if a != nil {
		wanted++
		answer = &bpf.CookieAnswer{MSS4: a.MSS4, MSS6: a.MSS6, Window: a.Window, Shift: a.Shift}
	}
	if (wanted > 0) != (w.wanted > 0) {
		if err := w.steerer.AnswerSYNs(w.chain, answer); err != nil {
			return err
		}
	}
	w.wanted, w.wants = wanted, a != nil
	return nil
}

// SYNsAnswered implements pipeline.SYNAnswerer.
func (w *workerSYNs) SYNsAnswered() (sent, good uint64) { return w.steerer.Cookies(w.chain) }
