package xsk

import (
	"errors"
	"fmt"
	"math/bits"
	"sync"

	"golang.org/x/sys/unix"
)

// Desc names a packet: Addr is the offset of its first byte in the UMEM, Len
// its length in bytes, Options flags of the kernel's (XDP_TX_METADATA).
type Desc = unix.XDPDesc

// HugePages says whether a UMEM is backed by huge pages (hugetlbfs).
type HugePages uint8

const (
	HugeAuto HugePages = iota // huge pages if the system has some to spare
	HugeOn                    // huge pages, or NewUMEM returns an error
	HugeOff                   // ordinary pages
)

const (
	// packetHeadroom is what the kernel always leaves free in front of a
	// received packet (XDP_PACKET_HEADROOM); usable for encapsulation.
	packetHeadroom = unix.XDP_PACKET_HEADROOM

	hugePageSize = 2 << 20
	maxFrames    = 1 << 24
	maxMetadata  = 255 // the kernel refuses 256 and more, and what is no multiple of 8
)

// UMEMOptions describe a UMEM. The zero value is not usable: Frames is required.
type UMEMOptions struct {
	Frames    int       // number of frames
	FrameSize int       // bytes per frame, 2048 or 4096; 0 is 2048
	Headroom  int       // bytes left free before a received packet, besides the kernel's 256
	HugePages HugePages // default HugeAuto

	// TxMetadataLen reserves that many bytes in front of every transmitted
	// packet for offload requests (struct xsk_tx_metadata): 0 for none, else a
	// multiple of 8. See [UMEM.RequestChecksum].
	TxMetadataLen int
}

// UMEM is a packet memory outside the Go heap, cut into frames of equal size.
// It can be shared by many sockets; its own methods are safe for concurrent
// use, but a frame's bytes belong to whoever owns the frame.
type UMEM struct {
	mem      []byte // as mapped; may be longer than area
	area     []byte // Frames * FrameSize bytes
	shift    uint   // log2(FrameSize)
	size     uint64 // FrameSize
	mask     uint64 // FrameSize - 1
	headroom int
	metadata int
	huge     bool

	owners []owner // who holds which frame, by frame number

	mu      sync.Mutex
	sockets []*Socket // by slot; nil = free slot
	mode    Mode      // of the sockets open now
	held    []*Socket // closed zero-copy sockets whose frames a NIC may still write
}

// NewUMEM maps the memory. The kernel pins it when the first socket is opened.
func NewUMEM(o UMEMOptions) (*UMEM, error) {
	if o.FrameSize == 0 {
		o.FrameSize = 2048
	}
	if o.FrameSize != 2048 && o.FrameSize != 4096 {
		return nil, fmt.Errorf("create umem: frame size must be 2048 or 4096, got %d", o.FrameSize)
	}
	if o.Frames < 1 || o.Frames > maxFrames {
		return nil, fmt.Errorf("create umem: number of frames must be in 1..%d, got %d", maxFrames, o.Frames)
	}
	if room := o.FrameSize - packetHeadroom; o.Headroom < 0 || o.Headroom >= room {
		return nil, fmt.Errorf("create umem: headroom must be in 0..%d for frames of %d bytes, got %d", room-1, o.FrameSize, o.Headroom)
	}
	if o.TxMetadataLen < 0 || o.TxMetadataLen > maxMetadata || o.TxMetadataLen%8 != 0 {
		return nil, fmt.Errorf("create umem: tx metadata length must be a multiple of 8 in 0..248, got %d", o.TxMetadataLen)
	}
	size := o.Frames * o.FrameSize
	mem, huge, err := mapUMEM(size, o.HugePages)
	if err != nil {
		return nil, fmt.Errorf("create umem: %w", err)
	}
	return &UMEM{
		mem:      mem,
		area:     mem[:size:size],
		shift:    uint(bits.TrailingZeros(uint(o.FrameSize))),
		size:     uint64(o.FrameSize),
		mask:     uint64(o.FrameSize) - 1,
		headroom: o.Headroom,
		metadata: o.TxMetadataLen,
		huge:     huge,
		owners:   make([]owner, o.Frames),
	}, nil
}

