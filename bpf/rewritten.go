package bpf

import (
	"fmt"

	"penstock/internal/rewrite"
)

// RewrittenFlow is a flow whose packets XDP changes, or has changed until a SYN came.
type RewrittenFlow struct {
	Key, Reply          FlowKey         // of the direction that began the flow, and of the other one, as their packets arrive
	Rules               [2]rewrite.Rule // of packets with Key and with Reply
	InPort, ReplyInPort int             // port the last packet of each arrived at, -1: none did yet
	Chain               uint16
	Hash                uint32 // FlowHash of Key
}

// Rewritten returns the flows with rewrites that are in the table. It is for who has taken them over from a dead instance, and has to know
// the rules, for what comes up of them (see OffloadFlow.Rewrite). It takes three system calls for each of them.
func (s *Steerer) Rewritten() (list []RewrittenFlow, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	type entry struct {
		key  steerFlowKey
		flow steerFlow
	}
	var found []entry
	err = s.eachFlow(func(k *steerFlowKey, v *steerFlow) bool {
		if slot, _ := slotOf(v.Decision); slot != 0 && v.Reply == 0 {
			found = append(found, entry{*k, *v})
		}
		return true
	})
	for i := range found {
		if err != nil {
			break
		}
		var f *RewrittenFlow
		if f, err = s.rewrittenFlow(&found[i].key, &found[i].flow); f != nil {
			list = append(list, *f)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read flows with rewrites: %w", err)
	}
	return list, nil
}

// rewrittenFlow returns nil if the flow has ended meanwhile, or has had another begun in its place.
func (s *Steerer) rewrittenFlow(k *steerFlowKey, v *steerFlow) (*RewrittenFlow, error) {
	_, generation := slotOf(v.Decision)
	element := uint32(v.Decision >> decisionRewrite & 0xffffff)
	var w [2]steerRewrite
	for i := range w {
		if err := s.table.rewrites.Lookup(element^uint32(i), &w[i]); err != nil {
			return nil, err
		}
		if w[i].Generation != generation {
			return nil, nil
		}
	}
	other, err := s.flow(&w[0].Other)
	if other == nil || err != nil {
		return nil, err
	}
	e, r := entryOf(k, v), entryOf(&w[0].Other, other)
	return &RewrittenFlow{
		Key: e.FlowKey, Reply: r.FlowKey, Rules: [2]rewrite.Rule{w[0].rule(), w[1].rule()}, InPort: e.InPort, ReplyInPort: r.InPort,
		Chain: v.Chain, Hash: v.Hash,
	}, nil
}

// rule is the inverse of appendRewrite.
func (w *steerRewrite) rule() rewrite.Rule {
	return rewrite.Rule{
		Flags: rewrite.Flags(w.Flags), VLANs: w.Vlans, WindowShift: w.WindowShift, SrcMAC: w.SrcMac, DstMAC: w.DstMac, VLAN: w.Vlan,
		Src: wordsAddr(w.Src, w.SrcFamily).As16(), Dst: wordsAddr(w.Dst, w.DstFamily).As16(), SrcPort: swap16(w.Sport), DstPort: swap16(w.Dport),
		Seq: w.Seq, Ack: w.Ack, TSVal: w.Tsval, TSEcr: w.Tsecr,
	}
}
