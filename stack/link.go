package stack

import (
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"penstock/pipeline"
)

const (
	// txQueueBytes bounds what netstack has sent and no frame was free for.
	txQueueBytes = 16 << 20
	// gsoMax is how many bytes netstack hands over at once as one segment,
	// headers included; emit cuts it up. Below 64 KiB, the limit of an IP packet.
	gsoMax = 48 << 10
)

// link is netstack's network interface: what netstack sends is queued, what it
// is to receive comes by way of dispatcher. Many goroutines send at once, only
// the worker's takes.
type link struct {
	mtu        uint32
	wake       func()
	clock      *clock // takes a step after each segment with data; nil: need not
	dropped    *pipeline.Counter
	dispatcher nstack.NetworkDispatcher
	released   int64 // bytes of packets that wait no longer and still count; the worker's own

	mu    sync.Mutex
	queue []outgoing // guarded by mu; holds a reference to each packet
	bytes int64      // guarded by mu; taken packets count until they are released
}

// outgoing is a packet that netstack has sent.
type outgoing struct {
	pkt *nstack.PacketBuffer
	leg *leg   // whose endpoint has sent it; nil: none, as SYN-ACKs and resets
	ip  []byte // network header; nil if leg is set
	seg []byte // transport header
	len int    // payload bytes
}

var (
	_ nstack.LinkEndpoint = (*link)(nil)
	_ nstack.GSOEndpoint  = (*link)(nil)
)

// WritePackets implements stack.LinkWriter. It keeps a reference to each
// packet that it takes.
func (l *link) WritePackets(pkts nstack.PacketBufferList) (int, tcpip.Error) {
	for i, pkt := range pkts.AsSlice() {
		owner, _ := pkt.Owner.(*leg)
		if !l.send(outgoing{pkt: pkt, leg: owner, ip: pkt.NetworkHeader().Slice()}) {
			return i, &tcpip.ErrNoBufferSpace{}
		}
	}
	return pkts.Len(), nil
}

// send queues a packet, unless too much waits already.
func (l *link) send(o outgoing) bool {
	o.seg, o.len = o.pkt.TransportHeader().Slice(), o.pkt.Data().Size()
	l.mu.Lock()
	if l.bytes >= txQueueBytes {
		l.mu.Unlock()
		l.dropped.Add(1)
		return false
	}
	l.bytes += o.size()
	o.pkt.IncRef()
	l.queue = append(l.queue, o)
	l.mu.Unlock()
	if o.len > 0 && l.clock != nil {
		l.clock.step()
	}
	l.wake()
	return true
}

// size is what a packet counts in the queue.
func (o *outgoing) size() int64 { return int64(len(o.seg) + o.len) }

// take exchanges the queue for spare, which must be empty.
func (l *link) take(spare []outgoing) []outgoing {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.queue
	l.queue = spare
	return q
}

// queued returns how many bytes wait.
func (l *link) queued() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes - l.released
}

// waiting reports whether something is queued. It makes room for as much as was
// released since the last call.
func (l *link) waiting() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes -= l.released
	l.released = 0
	return len(l.queue) > 0
}

// release drops the reference to a packet that was taken.
func (l *link) release(o *outgoing) {
	l.released += o.size()
	o.pkt.DecRef()
	*o = outgoing{}
}

// MTU implements stack.LinkEndpoint.
func (l *link) MTU() uint32 { return l.mtu }

// SetMTU implements stack.LinkEndpoint; the ports decide, not netstack.
func (*link) SetMTU(uint32) {}

// MaxHeaderLength implements stack.LinkEndpoint: the link header is written
// into the frame, not into netstack's buffer.
func (*link) MaxHeaderLength() uint16 { return 0 }

// LinkAddress implements stack.LinkEndpoint.
func (*link) LinkAddress() tcpip.LinkAddress { return "" }

// SetLinkAddress implements stack.LinkEndpoint.
func (*link) SetLinkAddress(tcpip.LinkAddress) {}

// Capabilities implements stack.LinkEndpoint. Checksums are computed over the
// finished frame. Received ones are verified before netstack sees the packet;
// the capability that would say so stays off, for fragments, of which only
// netstack sees the whole.
func (*link) Capabilities() nstack.LinkEndpointCapabilities {
	return nstack.CapabilityTXChecksumOffload
}

// GSOMaxSize implements stack.GSOEndpoint.
func (*link) GSOMaxSize() uint32 { return gsoMax }

// SupportedGSO implements stack.GSOEndpoint.
func (*link) SupportedGSO() nstack.SupportedGSO { return nstack.HostGSOSupported }

// Attach implements stack.LinkEndpoint.
func (l *link) Attach(d nstack.NetworkDispatcher) { l.dispatcher = d }

// IsAttached implements stack.LinkEndpoint.
func (l *link) IsAttached() bool { return l.dispatcher != nil }

// Wait implements stack.LinkEndpoint.
func (*link) Wait() {}

// ARPHardwareType implements stack.LinkEndpoint.
func (*link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

// AddHeader implements stack.LinkEndpoint.
func (*link) AddHeader(*nstack.PacketBuffer) {}

// ParseHeader implements stack.LinkEndpoint.
func (*link) ParseHeader(*nstack.PacketBuffer) bool { return true }

// Close implements stack.LinkEndpoint.
func (*link) Close() {}

// SetOnCloseAction implements stack.LinkEndpoint.
func (*link) SetOnCloseAction(func()) {}
