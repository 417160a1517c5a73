package stack_test

import (
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"penstock/internal/lab"
	"penstock/pipeline"
)

// packetPort is a port over an AF_PACKET socket: slow, but the kernel's own
// TCP is at the other end of it.
type packetPort struct {
	info pipeline.PortInfo
	pool *pipeline.Pool
	fd   int

	rx, tx, refused, tooLong atomic.Uint64
}

func openPacketPort(t testing.TB, ns *lab.NS, ifname string, info pipeline.PortInfo, pool *pipeline.Pool) *packetPort {
	t.Helper()
	index, err := ns.LinkIndex(ifname)
	if err != nil {
		t.Fatal(err)
	}
	p := &packetPort{info: info, pool: pool, fd: -1}
	err = ns.Do(func() (err error) {
		p.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	for _, set := range []func() error{
		func() error { return unix.SetsockoptInt(p.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1) },
		func() error { return unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20) },
		func() error { return unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 16<<20) },
		func() error {
			return unix.SetsockoptPacketMreq(p.fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_PROMISC})
		},
		func() error {
			return unix.Bind(p.fd, &unix.SockaddrLinklayer{Protocol: unix.ETH_P_ALL>>8 | unix.ETH_P_ALL&0xff<<8, Ifindex: index})
		},
	} {
		if err == nil {
			err = set()
		}
	}
	if err != nil {
		t.Fatalf("open packet port on %s: %v", ifname, err)
	}
	t.Cleanup(func() { unix.Close(p.fd) })
	return p
}

func (p *packetPort) Info() pipeline.PortInfo { return p.info }

func (p *packetPort) Receive(b *pipeline.Batch) (n int, err error) {
	for b.Room() > 0 {
		pk := p.pool.Get()
		if pk == nil {
			return n, nil
		}
		off := pk.Offset()
		size, _, _, _, rerr := unix.Recvmsg(p.fd, pk.Frame()[off:], nil, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		if rerr != nil {
			p.pool.Put(pk)
			return n, nil
		}
		if !pk.SetView(off, size) {
			p.tooLong.Add(1)
			p.pool.Put(pk)
			continue
		}
		p.rx.Add(1)
		b.Add(pk)
		n++
	}
	return n, nil
}

func (p *packetPort) Transmit(pkts []*pipeline.Packet) (accepted int) {
	for _, pk := range pkts {
		if _, err := unix.Write(p.fd, pk.Bytes()); err != nil {
			p.refused.Add(1)
		} else {
			accepted++
		}
		p.pool.Put(pk)
	}
	p.tx.Add(uint64(accepted))
	return accepted
}

func (p *packetPort) Flush() {}
func (p *packetPort) Stats() pipeline.PortStats {
	return pipeline.PortStats{RxPackets: p.rx.Load(), TxPackets: p.tx.Load(), TxRefused: p.refused.Load()}
}
func (p *packetPort) Close() error { return nil }

// pollWaiter waits for packets of the ports, or to be woken.
type pollWaiter struct {
	fds   []unix.PollFd
	event int
}

func newPollWaiter(t testing.TB, ports ...*packetPort) *pollWaiter {
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(event) })
	w := &pollWaiter{event: event, fds: []unix.PollFd{{Fd: int32(event), Events: unix.POLLIN}}}
	for _, p := range ports {
		w.fds = append(w.fds, unix.PollFd{Fd: int32(p.fd), Events: unix.POLLIN})
	}
	return w
}

func (w *pollWaiter) Wait(ns int64) {
	ms := -1
	if ns >= 0 {
		ms = int(ns/1e6) + 1
	}
	unix.Poll(w.fds, ms)
	var b [8]byte
	unix.Read(w.event, b[:])
}

func (w *pollWaiter) Wake() {
	unix.Write(w.event, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}