// mapUMEM maps size bytes, page-aligned.
func mapUMEM(size int, want HugePages) (mem []byte, huge bool, err error) {
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
	if want == HugeOn || want == HugeAuto && size >= hugePageSize {
		rounded := (size + hugePageSize - 1) &^ (hugePageSize - 1)
		mem, err = unix.Mmap(-1, 0, rounded, prot, flags|unix.MAP_HUGETLB|unix.MAP_HUGE_2MB)
		if err == nil {
			return mem, true, nil
		}
		if want == HugeOn {
			return nil, false, fmt.Errorf("map %d bytes of 2 MiB huge pages: %w; reserve %d of them (sysctl vm.nr_hugepages) or turn huge pages off",
				rounded, err, rounded/hugePageSize)
		}
	}
	mem, err = unix.Mmap(-1, 0, size, prot, flags)
	if err != nil {
		return nil, false, fmt.Errorf("map %d bytes: %w", size, err)
	}
	if want != HugeOff {
		// Transparent huge pages cost nothing to ask for and save TLB misses.
		_ = unix.Madvise(mem, unix.MADV_HUGEPAGE)
	}
	return mem, false, nil
}

// Bytes is the whole area, Frames()*FrameSize() bytes.
func (u *UMEM) Bytes() []byte { return u.area }

// Frame is the whole frame that holds addr, headroom included; nil if addr is
// outside the UMEM.
func (u *UMEM) Frame(addr uint64) []byte {
	if addr >= uint64(len(u.area)) {
		return nil
	}
	base := addr &^ u.mask
	return u.area[base : base+u.size : base+u.size]
}

// Data is the packet that d names; its capacity reaches to the end of the
// frame. It is nil if d is not inside one frame.
func (u *UMEM) Data(d Desc) []byte {
	off := d.Addr & u.mask
	if d.Addr >= uint64(len(u.area)) || off+uint64(d.Len) > u.size {
		return nil
	}
	return u.area[d.Addr : d.Addr+uint64(d.Len) : d.Addr-off+u.size]
}

// FrameSize is the size of a frame in bytes.
func (u *UMEM) FrameSize() int { return int(u.size) }

// Frames is the number of frames.
func (u *UMEM) Frames() int { return len(u.owners) }

// HugePages says whether the memory is made of explicit huge pages.
func (u *UMEM) HugePages() bool { return u.huge }

// RxOffset is where in its frame the kernel puts a received packet.
func (u *UMEM) RxOffset() int { return packetHeadroom + u.headroom }

// MaxPacket is the longest packet, in bytes, that can be received into a frame.
func (u *UMEM) MaxPacket() int { return int(u.size) - u.RxOffset() }

// Close unmaps the memory. All sockets must be closed, and slices that Bytes,
// Frame and Data returned must not be used any more.
func (u *UMEM) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.mem == nil {
		return ErrClosed
	}
	if n := u.openSockets(); n > 0 {
		return fmt.Errorf("close umem: %d sockets are still open", n)
	}
	err := unix.Munmap(u.mem)
	u.mem, u.area, u.held = nil, nil, nil
	if err != nil {
		return fmt.Errorf("close umem: %w", err)
	}
	return nil
}

func (u *UMEM) openSockets() (n int) {
	for _, s := range u.sockets {
		if s != nil {
			n++
		}
	}
	return n
}

// anySocket is an open socket of this UMEM, through which others share it.
func (u *UMEM) anySocket() *Socket {
	for _, s := range u.sockets {
		if s != nil {
			return s
		}
	}
	return nil
}

// reserveSlot finds a number for a new socket, unique among the open sockets
// and those whose frames are not reclaimed yet.
func (u *UMEM) reserveSlot() (int, error) {
	for i, s := range u.sockets {
		if s == nil && !u.slotHoldsFrames(i) {
			return i, nil
		}
	}
	if len(u.sockets) >= maxSockets {
		return 0, errors.New("too many sockets on one umem")
	}
	u.sockets = append(u.sockets, nil)
	return len(u.sockets) - 1, nil
}

func (u *UMEM) slotHoldsFrames(slot int) bool { return u.heldBy(slot, 0) < len(u.owners) }

// heldBy returns the first frame from number f on that the kernel holds for a slot
// whose socket is closed, or len(u.owners).
//
// Other sockets work meanwhile, and change who holds their frames; the race
// detector is not to look. Of those of the closed one only Reclaim does, under u.mu: what
// is read of another frame, before or after a change (16 aligned bits), is not this slot.
//
//go:norace
//go:noinline
func (u *UMEM) heldBy(slot, f int) int {
	rx, tx := rxOwner(slot), txOwner(slot)
	for ; f < len(u.owners); f++ {
		if o := u.owners[f]; o == rx || o == tx {
			break
		}
	}
	return f
}
