package stack_test

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// host is an end of a connection: a netstack of the test's own on an Ethernet
// of two stations. What it sends goes to out; what it is to receive comes in by
// receive.
type host struct {
	net  *nstack.Stack
	link *etherLink
}

// etherLink is its network interface. The station at the other end is known, so
// that nobody asks for addresses.
type etherLink struct {
	mac, peer [6]byte
	vlan      []uint16 // tags, outermost first
	mtu       uint32
	out       func(frame []byte)

	mu         sync.Mutex
	dispatcher nstack.NetworkDispatcher
}

var (
	clientMAC = [6]byte{2, 0, 0, 0, 0, 1}
	serverMAC = [6]byte{2, 0, 0, 0, 0, 2}
	client4   = netip.MustParseAddr("10.1.0.1")
	server4   = netip.MustParseAddr("10.1.0.2")
	client6   = netip.MustParseAddr("fd01::1")
	server6   = netip.MustParseAddr("fd01::2")
)

func newHost(t testing.TB, l *etherLink, addrs ...netip.Addr) *host {
	t.Helper()
	h := &host{link: l}
	h.net = nstack.New(nstack.Options{
		NetworkProtocols:   []nstack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []nstack.TransportProtocolFactory{tcp.NewProtocol},
	})
	wait := tcpip.TCPTimeWaitTimeoutOption(10 * time.Millisecond)
	must(t, h.net.SetTransportProtocolOption(tcp.ProtocolNumber, &wait))
	must(t, h.net.CreateNIC(1, l))
	for _, a := range addrs {
		proto, addr := addressOf(a)
		must(t, h.net.AddProtocolAddress(1, tcpip.ProtocolAddress{Protocol: proto, AddressWithPrefix: addr.WithPrefix()}, nstack.AddressProperties{}))
	}
	h.net.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}, {Destination: header.IPv6EmptySubnet, NIC: 1}})
	t.Cleanup(h.net.Destroy)
	return h
}

func must(t testing.TB, err tcpip.Error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func addressOf(a netip.Addr) (tcpip.NetworkProtocolNumber, tcpip.Address) {
	if a.Is4() {
		return header.IPv4ProtocolNumber, tcpip.AddrFrom4(a.As4())
	}
	return header.IPv6ProtocolNumber, tcpip.AddrFrom16(a.As16())
}

func fullAddress(a netip.AddrPort) (tcpip.NetworkProtocolNumber, tcpip.FullAddress) {
	proto, addr := addressOf(a.Addr())
	return proto, tcpip.FullAddress{NIC: 1, Addr: addr, Port: a.Port()}
}

func (h *host) listen(t testing.TB, a netip.AddrPort) *gonet.TCPListener {
	t.Helper()
	proto, addr := fullAddress(a)
	l, err := gonet.ListenTCP(h.net, addr, proto)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// dial connects from a chosen port, or from any if it is 0.
func (h *host) dial(from, to netip.AddrPort, timeout time.Duration) (*gonet.TCPConn, error) {
	proto, remote := fullAddress(to)
	_, local := fullAddress(from)
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return gonet.DialTCPWithBind(ctx, h.net, local, remote, proto)
}

// receive takes a frame; the host keeps no reference to it.
func (l *etherLink) receive(frame []byte) {
	l.mu.Lock()
	d := l.dispatcher
	l.mu.Unlock()
	n := header.EthernetMinimumSize
	if d == nil || len(frame) < n {
		return
	}
	proto := uint16(frame[12])<<8 | uint16(frame[13])
	for range l.vlan {
		if proto != 0x8100 && proto != 0x88a8 || len(frame) < n+4 {
			return
		}
		proto = uint16(frame[n+2])<<8 | uint16(frame[n+3])
		n += 4
	}
	pkt := nstack.NewPacketBuffer(nstack.PacketBufferOptions{Payload: buffer.MakeWithData(frame[n:])})
	d.DeliverNetworkPacket(tcpip.NetworkProtocolNumber(proto), pkt)
	pkt.DecRef()
}

func (l *etherLink) WritePackets(pkts nstack.PacketBufferList) (int, tcpip.Error) {
	for _, pkt := range pkts.AsSlice() {
		f := append(l.peer[:len(l.peer):len(l.peer)], l.mac[:]...)
		for i, tag := range l.vlan {
			tpid := uint16(0x8100)
			if i == 0 && len(l.vlan) == 2 {
				tpid = 0x88a8
			}
			f = append(f, byte(tpid>>8), byte(tpid), byte(tag>>8), byte(tag))
		}
		f = append(f, byte(pkt.NetworkProtocolNumber>>8), byte(pkt.NetworkProtocolNumber))
		v := pkt.ToView()
		f = append(f, v.AsSlice()...)
		v.Release()
		l.out(f)
	}
	return pkts.Len(), nil
}

func (l *etherLink) MTU() uint32                                 { return l.mtu }
func (*etherLink) SetMTU(uint32)                                 {}
func (*etherLink) MaxHeaderLength() uint16                       { return 0 }
func (*etherLink) LinkAddress() tcpip.LinkAddress                { return "" }
func (*etherLink) SetLinkAddress(tcpip.LinkAddress)              {}
func (*etherLink) Capabilities() nstack.LinkEndpointCapabilities { return 0 }
func (*etherLink) Wait()                                         {}
func (*etherLink) ARPHardwareType() header.ARPHardwareType       { return header.ARPHardwareEther }
func (*etherLink) AddHeader(*nstack.PacketBuffer)                {}
func (*etherLink) ParseHeader(*nstack.PacketBuffer) bool         { return true }
func (*etherLink) Close()                                        {}
func (*etherLink) SetOnCloseAction(func())                       {}
func (l *etherLink) IsAttached() bool                            { l.mu.Lock(); defer l.mu.Unlock(); return l.dispatcher != nil }
func (l *etherLink) Attach(d nstack.NetworkDispatcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dispatcher = d
}
