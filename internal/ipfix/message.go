package ipfix

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// Flow is a flow that has ended, or, with EndActive, what there is of one since it was told of. Counters are those of one direction, Reverse
// of the other.
type Flow struct {
	Src, Dst         netip.Addr // of the direction that began it; both of one version
	SrcPort, DstPort uint16
	Proto            uint8     // IANA's number
	VLAN             [2]uint16 // outer and inner tag; 0: none

	Packets, Bytes               uint64 // bytes of frames, with their Ethernet headers and tags
	ReversePackets, ReverseBytes uint64
	TCPFlags, ReverseTCPFlags    uint8     // OR of all flag bytes
	Start, End                   time.Time // first and last packet
	Reason                       EndReason
	Forwarding                   Forwarding
}

// EndReason is flowEndReason (RFC 5102, 5.11.3).
type EndReason uint8

// The reasons there are here.
const (
	EndIdle     EndReason = 1
	EndActive   EndReason = 2 // it goes on
	EndDetected EndReason = 3 // FIN or RST
	EndForced   EndReason = 4
)

// Forwarding is forwardingStatus (RFC 7270, 4.12), without a reason.
type Forwarding uint8

// What became of a flow's packets last.
const (
	ForwardingUnknown Forwarding = 0 // its chain decided on each of them
	Forwarded         Forwarding = 1 << 6
	Dropped           Forwarding = 2 << 6
)

const (
	version      = 10 // RFC 7011, 3.1
	headerLen    = 16
	setHeaderLen = 4
	templateSet  = 2
	reversePEN   = 29305 // RFC 5103, 6.1
	template4    = 256
	template6    = 257
)

// element is a field of a template: IANA's number of an information element,
// its length in bytes, and whether it is that of the reverse direction.
type element struct {
	id, len uint16
	reverse bool
}

// tail are the fields behind the addresses, in the order of appendRecord.
var tail = []element{
	{7, 2, false},               // sourceTransportPort
	{11, 2, false},              // destinationTransportPort
	{4, 1, false},               // protocolIdentifier
	{243, 2, false},             // dot1qVlanId
	{245, 2, false},             // dot1qCustomerVlanId
	{152, 8, false},             // flowStartMilliseconds
	{153, 8, false},             // flowEndMilliseconds
	{136, 1, false},             // flowEndReason
	{89, 1, false},              // forwardingStatus
	{239, 1, false},             // biflowDirection
	{2, 8, false}, {2, 8, true}, // packetDeltaCount
	{1, 8, false}, {1, 8, true}, // octetDeltaCount
	{352, 8, false}, {352, 8, true}, // layer2OctetDeltaCount
	{6, 2, false}, {6, 2, true}, // tcpControlBits
}

// fields4 and fields6 are the two templates.
var (
	fields4 = append([]element{{8, 4, false}, {12, 4, false}}, tail...)    // sourceIPv4Address, destinationIPv4Address
	fields6 = append([]element{{27, 16, false}, {28, 16, false}}, tail...) // sourceIPv6Address, destinationIPv6Address
	record4 = lengthOf(fields4)
	record6 = lengthOf(fields6)
)

func lengthOf(fields []element) (n int) {
	for _, f := range fields {
		n += int(f.len)
	}
	return n
}

// message is an IPFIX message that is being written.
type message struct {
	buf     []byte
	limit   int // bytes it may have
	set     int // where the open set begins; 0: none is
	setID   uint16
	records uint32
}

func (m *message) reset() {
	m.buf = append(m.buf[:0], make([]byte, headerLen)...)
	m.set, m.records = 0, 0
}

func (m *message) open(id uint16) {
	m.close()
	m.set, m.setID = len(m.buf), id
	m.buf = binary.BigEndian.AppendUint16(m.buf, id)
	m.buf = append(m.buf, 0, 0)
}

func (m *message) close() {
	if m.set > 0 {
		binary.BigEndian.PutUint16(m.buf[m.set+2:], uint16(len(m.buf)-m.set))
		m.set = 0
	}
}

// templates adds both templates (RFC 7011, 3.4.1). They fit into an empty
// message of MinMessage bytes.
func (m *message) templates() {
	m.open(templateSet)
	for _, t := range []struct {
		id     uint16
		fields []element
	}{{template4, fields4}, {template6, fields6}} {
		m.buf = binary.BigEndian.AppendUint16(m.buf, t.id)
		m.buf = binary.BigEndian.AppendUint16(m.buf, uint16(len(t.fields)))
		for _, f := range t.fields {
			if f.reverse {
				m.buf = binary.BigEndian.AppendUint16(m.buf, f.id|1<<15)
				m.buf = binary.BigEndian.AppendUint16(m.buf, f.len)
				m.buf = binary.BigEndian.AppendUint32(m.buf, reversePEN)
				continue
			}
			m.buf = binary.BigEndian.AppendUint16(m.buf, f.id)
			m.buf = binary.BigEndian.AppendUint16(m.buf, f.len)
		}
	}
	m.close()
}

// add adds a flow; false says that there is no room.
func (m *message) add(f *Flow) bool {
	id, n := uint16(template4), record4
	if !f.Src.Is4() {
		id, n = template6, record6
	}
	same := m.set > 0 && m.setID == id
	if !same {
		n += setHeaderLen
	}
	if len(m.buf)+n > m.limit {
		return false
	}
	if !same {
		m.open(id)
	}
	m.buf = appendRecord(m.buf, f)
	m.records++
	return true
}

func appendRecord(b []byte, f *Flow) []byte {
	be := binary.BigEndian
	b = append(b, f.Src.AsSlice()...)
	b = append(b, f.Dst.AsSlice()...)
	b = be.AppendUint16(b, f.SrcPort)
	b = be.AppendUint16(b, f.DstPort)
	b = append(b, f.Proto)
	b = be.AppendUint16(b, f.VLAN[0])
	b = be.AppendUint16(b, f.VLAN[1])
	b = be.AppendUint64(b, uint64(f.Start.UnixMilli()))
	b = be.AppendUint64(b, uint64(f.End.UnixMilli()))
	b = append(b, byte(f.Reason), byte(f.Forwarding), 1) // 1: from the initiator (RFC 5103, 6.3)
	b = be.AppendUint64(b, f.Packets)
	b = be.AppendUint64(b, f.ReversePackets)
	b = be.AppendUint64(b, f.octets(f.Bytes, f.Packets))
	b = be.AppendUint64(b, f.octets(f.ReverseBytes, f.ReversePackets))
	b = be.AppendUint64(b, f.Bytes)
	b = be.AppendUint64(b, f.ReverseBytes)
	b = be.AppendUint16(b, uint16(f.TCPFlags))
	return be.AppendUint16(b, uint16(f.ReverseTCPFlags))
}

// octets are the bytes from the IP header on, which is what octetDeltaCount
// counts. What pads a short frame is among them: nobody has counted it.
func (f *Flow) octets(bytes, packets uint64) uint64 {
	header := uint64(14)
	for _, id := range f.VLAN {
		if id != 0 {
			header += 4
		}
	}
	return bytes - min(bytes, header*packets)
}

// finish closes the message and writes its header (RFC 7011, 3.1). seq is how
// many records were sent before it.
func (m *message) finish(now time.Time, seq, domain uint32) []byte {
	m.close()
	be := binary.BigEndian
	be.PutUint16(m.buf, version)
	be.PutUint16(m.buf[2:], uint16(len(m.buf)))
	be.PutUint32(m.buf[4:], uint32(now.Unix()))
	be.PutUint32(m.buf[8:], seq)
	be.PutUint32(m.buf[12:], domain)
	return m.buf
}
