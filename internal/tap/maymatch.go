package tap

import (
	"golang.org/x/net/bpf"

	"penstock/internal/wire"
)

// MayMatch reports whether a packet of flow k, or of its other direction, could match. It runs the program on a frame of which
// only the bits are known that all packets of the flow share, and takes both ways where an unknown bit decides. It says yes
// where the answer would take too long, and does not allocate. Packets with IP options, and those whose IPv6 header is
// followed by others than the transport header, are not thought of.
func (f *Filter) MayMatch(k *wire.Flow) bool {
	if f == nil {
		return true
	}
	reverse := k.Reverse()
	for _, flow := range [2]*wire.Flow{k, &reverse} {
		var s sketch
		s.draw(flow, f.tagged, false)
		if s.mayMatch(f.code) {
			return true
		}
		if f.tagged && flow.VLAN[0] == 0 { // or it has a priority tag
			s.draw(flow, true, true)
			if s.mayMatch(f.code) {
				return true
			}
		}
	}
	return false
}

// sketch is the beginning of a frame, as far as it is known.
type sketch struct {
	bytes, mask [96]byte
	steps       int
}

// stepLimit bounds what MayMatch costs.
const stepLimit = 8 * MaxProgram

func (s *sketch) set(at int, b ...byte) {
	for i, v := range b {
		s.bytes[at+i], s.mask[at+i] = v, 0xff
	}
}

func (s *sketch) draw(k *wire.Flow, tags, priority bool) {
	*s = sketch{}
	at := typeOffset
	if tags {
		for i, id := range k.VLAN {
			if id == 0 && (i > 0 || !priority) {
				break
			}
			if i == 0 && k.VLAN[1] == 0 {
				s.set(at, 0x81, 0x00)
			} // of two tags the first may have one of several types
			s.bytes[at+2], s.mask[at+2] = byte(id>>8), 0x0f
			s.set(at+3, byte(id))
			at += 4
			if i == 1 {
				s.set(at-4, 0x81, 0x00)
			}
		}
	}
	ip := at + 2
	if k.V6 {
		s.set(at, 0x86, 0xdd)
		s.bytes[ip], s.mask[ip] = 0x60, 0xf0
		s.set(ip+6, k.Proto)
		s.set(ip+8, k.Src[:]...)
		s.set(ip+24, k.Dst[:]...)
		s.ports(ip+40, k)
		return
	}
	s.set(at, 0x08, 0x00)
	s.set(ip, 0x45)
	s.mask[ip+6], s.mask[ip+7] = 0x1f, 0xff // no later fragment
	s.set(ip+9, k.Proto)
	s.set(ip+12, k.Src[12:]...)
	s.set(ip+16, k.Dst[12:]...)
	s.ports(ip+20, k)
}

func (s *sketch) ports(at int, k *wire.Flow) {
	if k.Proto == wire.ProtoTCP || k.Proto == wire.ProtoUDP {
		s.set(at, byte(k.SrcPort>>8), byte(k.SrcPort), byte(k.DstPort>>8), byte(k.DstPort))
	}
}

// partial is a number of which the bits of mask are known; the others are 0 in v.
type partial struct{ v, mask uint32 }

const allBits = ^uint32(0)

func exactly(v uint32) partial { return partial{v, allBits} }

func (p partial) exact() bool { return p.mask == allBits }

// machine is the state of a run.
type machine struct {
	a, x    partial
	scratch [16]partial
}

func (s *sketch) mayMatch(code []bpf.Instruction) bool {
	s.steps = 0
	var m machine
	m.a, m.x = exactly(0), exactly(0)
	for i := range m.scratch {
		m.scratch[i] = exactly(0)
	}
	return s.run(code, 0, m)
}

