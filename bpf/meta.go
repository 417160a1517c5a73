package bpf

import "encoding/binary"

// MetaSize is how many bytes stand directly before a packet in the frame that an AF_XDP socket receives.
const MetaSize = 8

const (
	metaMagic = 0x5053 // META_MAGIC in bpf/include/types.h
	metaAnew  = 0x8000 // META_ANEW
	// META_COOKIE, META_MSS_SHIFT
	metaCookie   = 0x4000
	metaMSSShift = 12
	// maxChain is the largest number of a chain that metadata can hold: META_CHAIN.
	maxChain = 0x0fff
)

// Meta is what the program says of a packet that it gives to a socket.
type Meta struct {
	Chain uint16
	Hash  uint32 // FlowHash
	Anew  bool   // a SYN, and the connection that had its addresses and ports has ended (RST, or both FINs)

	Cookie bool  // a segment that gives back a good SYN cookie: AnswerSYNs
	Size   uint8 // which of the four segment sizes that the kernel's cookies know the client takes
}

// ReadMeta reads the metadata from b, the MetaSize bytes before the packet. ok is false if the program put none there (counted as
// no_metadata); then the receiver has to classify the packet itself.
//
// The receiver must clear b once read: frames are used again, and one that comes without metadata would show the last one's.
func ReadMeta(b []byte) (m Meta, ok bool) {
	if len(b) < MetaSize || binary.NativeEndian.Uint16(b) != metaMagic {
		return Meta{}, false
	}
	chain := binary.NativeEndian.Uint16(b[2:])
	return Meta{
		Chain: chain & maxChain, Hash: binary.NativeEndian.Uint32(b[4:]), Anew: chain&metaAnew != 0,
		Cookie: chain&metaCookie != 0, Size: uint8(chain >> metaMSSShift & 3),
	}, true
}
