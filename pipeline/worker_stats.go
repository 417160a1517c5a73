package pipeline

import "penstock/internal/latency"

// WorkerStats is a snapshot of a worker.
type WorkerStats struct {
	ID         int    `json:"id"`
	Turns      uint64 `json:"turns"`
	IdleTurns  uint64 `json:"idle_turns"`
	Waits      uint64 `json:"waits"`
	HandedOver uint64 `json:"handed_over"`   // to the worker that owns the flow
	Offloaded  uint64 `json:"offloaded"`     // flows given to XDP
	NotTaken   uint64 `json:"not_offloaded"` // released, but not taken
	// OffloadDelay is from the moment a flow is released to the moment XDP has it.
	OffloadDelay latency.Summary  `json:"offload_delay"`
	OffloadTimes latency.Snapshot `json:"-"` // the same, in full

	BadIPSum uint64       `json:"bad_ip_checksums"`
	BadL4Sum uint64       `json:"bad_l4_checksums"`
	Panics   uint64       `json:"stage_panics"`
	LastTurn int64        `json:"last_turn_ns"`
	Pool     PoolStats    `json:"pool"`
	Totals   Totals       `json:"totals"`
	Chains   []ChainStats `json:"chains"` // each instance once
}

// Stats may be called from any goroutine. While packets are under way the
// totals of a running worker are off by at most those.
func (w *Worker) Stats() WorkerStats {
	s := WorkerStats{
		ID: w.o.ID, Turns: w.turns.Load(), IdleTurns: w.idle.Load(), Waits: w.waitCount.Load(),
		HandedOver: w.handedOver.Load(), BadIPSum: w.badIPSum.Load(), BadL4Sum: w.badL4Sum.Load(),
		Panics: w.panicLogged.Load(), LastTurn: w.lastTurn.Load(), Pool: w.o.Pool.Stats(),
		Totals: Totals{
			Packets: w.packets.Load(), Bytes: w.bytes.Load(), Forwarded: w.forwarded.Load(),
			Consumed: w.consumed.Load(), Emitted: w.emits.Load(), EmitLost: w.emitLost.Load(),
			Dropped: map[string]uint64{},
		},
	}
	if w.releases != nil {
		s.Offloaded, s.NotTaken = w.releases.taken.Load(), w.releases.failed.Load()
		s.OffloadTimes = w.releases.delay.Snapshot()
		s.OffloadDelay = s.OffloadTimes.Summary()
	}
	for _, r := range Reasons() {
		if n := w.dropped[r].Load(); n > 0 {
			s.Totals.Dropped[r.String()] = n
		}
	}
	if shown := w.shown.Load(); shown != nil {
		for _, c := range *shown {
			s.Chains = append(s.Chains, c.Stats())
		}
	}
	return s
}