// run follows the program from pc on, and reports whether some way leads to a match.
func (s *sketch) run(code []bpf.Instruction, pc int, m machine) bool {
	for ; pc < len(code); pc++ {
		if s.steps++; s.steps > stepLimit {
			return true
		}
		switch i := code[pc].(type) {
		case bpf.LoadConstant:
			*m.register(i.Dst) = exactly(i.Val)
		case bpf.LoadScratch:
			*m.register(i.Dst) = m.scratch[i.N]
		case bpf.LoadAbsolute:
			m.a = s.load(uint64(i.Off), i.Size)
		case bpf.LoadIndirect:
			m.a = partial{}
			if m.x.exact() {
				m.a = s.load(uint64(i.Off)+uint64(m.x.v), i.Size)
			}
		case bpf.LoadMemShift:
			m.x = shift(and(s.load(uint64(i.Off), 1), exactly(0x0f)), 2)
		case bpf.LoadExtension:
			m.a = partial{} // the length
		case bpf.StoreScratch:
			m.scratch[i.N] = *m.register(i.Src)
		case bpf.ALUOpConstant:
			m.a = alu(i.Op, m.a, exactly(i.Val))
		case bpf.ALUOpX:
			m.a = alu(i.Op, m.a, m.x)
		case bpf.NegateA:
			m.a = alu(bpf.ALUOpSub, exactly(0), m.a)
		case bpf.TAX:
			m.x = m.a
		case bpf.TXA:
			m.a = m.x
		case bpf.Jump:
			pc += int(i.Skip)
		case bpf.JumpIf:
			yes, no := compare(i.Cond, m.a, exactly(i.Val))
			if yes && no && s.run(code, pc+1+int(i.SkipTrue), m) {
				return true
			}
			pc += skip(no, i.SkipTrue, i.SkipFalse)
		case bpf.JumpIfX:
			yes, no := compare(i.Cond, m.a, m.x)
			if yes && no && s.run(code, pc+1+int(i.SkipTrue), m) {
				return true
			}
			pc += skip(no, i.SkipTrue, i.SkipFalse)
		case bpf.RetConstant:
			return i.Val != 0
		case bpf.RetA:
			return !m.a.exact() || m.a.v != 0
		default:
			return true
		}
	}
	return true
}

func skip(no bool, ifTrue, ifFalse uint8) int {
	if no {
		return int(ifFalse)
	}
	return int(ifTrue)
}

func (m *machine) register(r bpf.Register) *partial {
	if r == bpf.RegX {
		return &m.x
	}
	return &m.a
}

func (s *sketch) load(at uint64, size int) partial {
	p := partial{mask: allBits}
	for i := range size {
		p.v, p.mask = p.v<<8, p.mask<<8
		if j := at + uint64(i); j < uint64(len(s.bytes)) {
			p.v |= uint32(s.bytes[j])
			p.mask |= uint32(s.mask[j])
		}
	}
	for i := size; i < 4; i++ { // it is 0 above what was loaded
		p.mask |= 0xff << (8 * i)
	}
	p.v &= p.mask
	return p
}

func and(a, b partial) partial {
	mask := a.mask&b.mask | a.mask&^a.v | b.mask&^b.v
	return partial{a.v & b.v & mask, mask}
}

func shift(a partial, by uint32) partial {
	return partial{a.v << by, a.mask<<by | (1<<by - 1)}
}

func alu(op bpf.ALUOp, a, b partial) partial {
	switch op {
	case bpf.ALUOpAnd:
		return and(a, b)
	case bpf.ALUOpOr:
		mask := a.mask&b.mask | a.v | b.v
		return partial{(a.v | b.v) & mask, mask}
	case bpf.ALUOpShiftRight:
		if b.exact() && b.v < 32 {
			return partial{a.v >> b.v, a.mask>>b.v | ^(allBits >> b.v)}
		}
	case bpf.ALUOpShiftLeft:
		if b.exact() && b.v < 32 {
			return shift(a, b.v)
		}
	}
	if !a.exact() || !b.exact() {
		return partial{}
	}
	switch op {
	case bpf.ALUOpAdd:
		return exactly(a.v + b.v)
	case bpf.ALUOpSub:
		return exactly(a.v - b.v)
	case bpf.ALUOpMul:
		return exactly(a.v * b.v)
	case bpf.ALUOpXor:
		return exactly(a.v ^ b.v)
	case bpf.ALUOpDiv:
		if b.v != 0 {
			return exactly(a.v / b.v)
		}
	case bpf.ALUOpMod:
		if b.v != 0 {
			return exactly(a.v % b.v)
		}
	}
	return partial{}
}

// compare reports whether a comparison may be true, and whether it may be false.
func compare(c bpf.JumpTest, a, b partial) (yes, no bool) {
	least, most := a.v, a.v|^a.mask
	low, high := b.v, b.v|^b.mask
	exact := a.exact() && b.exact()
	switch c {
	case bpf.JumpEqual:
		return (a.v^b.v)&a.mask&b.mask == 0, !exact || a.v != b.v
	case bpf.JumpNotEqual:
		return !exact || a.v != b.v, (a.v^b.v)&a.mask&b.mask == 0
	case bpf.JumpGreaterThan:
		return most > low, least <= high
	case bpf.JumpGreaterOrEqual:
		return most >= low, least < high
	case bpf.JumpLessThan:
		return least < high, most >= low
	case bpf.JumpLessOrEqual:
		return least <= high, most > low
	case bpf.JumpBitsSet:
		r := and(a, b)
		return r.v != 0 || !r.exact(), r.v == 0
	case bpf.JumpBitsNotSet:
		r := and(a, b)
		return r.v == 0, r.v != 0 || !r.exact()
	}
	return true, true
}
