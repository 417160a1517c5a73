package xsk_test

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"penstock/xsk"
)

// etherType is what all test packets carry (IEEE local experimental 1), so that
// they cannot be taken for anything the kernel sends of its own accord.
const etherType = 0x88b5

// needRoot skips without privileges, and fails where they were promised.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_PRIV") == "1" {
		t.Fatal("REQUIRE_PRIV=1, but not root: AF_XDP needs CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF")
	}
	t.Skip("SKIPPED: not root; AF_XDP needs CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF")
}

// enterNS moves the test's goroutine into a network namespace of its own, which
// has no name and ends with the test, whatever happens.
func enterNS(t testing.TB) {
	t.Helper()
	needRoot(t)
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	// IPv6 would send router solicitations of its own.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
	t.Cleanup(func() {
		ns.Close()
		if err := netns.Set(home); err == nil {
			runtime.UnlockOSThread() // else the thread ends with its goroutine
		}
		home.Close()
	})
}

// wire is a veth pair. Near is where AF_XDP sockets are bound, Far the other
// end, where a test injects and collects packets with an AF_PACKET socket.
type wire struct {
	near, far netlink.Link
	xsks      *ebpf.Map
}

// newWire makes a veth pair in the current namespace, with a native XDP program
// on the near end that redirects every packet to the socket of its queue.
func newWire(t testing.TB, name string, queues int) *wire {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.NumTxQueues, attrs.NumRxQueues = queues, queues
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: name + "p",
		PeerNumTxQueues: uint32(queues), PeerNumRxQueues: uint32(queues)}
	if err := netlink.LinkAdd(pair); err != nil {
		t.Fatalf("add veth %s: %v", name, err)
	}
	w := &wire{}
	var err error
	for _, end := range []struct {
		name string
		link *netlink.Link
	}{{name, &w.near}, {name + "p", &w.far}} {
		if *end.link, err = netlink.LinkByName(end.name); err != nil {
			t.Fatal(err)
		}
		if err = netlink.LinkSetUp(*end.link); err != nil {
			t.Fatal(err)
		}
	}
	w.xsks = attachRedirect(t, w.near.Attrs().Index, queues)
	return w
}

func (w *wire) ifindex() int { return w.near.Attrs().Index }

// attachRedirect attaches "redirect to xsks[rx_queue_index], else pass".
func attachRedirect(t testing.TB, ifindex, queues int) *ebpf.Map {
	t.Helper()
	xsks, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.XSKMap, KeySize: 4, ValueSize: 4, MaxEntries: uint32(queues)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { xsks.Close() })
	const rxQueueIndex, pass = 16, 2 // offset in struct xdp_md; XDP_PASS
	attachXDP(t, ifindex, asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, rxQueueIndex, asm.Word),
		asm.LoadMapPtr(asm.R1, xsks.FD()),
		asm.Mov.Imm(asm.R3, pass),
		asm.FnRedirectMap.Call(),
		asm.Return(),
	})
	return xsks
}

func attachXDP(t testing.TB, ifindex int, code asm.Instructions) *ebpf.Program {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "Dual MIT/GPL", Instructions: code})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: ifindex, Flags: link.XDPDriverMode})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return prog
}

// open opens a socket on a queue of the wire's near end and steers to it.
func (w *wire) open(t testing.TB, u *xsk.UMEM, queue int, o *xsk.SocketOptions) *xsk.Socket {
	t.Helper()
	s, err := u.Open(w.ifindex(), queue, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	w.steer(t, s)
	return s
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

func (w *wire) tap(t testing.TB) *tap { return openTap(t, w.far.Attrs().Index) }

func openTap(t testing.TB, ifindex int) *tap {
	t.Helper()
	proto := uint16(etherType>>8 | etherType&0xff<<8) // network byte order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(proto))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 16<<20)
	_ = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: ifindex}); err != nil {
		t.Fatal(err)
	}
	tv := unix.NsecToTimeval(int64(100 * time.Millisecond))
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	return &tap{fd: fd}
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
