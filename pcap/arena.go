package pcap

import (
	"fmt"

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
// framesPerPool of them for each of the pools. What of a frame is never used
// costs address space only.
func NewArena(pools, framesPerPool int) (*pipeline.Arena, error) {
	if pools < 1 || framesPerPool < 1 {
		return nil, fmt.Errorf("make arena: %d pools of %d frames", pools, framesPerPool)
	}
	return pipeline.NewArena(make([]byte, pools*framesPerPool*FrameSize), FrameSize, Headroom, pools)
}
