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
// is to receive comes by way of dispatcher. WritePackets is called by many
// goroutines at once, take only by the worker's.
type link struct {
	mtu        uint32
	wake       func()
	dropped    *pipeline.Counter
	dispatcher nstack.NetworkDispatcher

	mu    sync.Mutex
	queue []*nstack.PacketBuffer // guarded by mu; holds a reference to each
	bytes int                    // guarded by mu; taken packets count until they are released
}

var (
	_ nstack.LinkEndpoint = (*link)(nil)
	_ nstack.GSOEndpoint  = (*link)(nil)
)

// WritePackets implements stack.LinkWriter. It keeps a reference to each
// packet that it takes.
func (l *link) WritePackets(pkts nstack.PacketBufferList) (int, tcpip.Error) {
	n := 0
	l.mu.Lock()
	for _, pkt := range pkts.AsSlice() {
		if l.bytes >= txQueueBytes {
			break
		}
		l.bytes += pkt.Size()
		l.queue = append(l.queue, pkt.IncRef())
		n++
	}
	l.mu.Unlock()
	if n > 0 {
		l.wake()
	}
	if lost := pkts.Len() - n; lost > 0 {
		l.dropped.Add(uint64(lost))
		return n, &tcpip.ErrNoBufferSpace{}
	}
	return n, nil
}

// take exchanges the queue for spare, which must be empty.
func (l *link) take(spare []*nstack.PacketBuffer) []*nstack.PacketBuffer {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.queue
	l.queue = spare
	return q
}

// waiting reports whether something is queued.
func (l *link) waiting() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue) > 0
}

// release drops the reference to a packet that was taken.
func (l *link) release(pkt *nstack.PacketBuffer) {
	n := pkt.Size()
	pkt.DecRef()
	l.mu.Lock()
	l.bytes -= n
	l.mu.Unlock()
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
