package pipeline

// handoverRing is how many packets may be under way from one worker to another:
// as much as a receive ring takes while the other worker is not scheduled, and
// bounded in memory where there are many workers.
func handoverRing(workers int) int { return max(32768/workers, 512) }

// Link makes the rings by which workers hand packets to each other. The
// workers' IDs are their indices. Call it once, before any of them runs.
func Link(workers []*Worker) {
	for _, w := range workers {
		w.peers = workers
		w.woken = make([]bool, len(workers))
		w.inbox = make([]*ring, len(workers))
		for i := range workers {
			if i != w.o.ID {
				w.inbox[i] = newRing(handoverRing(len(workers)))
			}
		}
	}
}

func (w *Worker) handOver(p *Packet, id ChainID, owner int) {
	p.Chain = id
	if !w.peers[owner].inbox[w.o.ID].push(p) {
		p.Drop(ReasonHandoverFull)
		if w.taps != nil {
			w.taps.first(p, NoChain, false)
		}
		w.finish(p)
		return
	}
	w.handedOver.Add(1)
	w.woken[owner] = true
}

func (w *Worker) receiveHandovers() (busy bool) {
	for _, r := range w.inbox {
		if r == nil {
			continue
		}
		w.batch.Reset()
		for w.batch.Room() > 0 {
			p := r.pop()
			if p == nil {
				break
			}
			w.batch.Add(p)
		}
		if w.batch.Len() > 0 {
			busy = true
			if w.turnTime < w.doubt {
				w.pass(w.batch.All())
			}
			w.dispatch(w.batch.All(), false)
		}
	}
	return busy
}
