package bpf

import (
	"bytes"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"penstock/internal/lab"
	"penstock/internal/lab/labtest"
)

// all sends everything to chain 7.
var all = []Rule{{From: -1, Action: ToChain, Chain: 7}}

func TestFlowOfOneConnection(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules = []Rule{{From: 0, Proto: ProtoTCP, Action: ToChain, Chain: 7}} })
	steps := []struct {
		name   string
		port   int
		packet []byte
		want   fate
	}{
		{"server cannot begin it", 1, tcp4Reply(t, "SA", 0), fate{VerdictPeer, "midstream"}},
		{"SYN", 0, tcp4(t, "S", 0), fate{VerdictSocket, "flow_new"}},
		{"SYN again", 0, tcp4(t, "S", 0), fate{VerdictSocket, "flow_known"}},
		{"SYN-ACK", 1, tcp4Reply(t, "SA", 0), fate{VerdictSocket, "flow_known"}},
		{"data", 0, tcp4(t, "PA", 100), fate{VerdictSocket, "flow_known"}},
		{"other direction", 1, tcp4Reply(t, "A", 0), fate{VerdictSocket, "flow_known"}},
		{"FIN", 1, tcp4Reply(t, "FA", 0), fate{VerdictSocket, "flow_known"}},
		{"other flow", 0, tcp6(t, "A", 0), fate{VerdictPeer, "midstream"}},
	}
	for _, s := range steps {
		o := r.run(s.port, s.packet)
		if o.fate() != s.want {
			t.Fatalf("%s: got %v, want %v", s.name, o.fate(), s.want)
		}
		if o.meta && o.chain != 7 {
			t.Errorf("%s: chain %d, want 7", s.name, o.chain)
		}
	}
	entries := r.entries()
	if len(entries) != 2 {
		t.Fatalf("%d entries, want 2: %+v", len(entries), entries)
	}
	for k, e := range entries {
		if want := FlowHash(k); e.Hash != want {
			t.Errorf("hash %#x, want %#x", e.Hash, want)
		}
		other, ok := entries[k.Reverse()]
		if !ok {
			t.Fatalf("no entry for the reverse of %+v", k)
		}
		if e.Reply == other.Reply || e.Start != other.Start {
			t.Errorf("directions disagree: %+v, %+v", e, other)
		}
	}
}

// xdpContext is struct xdp_md (linux/bpf.h), the context of a test run.
type xdpContext struct {
	Data, DataEnd, DataMeta, IngressIfindex, RxQueueIndex, EgressIfindex uint32
}

// The queue a packet arrives on decides which socket it goes to.
func TestQueueDecidesTheSocket(t *testing.T) {
	l := labtest.NewForTest(t)
	ns, err := l.NS("queues")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Veth(lab.End{NS: ns, Name: "eth1", NoIPv6: true}, lab.End{NS: ns, Name: "eth2", NoIPv6: true}, lab.VethOptions{Queues: 3}); err != nil {
		t.Fatal(err)
	}
	index, err := ns.LinkIndex("eth1")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t}
	r.Steerer = loadIn(t, ns, Options{Name: "queues", Ports: []Port{{Name: "lan", Ifindex: index}}, Default: DefaultPass, Rules: all, MaxFlows: 16})
	t.Cleanup(func() { r.Close() })
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := r.SetSocket(0, 1, fd); err != nil {
		t.Fatal(err)
	}
	for queue, want := range []uint32{2, 4, 2} { // XDP_PASS, XDP_REDIRECT
		packet := tcp4(t, "S", 0)
		var got uint32
		err := ns.Do(func() (err error) {
			got, err = r.ports[0].prog.Run(&ebpf.RunOptions{
				Data: packet, DataOut: make([]byte, 256),
				Context: &xdpContext{DataEnd: uint32(len(packet)), IngressIfindex: uint32(index), RxQueueIndex: uint32(queue)},
			})
			return err
		})
		if err != nil || got != want {
			t.Errorf("queue %d: action %d, %v; want %d", queue, got, err, want)
		}
	}
}

// Metadata that a driver has put before a packet gives way to ours, which ends where the packet begins.
func TestMetadataReplacesTheDrivers(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules = all })
	packet := tcp4(t, "S", 10)
	for _, size := range []int{0, 4, 8, 16, 32} {
		opts := &ebpf.RunOptions{
			Data: append(bytes.Repeat([]byte{0xee}, size), packet...), DataOut: make([]byte, 512),
			Context: &xdpContext{Data: uint32(size), DataEnd: uint32(size + len(packet))},
		}
		if action, err := r.ports[0].prog.Run(opts); err != nil || action != 4 {
			t.Fatalf("%d bytes of metadata: action %d, %v", size, action, err)
		}
		m, ok := ReadMeta(opts.DataOut)
		if !ok || m.Chain != 7 || m.Hash != hashOf(t, packet) || !bytes.Equal(opts.DataOut[MetaSize:], packet) {
			t.Errorf("%d bytes of metadata became %x", size, opts.DataOut)
		}
	}
}
