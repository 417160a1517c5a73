package xsk

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mappedRing makes a ring of size entries of mem, a mapping of the kernel's.
// It panics, by slice bounds, if mem is too short for the offsets.
func mappedRing[T uint64 | Desc](mem []byte, off unix.XDPRingOffset, size int) ring[T] {
	var entry T
	end := off.Desc + uint64(size)*uint64(unsafe.Sizeof(entry))
	_ = mem[:end]
	word := func(at uint64) *atomic.Uint32 {
		_ = mem[at : at+4]
		return (*atomic.Uint32)(unsafe.Pointer(&mem[at]))
	}
	return ring[T]{
		entries:  unsafe.Slice((*T)(unsafe.Pointer(&mem[off.Desc])), size),
		mask:     uint32(size - 1),
		producer: word(off.Producer),
		consumer: word(off.Consumer),
		flags:    word(off.Flags),
	}
}

// ringBytes is the length of the mapping that a ring needs.
func ringBytes[T uint64 | Desc](off unix.XDPRingOffset, size int) int {
	var entry T
	return int(off.Desc) + size*int(unsafe.Sizeof(entry))
}
