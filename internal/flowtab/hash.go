package flowtab

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"

	"penstock/internal/wire"
)

// secret keys the hash of one table. Without it, chosen addresses and ports could all fall into one chain, and a table
// with one chain is a list.
type secret [6]uint64

// newSecret draws from the runtime's generator (ChaCha8, seeded by the operating system).
func newSecret() (s secret) {
	for i := range s {
		s[i] = rand.Uint64()
	}
	return s
}

// hash folds a flow (but for V6, which hardly ever tells two flows apart) with keyed 64x64->128 bit multiplications, the
// building block of wyhash, which Go's own maps use where there is no AES. hash/maphash costs two to three times as
// much: Comparable walks the fields one by one, Bytes needs them copied together first.
func (s *secret) hash(f *wire.Flow) uint64 {
	ports := uint64(f.SrcPort) | uint64(f.DstPort)<<16 | uint64(f.VLAN[0])<<32 | uint64(f.VLAN[1])<<48
	src := fold(binary.LittleEndian.Uint64(f.Src[:8])^s[0], binary.LittleEndian.Uint64(f.Src[8:])^s[1])
	dst := fold(binary.LittleEndian.Uint64(f.Dst[:8])^s[2], binary.LittleEndian.Uint64(f.Dst[8:])^s[3])
	h := fold(src^bits.RotateLeft64(dst, 32)^uint64(f.Proto)^s[4], ports^s[5])
	// One multiplication alone leaves steps of consecutive ports visible with some secrets, as chains of up to 16 where a
	// random function has 9. MurmurHash3's finish takes them out.
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}
