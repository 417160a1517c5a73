package bpf

import (
	"fmt"
	"time"
)

// Lasting tells fn of the flows of chains that go on (no RST, and no FIN of both ends), with EndActive, and counters as they stand: of those for which due says so,
// which is asked for each by its key (of the direction that began it) and its beginning. Neither may call the Steerer; while they run, no
// flow is told of as ended, so that what Lasting has told comes before. It reads the whole table, and takes one or two
// system calls for each flow that is due.
func (s *Steerer) Lasting(due func(k FlowKey, start time.Duration) bool, fn func(*EndedFlow)) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	s.table.ending.Lock()
	defer s.table.ending.Unlock()
	type entry struct {
		key  steerFlowKey
		flow steerFlow
	}
	var list []entry
	err := s.eachFlow(func(k *steerFlowKey, v *steerFlow) bool {
		if v.Reply == 0 && v.Chain != NoChain && due(k.key(), time.Duration(v.Start)) {
			list = append(list, entry{*k, *v})
		}
		return true
	})
	for i := range list {
		if err != nil {
			break
		}
		var e *EndedFlow
		if e, err = s.lastingFlow(&list[i].key, &list[i].flow); e != nil {
			fn(e)
		}
	}
	if err != nil {
		return fmt.Errorf("read flows that go on: %w", err)
	}
	return nil
}

// lastingFlow joins a flow's entry with that of its other direction. It returns nil if the flow has ended, be it that Expire has not
// removed it yet.
func (s *Steerer) lastingFlow(k *steerFlowKey, v *steerFlow) (*EndedFlow, error) {
	back := k.key().Reverse().raw()
	if slot, generation := slotOf(v.Decision); slot != 0 {
		var w steerRewrite
		if err := s.table.rewrites.Lookup(uint32(v.Decision>>decisionRewrite&0xffffff), &w); err != nil {
			return nil, err
		}
		if w.Generation != generation {
			return nil, nil
		}
		back = w.Other
	}
	other, err := s.flow(&back)
	if other == nil || err != nil {
		return nil, err
	}
	e := endedFlow(k, &back, v, other, false)
	if e.Why != EndIdle { // so far: no end is seen in its packets
		return nil, nil
	}
	e.Why = EndActive
	return e, nil
}
