package bpf

import (
	"fmt"
	"time"
)

// FlowCounts say how many flows are in the table, both directions as one.
type FlowCounts struct {
	Flows   int
	ByChain []ChainFlows // of the chains that have any, by chain
}

// ChainFlows are the flows of one chain.
type ChainFlows struct {
	Chain                    int
	ToChain, Bypass, Dropped int // by the Action of their packets; Bypass counts those that have Passed, too
}

const (
	// countFor is for how long after somebody has looked Expire goes on counting.
	countFor = time.Minute
	// A walk through a table of more than largeTable flows counts at most every countEvery: to count makes it a quarter longer.
	largeTable = 50_000
	countEvery = 5 * time.Second
)

// LastCount returns how many flows there were at the last walk of Expire through the whole table that counted them. It costs nothing; the
// count is a second old if Expire is called each second, a few seconds old if the table is large, and older for who asks less than once
// a minute, or while more than 65536 flows end with each Expire.
func (s *Steerer) LastCount() FlowCounts {
	s.table.asked.Store(int64(Now()))
	if c := s.table.counts.Load(); c != nil {
		return *c
	}
	return FlowCounts{}
}

// CountFlows counts the flows now. It reads the whole table: milliseconds where there is room for a million flows, a second where they are there.
func (s *Steerer) CountFlows() (FlowCounts, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var n countTable
	err := s.eachFlow(func(_ *steerFlowKey, v *steerFlow) bool {
		if action := v.Decision & 0xff; v.Reply == 0 && v.Chain < maxCountedChains && action < numActions {
			n[v.Chain][action]++
		}
		return true
	})
	if err != nil {
		return FlowCounts{}, fmt.Errorf("count flows: %w", err)
	}
	return *n.counts(), nil
}

// beginCount has the next walk count, if somebody wants it to. It wants ending held.
func (t *table) beginCount(now time.Duration) (counting bool, err error) {
	last := t.counts.Load()
	counting = now-time.Duration(t.asked.Load()) < countFor &&
		(last == nil || last.Flows < largeTable || now-t.counted >= countEvery)
	b := t.endBuf[:4+maxCountedChains*numActions*4]
	clear(b)
	if counting {
		t.counted = now
		b[0] = 1
	} else {
		b = b[:4]
	}
	_, err = t.ends.WriteAt(b, endCounting)
	return counting, err
}

// finishCount wants ending held.
func (t *table) finishCount() error {
	b := t.endBuf[:maxCountedChains*numActions*4]
	if _, err := t.ends.ReadAt(b, endFlows); err != nil {
		return err
	}
	t.counts.Store(readCounts(b))
	return nil
}

type countTable [maxCountedChains][numActions]uint32

func readCounts(b []byte) *FlowCounts {
	var n countTable
	for i := range n {
		for j := range n[i] {
			n[i][j] = le.Uint32(b[4*(numActions*i+j):])
		}
	}
	return n.counts()
}

func (n *countTable) counts() *FlowCounts {
	c := &FlowCounts{}
	for i, by := range n {
		if by == [numActions]uint32{} {
			continue
		}
		f := ChainFlows{Chain: i, ToChain: int(by[ToChain]), Bypass: int(by[Bypass] + by[Passed]), Dropped: int(by[Drop])}
		c.ByChain = append(c.ByChain, f)
		c.Flows += f.ToChain + f.Bypass + f.Dropped
	}
	return c
}
