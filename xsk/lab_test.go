package xsk_test

import (
	"fmt"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"penstock/internal/lab"
	"penstock/internal/lab/labtest"
	"penstock/xsk"
)

// etherType is what all test packets carry (IEEE local experimental 1), so that
// they cannot be taken for anything the kernel sends of its own accord.
const etherType = 0x88b5

// bed is a network namespace with veth pairs in it, or, without one, the
// namespace that the test is started in.
type bed struct {
	ns *lab.NS
}

func newBed(t testing.TB) *bed {
	t.Helper()
	ns, err := labtest.NewForTest(t).NS("xsk")
	if err != nil {
		t.Fatal(err)
	}
	return &bed{ns: ns}
}

// do runs fn inside the namespace; what it returns fails the test.
func (b *bed) do(t testing.TB, fn func() error) {
	t.Helper()
	if err := b.try(fn); err != nil {
		t.Fatal(err)
	}
}

func (b *bed) try(fn func() error) error {
	if b.ns == nil {
		return fn()
	}
	return b.ns.Do(fn)
}

func (b *bed) setLink(t testing.TB, name string, up bool) {
	t.Helper()
	b.do(t, func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if up {
			return netlink.LinkSetUp(l)
		}
		return netlink.LinkSetDown(l)
	})
}

// wire is a veth pair. AF_XDP sockets are bound to the near end; at the far end
// a test injects and collects packets.
type wire struct {
	*bed
	name      string // of the near end
	farName   string
	near, far int // interface indices
	xsks      *ebpf.Map
}

// wire makes a veth pair with a native XDP program on the near end that
// redirects every packet to the socket of its queue.
func (b *bed) wire(t testing.TB, name string, queues int) *wire {
	t.Helper()
	err := b.ns.Lab().Veth(lab.End{NS: b.ns, Name: name, NoIPv6: true},
		lab.End{NS: b.ns, Name: name + "p", NoIPv6: true}, lab.VethOptions{Queues: queues})
	if err != nil {
		t.Fatal(err)
	}
	return b.existing(t, name, name+"p", queues)
}

// existing makes a wire of two interfaces that are joined already.
func (b *bed) existing(t testing.TB, near, far string, queues int) *wire {
	t.Helper()
	w := &wire{bed: b, name: near, farName: far}
	b.do(t, func() error {
		for _, end := range []struct {
			name  string
			index *int
		}{{near, &w.near}, {far, &w.far}} {
			l, err := netlink.LinkByName(end.name)
			if err != nil {
				return err
			}
			*end.index = l.Attrs().Index
		}
		return nil
	})
	w.xsks = b.redirect(t, w.near, queues)
	return w
}

// redirect attaches "redirect to xsks[rx_queue_index], else pass".
func (b *bed) redirect(t testing.TB, ifindex, queues int) *ebpf.Map {
	t.Helper()
	xsks, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.XSKMap, KeySize: 4, ValueSize: 4, MaxEntries: uint32(queues)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { xsks.Close() })
	const rxQueueIndex, pass = 16, 2 // offset in struct xdp_md; XDP_PASS
	b.attach(t, ifindex, asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, rxQueueIndex, asm.Word),
		asm.LoadMapPtr(asm.R1, xsks.FD()),
		asm.Mov.Imm(asm.R3, pass),
		asm.FnRedirectMap.Call(),
		asm.Return(),
	})
	return xsks
}

func (b *bed) attach(t testing.TB, ifindex int, code asm.Instructions) *ebpf.Program {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "Dual MIT/GPL", Instructions: code})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	b.do(t, func() error {
		l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: ifindex, Flags: link.XDPDriverMode})
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	})
	return prog
}

