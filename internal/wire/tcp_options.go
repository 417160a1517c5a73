package wire

import "encoding/binary"

// TCP option kinds (IANA).
const (
	OptEnd           = 0
	OptNop           = 1
	OptMSS           = 2
	OptWindowScale   = 3
	OptSACKPermitted = 4
	OptSACK          = 5
	OptTimestamps    = 8
	OptMD5           = 19
	OptAO            = 29
	OptMPTCP         = 30
	OptFastOpen      = 34
)

// TCPOptions walks the options of a TCP header without allocating:
//
//	it := tcp.OptionIter()
//	for it.Next() {
//		switch it.Kind { case wire.OptMSS: mss, ok := it.MSS() ... }
//	}
//
// NOPs are skipped. The walk ends at the end-of-options mark, at the end of the bytes, or at the first length that is
// below 2 or runs over the end; Malformed then says so.
type TCPOptions struct {
	Kind      uint8
	Value     []byte // without kind and length (shared memory)
	Offset    int    // of the kind byte, from the start of the options
	Malformed bool

	opts []byte
	next int
}

// OptionIter returns an iterator over the options of t.
func (t TCP) OptionIter() TCPOptions { return IterTCPOptions(t.Options()) }

// IterTCPOptions returns an iterator over raw option bytes.
func IterTCPOptions(opts []byte) TCPOptions { return TCPOptions{opts: opts} }

// Next moves to the next option; false means that there is none.
func (o *TCPOptions) Next() bool {
	for o.next < len(o.opts) {
		at := o.next
		kind := o.opts[at]
		switch kind {
		case OptEnd:
			o.next = len(o.opts)
			return false
		case OptNop:
			o.next++
			continue
		}
		if at+2 > len(o.opts) {
			return o.stop()
		}
		size := int(o.opts[at+1])
		if size < 2 || at+size > len(o.opts) {
			return o.stop()
		}
		o.Kind, o.Offset = kind, at
		o.Value = o.opts[at+2 : at+size : at+size]
		o.next = at + size
		return true
	}
	return false
}

func (o *TCPOptions) stop() bool {
	o.Malformed = true
	o.next = len(o.opts)
	return false
}

// MSS returns the maximum segment size; ok is false if the option is another one or has a wrong length.
func (o *TCPOptions) MSS() (mss uint16, ok bool) {
	if o.Kind != OptMSS || len(o.Value) != 2 {
		return 0, false
	}
	return binary.BigEndian.Uint16(o.Value), true
}

// WindowScale returns the shift, at most 14 (RFC 7323 2.3); ok as for MSS.
func (o *TCPOptions) WindowScale() (shift uint8, ok bool) {
	if o.Kind != OptWindowScale || len(o.Value) != 1 {
		return 0, false
	}
	return min(o.Value[0], 14), true
}

// Timestamps returns TSval and TSecr; ok as for MSS.
func (o *TCPOptions) Timestamps() (val, ecr uint32, ok bool) {
	if o.Kind != OptTimestamps || len(o.Value) != 8 {
		return 0, 0, false
	}
	return binary.BigEndian.Uint32(o.Value), binary.BigEndian.Uint32(o.Value[4:]), true
}

// SACKBlocks returns the number of SACK blocks; 0 if the option is another one or has a wrong length.
func (o *TCPOptions) SACKBlocks() int {
	if o.Kind != OptSACK || len(o.Value)%8 != 0 {
		return 0
	}
	return len(o.Value) / 8
}

// SACKBlock returns the edges of block i, 0 <= i < SACKBlocks().
func (o *TCPOptions) SACKBlock(i int) (left, right uint32) {
	return binary.BigEndian.Uint32(o.Value[8*i:]), binary.BigEndian.Uint32(o.Value[8*i+4:])
}
