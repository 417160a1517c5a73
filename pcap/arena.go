package pcap

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"

	"penstock/internal/wire"
	"penstock/pipeline"
)

const (
	// Headroom is what a frame has in front of the packet.
	Headroom = 256
	// FrameSize holds the largest packet of a capture with an Ethernet header
	// in front. It is not near a power of two: frames that begin at the same
	// place of a page would fight for the same lines of the cache.
	FrameSize = MaxPacket + 832
)

// Negative, and so an error, if a frame cannot hold its packet.
const _ = uint(FrameSize - Headroom - wire.EthernetLen - MaxPacket)

// NewArena returns packet memory for captures: frames that hold any packet,
// framesPerPool of them for each of the pools. It is mapped, so what of a frame
// is never used costs address space only, and unmapped some time after the last
// of its packets is gone.
func NewArena(pools, framesPerPool int) (*pipeline.Arena, error) {
	if pools < 1 || framesPerPool < 1 {
		return nil, fmt.Errorf("make arena: %d pools of %d frames", pools, framesPerPool)
	}
	mem, err := syscall.Mmap(-1, 0, pools*framesPerPool*FrameSize, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_ANON|syscall.MAP_PRIVATE|syscall.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map packet memory: %w", err)
	}
	arena, err := pipeline.NewArena(mem, FrameSize, Headroom, pools)
	if err != nil {
		return nil, errors.Join(err, syscall.Munmap(mem))
	}
	// All packets are one allocation: a pointer to any keeps the memory.
	runtime.AddCleanup(arena.At(0), func(mem []byte) { _ = syscall.Munmap(mem) }, mem)
	return arena, nil
}
