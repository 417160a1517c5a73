package tap

import (
	"fmt"

	"golang.org/x/net/bpf"

	"penstock/internal/wire"
)

// Instruction is one of a classic BPF program (linux/filter.h, struct sock_filter).
type Instruction struct {
	Op uint16 `json:"op"`
	Jt uint8  `json:"jt"`
	Jf uint8  `json:"jf"`
	K  uint32 `json:"k"`
}

// MaxProgram is how many instructions a filter may have. It has no loops, so this bounds what a packet costs.
const MaxProgram = 1024

// Filter says which packets are captured. Goroutines may share it.
type Filter struct {
	vms    [wire.MaxVLANs + 1]*bpf.VM // by the number of VLAN tags
	code   []bpf.Instruction
	tagged bool
}

// NewFilter takes a program for Ethernet frames. If tagged, it is run on frames as they are; else on what they would be without
// their VLAN tags, so that an address or a port means the same inside of tags and without.
func NewFilter(program []Instruction, tagged bool) (*Filter, error) {
	if len(program) == 0 || len(program) > MaxProgram {
		return nil, fmt.Errorf("load filter: want 1 to %d instructions, got %d; make the expression shorter", MaxProgram, len(program))
	}
	f := &Filter{tagged: tagged}
	for i, r := range program {
		ins := bpf.RawInstruction{Op: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}.Disassemble()
		if _, raw := ins.(bpf.RawInstruction); raw {
			return nil, fmt.Errorf("load filter: instruction %d, %+v, is not of classic BPF", i, r)
		}
		f.code = append(f.code, ins)
	}
	for tags := range f.vms {
		code := f.code
		if !tagged {
			code = behindTags(code, uint32(4*tags))
		}
		vm, err := bpf.NewVM(code)
		if err != nil {
			return nil, fmt.Errorf("load filter: %w", err)
		}
		f.vms[tags] = vm
	}
	return f, nil
}

// typeOffset is where an untagged frame has its EtherType.
const typeOffset = 12

// behindTags is a program that finds everything behind the MAC addresses shift bytes later.
func behindTags(code []bpf.Instruction, shift uint32) []bpf.Instruction {
	moved := make([]bpf.Instruction, len(code))
	for i, ins := range code {
		switch l := ins.(type) {
		case bpf.LoadAbsolute:
			if l.Off >= typeOffset {
				l.Off += shift
			}
			ins = l
		case bpf.LoadIndirect:
			if l.Off >= typeOffset {
				l.Off += shift
			}
			ins = l
		case bpf.LoadMemShift:
			if l.Off >= typeOffset {
				l.Off += shift
			}
			ins = l
		}
		moved[i] = ins
	}
	return moved
}

// Match reports whether a frame with that many VLAN tags is to be captured. It does not allocate. A nil Filter takes all.
func (f *Filter) Match(frame []byte, tags int) bool {
	if f == nil {
		return true
	}
	n, err := f.vms[min(tags, wire.MaxVLANs)].Run(frame)
	return err == nil && n > 0
}
