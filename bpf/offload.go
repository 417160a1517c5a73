package bpf

import (
	"fmt"
	"os"

	"penstock/internal/rewrite"
)

// OffloadFlow is a flow that user space wants no more packets of.
type OffloadFlow struct {
	Key   FlowKey // of either direction, as its packets arrive
	Reply FlowKey // of the other one, as its packets arrive, where rewrites make that another key; zero: Key.Reverse()

	Drop bool // drop both directions; else they are forwarded
	Stay bool // neither: the flow stays with its chain, which only wants Reply known

	// Rewrite is how packets that arrive with Key are changed before they are forwarded, ReplyRewrite those with Reply. A packet that
	// needs more than internal/rewrite's Apply comes up untouched, counted as rewrite_slow: whoever gave the rule keeps it for
	// Rule.ApplySlow for as long as the flow lives.
	Rewrite, ReplyRewrite rewrite.Rule

	// Out and ReplyOut are 1 + the index of the port that packets with Key and with Reply leave by; 0: the default action.
	Out, ReplyOut int

	Result OffloadResult // set by Offload
}

// OffloadResult says what became of an OffloadFlow.
type OffloadResult uint8

// The results. All but the first mean that nothing has changed.
const (
	OffloadTaken      OffloadResult = iota
	OffloadGone                     // the flow is not in the table: it has expired, or never was
	OffloadChanged                  // a SYN has just begun the flow anew
	OffloadReplyInUse               // Reply belongs to another flow
	OffloadTableFull                // no room in the flow table for Reply
	OffloadSlotsFull                // no room for the rewrites (Options.MaxRewrites)
	NumOffloadResults = int(iota)   // the size of an array indexed by OffloadResult
)

// String returns the result's lower_snake name.
func (r OffloadResult) String() string {
	switch r {
	case OffloadTaken:
		return "taken"
	case OffloadGone:
		return "flow_gone"
	case OffloadChanged:
		return "flow_changed"
	case OffloadReplyInUse:
		return "reply_in_use"
	case OffloadTableFull:
		return "flow_table_full"
	case OffloadSlotsFull:
		return "rewrites_full"
	}
	return fmt.Sprintf("offload_result_%d", uint8(r))
}

// Help says what the result means.
func (r OffloadResult) Help() string {
	if int(r) >= NumOffloadResults {
		return ""
	}
	return [...]string{
		"XDP has the flow",
		"the flow is not in the table: it has expired, or never was",
		"a SYN has just begun the flow anew",
		"the other direction's addresses and ports belong to another flow",
		"no room in the flow table for the other direction",
		"no room for what is to be rewritten (splices)",
	}[r]
}

// Offload takes flows out of user space: from now on the program forwards or drops their packets itself, changed as the rewrites say. It
// returns how many it took, both directions of each, or none, and says in Result what became of each. A new SYN on the same
// addresses and ports goes to the chain again. Giving a flow another decision is done in the same way: a packet meets
// the old one or the new one.
//
// It is one system call for 256 flows; counters go on counting meanwhile. An error means that the flows whose Result is not
// OffloadTaken were not taken.
func (s *Steerer) Offload(list []OffloadFlow) (taken int, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return 0, os.ErrClosed
	}
	for i := range list {
		o := &list[i]
		o.Result = OffloadGone
		if n := len(s.opts.Ports); o.Out < 0 || o.Out > n || o.ReplyOut < 0 || o.ReplyOut > n {
			return 0, fmt.Errorf("offload flow: want ports to leave by from 0 to %d, got %d and %d", n, o.Out, o.ReplyOut)
		}
	}
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	for len(list) > 0 && err == nil {
		batch := list[:min(len(list), maxOffloadJobs)]
		list = list[len(batch):]
		if err = s.table.offloadBatch(batch); err != nil {
			err = fmt.Errorf("offload flows: %w", err)
		}
		for i := range batch {
			s.table.results[batch[i].Result]++
			if batch[i].Result == OffloadTaken {
				taken++
			}
		}
	}
	return taken, err
}

// OffloadResults returns how often Offload came to each result.
func (s *Steerer) OffloadResults() [NumOffloadResults]uint64 {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	return s.table.results
}

// needsSlot reports whether an entry of the flow table is not enough to hold what o says.
func (o *OffloadFlow) needsSlot() bool {
	return o.Rewrite.Flags != 0 || o.ReplyRewrite.Flags != 0 || o.Reply != FlowKey{} && o.Reply != o.Key.Reverse()
}

func (o *OffloadFlow) action() uint64 {
	switch {
	case o.Stay:
		return uint64(ToChain)
	case o.Drop:
		return uint64(Drop)
	}
	return uint64(Bypass)
}

// offloadBatch wants mu held.
func (t *table) offloadBatch(batch []OffloadFlow) error {
	var at [maxOffloadJobs]int // job of a flow, or -1
	var slot [maxOffloadJobs]uint32
	jobs := 0
	for i := range batch {
		o := &batch[i]
		at[i] = -1
		var generation uint32
		if o.needsSlot() {
			var ok bool
			if slot[i], generation, ok = t.slots.take(); !ok {
				o.Result = OffloadSlotsFull
				continue
			}
		}
		at[i] = jobs
		if _, err := t.jobs.WriteAt(t.job(o, slot[i], generation), int64(offloadHeader+jobs*offloadJobSize)); err != nil {
			return err
		}
		jobs++
	}
	if jobs == 0 {
		return nil
	}
	if _, err := t.jobs.WriteAt(le.AppendUint32(t.buf[:0], uint32(jobs)), 0); err != nil {
		return err
	}
	runErr := runNow(t.offload)
	for i := range batch {
		if at[i] < 0 {
			continue
		}
		base := int64(offloadHeader + at[i]*offloadJobSize)
		result, err := readUint32(t.jobs, base+jobResult)
		if runErr == nil && err == nil && result == uint32(OffloadTaken) {
			before, _ := readUint64(t.jobs, base+jobBefore)
			t.slots.drop(before)
			batch[i].Result = OffloadTaken
			continue
		}
		if slot[i] != 0 {
			t.slots.giveBack(slot[i])
		}
		if runErr == nil && err == nil {
			batch[i].Result = OffloadResult(result)
		}
	}
	return runErr
}

// job is o as a struct offload_job, in t.buf. Without a slot it ends before the rewrites, which are not read then.
func (t *table) job(o *OffloadFlow, slot, generation uint32) []byte {
	key, reply := o.Key.raw(), o.Key.Reverse().raw()
	if o.Reply != (FlowKey{}) {
		reply = o.Reply.raw()
	}
	decision := o.action() | uint64(o.Out)<<decisionEgress
	replyDecision := o.action() | uint64(o.ReplyOut)<<decisionEgress
	if slot != 0 {
		decision |= uint64(2*slot)<<decisionRewrite | uint64(generation)<<decisionGeneration
		replyDecision |= uint64(2*slot+1)<<decisionRewrite | uint64(generation)<<decisionGeneration
	}
	b := appendFlowKey(t.buf[:0], &key)
	b = le.AppendUint32(b, uint32(OffloadGone))
	b = appendFlowKey(b, &reply)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint64(b, decision)
	b = le.AppendUint64(b, replyDecision)
	b = le.AppendUint64(b, 0)
	if slot != 0 {
		b = appendRewrite(b, &o.Rewrite, generation, &reply)
		b = appendRewrite(b, &o.ReplyRewrite, generation, &key)
	}
	return b
}