// open opens a socket on a queue of the wire's near end and steers to it.
func (w *wire) open(t testing.TB, u *xsk.UMEM, queue int, o *xsk.SocketOptions) *xsk.Socket {
	t.Helper()
	s, err := w.tryOpen(u, queue, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	w.steer(t, s)
	return s
}

func (w *wire) tryOpen(u *xsk.UMEM, queue int, o *xsk.SocketOptions) (s *xsk.Socket, err error) {
	err = w.try(func() (err error) {
		s, err = u.Open(w.near, queue, o)
		return err
	})
	return s, err
}

func (w *wire) steer(t testing.TB, s *xsk.Socket) {
	t.Helper()
	if err := w.xsks.Put(uint32(s.Queue()), uint32(s.FD())); err != nil {
		t.Fatalf("steer queue %d: %v", s.Queue(), err)
	}
}

func newUMEM(t testing.TB, o xsk.UMEMOptions) *xsk.UMEM {
	t.Helper()
	u, err := xsk.NewUMEM(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	return u
}

// tap is an AF_PACKET socket on the far end of a wire.
type tap struct {
	fd int
}

func (w *wire) tap(t testing.TB) *tap {
	t.Helper()
	const proto = etherType>>8 | etherType&0xff<<8 // in network byte order
	p := &tap{fd: -1}
	w.do(t, func() (err error) {
		p.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	t.Cleanup(func() { unix.Close(p.fd) })
	for opt, v := range map[int]int{unix.SO_RCVBUFFORCE: 64 << 20, unix.SO_SNDBUFFORCE: 16 << 20} {
		if err := unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, opt, v); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.SetsockoptInt(p.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(p.fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: w.far}); err != nil {
		t.Fatal(err)
	}
	tv := unix.NsecToTimeval(int64(100 * time.Millisecond))
	if err := unix.SetsockoptTimeval(p.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *tap) send(b []byte) error {
	for {
		_, err := unix.Write(p.fd, b)
		if err != unix.EINTR && err != unix.ENOBUFS && err != unix.EAGAIN {
			return err
		}
		runtime.Gosched()
	}
}

// recv returns the next packet, or nil after 100 ms without one.
func (p *tap) recv(buf []byte) []byte {
	for {
		n, _, err := unix.Recvfrom(p.fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil
		}
		return buf[:n]
	}
}

// poll returns the next packet, or nil if there is none now.
func (p *tap) poll(buf []byte) []byte {
	n, _, err := unix.Recvfrom(p.fd, buf, unix.MSG_DONTWAIT)
	if err != nil {
		return nil
	}
	return buf[:n]
}

// packet makes a test packet of size bytes: number n, and bytes that depend on
// n and on their place, so that checkPacket finds any mix-up.
func packet(buf []byte, n uint32, size int) []byte {
	b := buf[:size]
	copy(b, net.HardwareAddr{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2})
	b[12], b[13] = etherType>>8, etherType&0xff
	b[14], b[15], b[16], b[17] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
	x := n*2654435761 + uint32(size)
	for i := 18; i < size; i++ {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

// checkPacket returns the number of a test packet, and whether it is whole.
func checkPacket(b []byte) (n uint32, err error) {
	if len(b) < 18 {
		return 0, fmt.Errorf("short packet: %d bytes", len(b))
	}
	if b[12] != etherType>>8 || b[13] != etherType&0xff {
		return 0, fmt.Errorf("ether type %02x%02x", b[12], b[13])
	}
	n = uint32(b[14])<<24 | uint32(b[15])<<16 | uint32(b[16])<<8 | uint32(b[17])
	x := n*2654435761 + uint32(len(b))
	for i := 18; i < len(b); i++ {
		x = x*1664525 + 1013904223
		if b[i] != byte(x>>24) {
			return n, fmt.Errorf("packet %d of %d bytes differs at byte %d", n, len(b), i)
		}
	}
	return n, nil
}

// until calls step until it returns true, and fails the test after a while.
func until(t testing.TB, what string, step func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !step() {
		if time.Now().After(deadline) {
			t.Fatalf("waited 10 s until %s", what)
		}
		runtime.Gosched()
	}
}
