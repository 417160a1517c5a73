package bpf

import (
	"errors"
	"os"

	"github.com/cilium/ebpf"
)

// OffloadFlow is a flow, named by either direction, that user space wants no more packets of.
type OffloadFlow struct {
	Key  FlowKey
	Drop bool // drop both directions; else they take the default action
}

// Offload takes flows out of user space: from now on the program forwards or drops their packets itself. It returns how many it
// took: both directions of each, or none. A flow that has no entries (they have expired, or were never made) is not taken. A
// new SYN on the same addresses and ports goes to the chain again.
//
// An entry is replaced, since user space cannot write into it (kernel: hashtab.c); the few packets that are counted in the old one
// meanwhile are missing from the flow's figures. The reasons' counters miss nothing.
func (s *Steerer) Offload(list []OffloadFlow) (taken int, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return 0, os.ErrClosed
	}
	for i := range list {
		ok, ferr := s.offload(&list[i])
		if ok {
			taken++
		}
		if ferr != nil && err == nil {
			err = ferr
		}
	}
	return taken, err
}

func (s *Steerer) offload(o *OffloadFlow) (bool, error) {
	key := o.Key.raw()
	keys := [2]steerFlowKey{key, key.reverse()}
	var before [2]steerFlow
	for i := range keys {
		switch err := s.flows.Lookup(&keys[i], &before[i]); {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			return false, nil
		case err != nil:
			return false, err
		}
	}
	action := uint8(Bypass)
	if o.Drop {
		action = uint8(Drop)
	}
	for i := range keys {
		after := before[i]
		after.Action = action
		err := s.flows.Update(&keys[i], &after, ebpf.UpdateExist)
		if err == nil {
			continue
		}
		if i == 1 { // both directions or none
			_ = s.flows.Update(&keys[0], &before[0], ebpf.UpdateExist)
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return false, nil // it has expired since
		}
		return false, err
	}
	return true, nil
}
