package bpf

import "encoding/binary"

// MetaSize is how many bytes stand directly before a packet in the frame that an AF_XDP socket receives.
const MetaSize = 8

// metaMagic is META_MAGIC in bpf/include/types.h.
const metaMagic = 0x5053

// ReadMeta reads the metadata from b, the MetaSize bytes before the packet. ok is false if the program put none there (counted as
// no_metadata); then the receiver has to classify the packet itself.
//
// The receiver must clear b once read: frames are used again, and one that comes without metadata would show the last one's.
func ReadMeta(b []byte) (chain uint16, hash uint32, ok bool) {
	if len(b) < MetaSize || binary.NativeEndian.Uint16(b) != metaMagic {
		return 0, 0, false
	}
	return binary.NativeEndian.Uint16(b[2:]), binary.NativeEndian.Uint32(b[4:]), true
}
