package xsk

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// txMetadataRequest is the part of struct xsk_tx_metadata that a request fills:
// flags, csum_start, csum_offset (Documentation/networking/xsk-tx-metadata.rst).
const txMetadataRequest = 12

// RequestChecksum asks the device to put the Internet checksum of the bytes
// from start to the end of the packet into the two bytes at start+offset, which
// must already hold the sum of the pseudo-header. It writes the request into the
// frame, before the packet, and sets d.Options. It returns false, and changes
// nothing, if the UMEM has no TxMetadataLen, if there is no room before d.Addr,
// or if the place is outside the packet.
//
// In copy mode the kernel marks the packet CHECKSUM_PARTIAL, as if a local
// socket had sent it, so this works on every device (Linux 6.8): the kernel
// computes the sum if the device does not, and on a veth with TX checksum
// offload nobody does. In zero-copy mode the driver must have the tx-checksum
// feature of the netdev family.
func (u *UMEM) RequestChecksum(d *Desc, start, offset int) bool {
	meta := uint64(u.metadata)
	b := u.Data(*d)
	if meta < txMetadataRequest || b == nil || d.Addr&u.mask < meta {
		return false
	}
	if start < 0 || offset < 0 || start > len(b) || offset > len(b)-2-start {
		return false
	}
	m := u.area[d.Addr-meta : d.Addr]
	clear(m)
	binary.NativeEndian.PutUint64(m, unix.XDP_TXMD_FLAGS_CHECKSUM)
	binary.NativeEndian.PutUint16(m[8:], uint16(start))
	binary.NativeEndian.PutUint16(m[10:], uint16(offset))
	d.Options |= unix.XDP_TX_METADATA
	return true
}
