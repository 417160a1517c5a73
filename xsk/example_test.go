package xsk_test

import (
	"log"
	"net"
	"time"

	"github.com/cilium/ebpf"

	"penstock/xsk"
)

// Forward everything from eth1 to eth2 and back, without copying a byte. An XDP
// program on each interface redirects to an XSKMAP (bpf_redirect_map); how it is
// loaded is not shown.
func Example() {
	var maps [2]*ebpf.Map // the XSKMAPs of the two programs

	const frames = 8192
	umem, err := xsk.NewUMEM(xsk.UMEMOptions{Frames: frames})
	if err != nil {
		log.Fatal(err)
	}
	defer umem.Close()
	pool := umem.NewPool(0, frames)

	var ports [2]*xsk.Socket
	for i, name := range []string{"eth1", "eth2"} {
		iface, err := net.InterfaceByName(name)
		if err != nil {
			log.Fatal(err)
		}
		fill := make([]uint64, 2048)
		n := pool.Alloc(fill)
		ports[i], err = umem.Open(iface.Index, 0, &xsk.SocketOptions{Prefill: fill[:n]})
		if err != nil {
			log.Fatal(err)
		}
		defer ports[i].Close()
		if err := maps[i].Put(uint32(0), uint32(ports[i].FD())); err != nil {
			log.Fatal(err)
		}
	}
	poller, err := xsk.NewPoller(ports[:]...)
	if err != nil {
		log.Fatal(err)
	}
	defer poller.Close()

	descs := make([]xsk.Desc, 64)
	addrs := make([]uint64, 64)
	for {
		moved := 0
		for i, in := range ports {
			out := ports[1-i]
			n := in.Receive(descs)
			for _, d := range descs[out.Transmit(descs[:n]):n] {
				pool.Free(d.Addr) // out's ring is full: dropped
			}
			_ = out.Kick() // a link that is down comes back; Err says if it never will

			pool.Free(addrs[:out.Complete(addrs)]...)
			k := pool.Alloc(addrs)
			pool.Free(addrs[in.Fill(addrs[:k]):k]...)
			_ = in.WakeRx()
			moved += n
		}
		if moved == 0 {
			if err := poller.Wait(time.Second); err != nil {
				log.Fatal(err)
			}
		}
	}
}
