package bpf

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"penstock/internal/lab"
	"penstock/internal/lab/labtest"
)

// rig is a loaded program that is attached to nothing: packets are put through it by BPF_PROG_TEST_RUN, which runs it for real, maps
// and all, and stops at the action it returns.
type rig struct {
	*Steerer
	t testing.TB
}

// outcome is what became of one packet.
type outcome struct {
	verdict Verdict
	reason  Reason
	meta    bool // metadata was put before the packet
	chain   uint16
	hash    uint32
	anew    bool
	cookie  bool
	size    uint8
	data    []byte
}

// fate is the part of an outcome that tables compare.
type fate struct {
	verdict Verdict
	reason  string
}

func (o outcome) fate() fate { return fate{o.verdict, o.reason.String()} }

// twoPorts makes a namespace with two interfaces to be ports "lan" and "wan" (a veth pair: to itself, but nothing is sent).
func twoPorts(t testing.TB, l *lab.Lab) (*lab.NS, []Port) {
	t.Helper()
	ns, err := l.NS("steer")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Veth(lab.End{NS: ns, Name: "eth1", NoIPv6: true}, lab.End{NS: ns, Name: "eth2", NoIPv6: true}, lab.VethOptions{}); err != nil {
		t.Fatal(err)
	}
	ports := []Port{{Name: "lan"}, {Name: "wan"}}
	for i, name := range []string{"eth1", "eth2"} {
		if ports[i].Ifindex, err = ns.LinkIndex(name); err != nil {
			t.Fatal(err)
		}
	}
	return ns, ports
}

// Most tests share their programs, since loading one takes the verifier a tenth of a second: one rig for each set of options, emptied
// in between. Tests run one after the other.
var shared struct {
	lab   *lab.Lab
	ns    *lab.NS
	ports []Port
	rigs  map[rigOptions]*Steerer
}

// rigOptions are the options that are compiled into a program.
type rigOptions struct {
	Default   Default
	Midstream Midstream
	OnExit    OnExit
	Malformed Malformed
	Silence   time.Duration
	MaxFlows  uint32
	Rewrites  uint32
}

func TestMain(m *testing.M) {
	code := m.Run()
	for _, s := range shared.rigs {
		s.Close()
	}
	if shared.lab != nil {
		if err := shared.lab.Close(); err != nil && code == 0 {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// newRig returns a program for two ports, each with a socket on queue 0, empty tables and counters that may not be zero; change edits
// the options. The test must leave it in working order (ownRig need not be).
func newRig(t testing.TB, change func(*Options)) *rig {
	t.Helper()
	labtest.NeedRoot(t)
	if shared.lab == nil {
		l, err := lab.New("bpf-rigs")
		if err != nil {
			t.Fatal(err)
		}
		shared.lab, shared.rigs = l, map[rigOptions]*Steerer{}
		shared.ns, shared.ports = twoPorts(t, l)
	}
	o := Options{Name: "rig", Ports: shared.ports, MaxFlows: 1024}
	if change != nil {
		change(&o)
	}
	key := rigOptions{o.Default, o.Midstream, o.OnExit, o.Malformed, o.Silence, o.MaxFlows, o.MaxRewrites}
	r := &rig{Steerer: shared.rigs[key], t: t}
	if r.Steerer == nil {
		r.Steerer = loadIn(t, shared.ns, o)
		shared.rigs[key] = r.Steerer
	}
	r.forget()
	if err := r.SetRules(o.Rules); err != nil {
		t.Fatal(err)
	}
	for port := range o.Ports {
		r.listen(port)
	}
	return r
}

// ownRig is a newRig that no other test uses.
func ownRig(t testing.TB, change func(*Options)) *rig {
	t.Helper()
	ns, ports := twoPorts(t, labtest.NewForTest(t))
	o := Options{Name: "rig", Ports: ports, MaxFlows: 1024}
	if change != nil {
		change(&o)
	}
	r := &rig{Steerer: loadIn(t, ns, o), t: t}
	t.Cleanup(func() { r.Close() })
	for port := range ports {
		r.listen(port)
	}
	return r
}

func loadIn(t testing.TB, ns *lab.NS, o Options) (s *Steerer) {
	t.Helper()
	err := ns.Do(func() (err error) {
		s, err = Load(o)
		return err
	})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	return s
}

// listen puts a socket, bound to nothing, on queue 0 of a port.
func (r *rig) listen(port int) {
	r.t.Helper()
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { unix.Close(fd) })
	// Since 7.x the map takes only sockets that can receive.
	if err := unix.SetsockoptInt(fd, unix.SOL_XDP, unix.XDP_RX_RING, 64); err != nil {
		r.t.Fatal(err)
	}
	if err := r.SetSocket(port, 0, fd); err != nil {
		r.t.Fatal(err)
	}
}

// run puts a packet through a port's program. It fails the test if not exactly one counter has moved, by one packet of the right
// length, if the action is not the verdict's, or if a byte of the packet was changed.
func (r *rig) run(port int, packet []byte) outcome {
	r.t.Helper()
	o := r.rewritten(port, packet)
	if !bytes.Equal(o.data, packet) {
		r.t.Fatalf("the packet was changed from\n%x to\n%x", packet, o.data)
	}
	return o
}

// rewritten is run for a packet that may be changed.
func (r *rig) rewritten(port int, packet []byte) outcome {
	r.t.Helper()
	before := r.counts()
	action, out := r.raw(port, packet)
	o := outcome{data: out}
	moved := 0
	for k, c := range r.counts() {
		b := before[k]
		if c == b {
			continue
		}
		moved++
		o.verdict, o.reason = c.Verdict, c.Reason
		size := len(packet)
		if c.Verdict == VerdictTX {
			size = len(out) // of the answer
		}
		if c.Port != port || c.Packets != b.Packets+1 || c.Bytes != b.Bytes+uint64(size) {
			r.t.Fatalf("counter went from %+v to %+v for one packet of %d bytes on port %d", b, c, len(packet), port)
		}
	}
	if moved != 1 {
		r.t.Fatalf("%d counters moved for one packet, want 1", moved)
	}
	want := map[Verdict]uint32{VerdictPass: 2, VerdictPeer: 4, VerdictSocket: 4, VerdictDrop: 1, VerdictTX: 4}[o.verdict]
	if action != want {
		r.t.Fatalf("XDP action %d for verdict %s (%s), want %d", action, o.verdict, o.reason, want)
	}
	if len(out) == len(packet)+MetaSize {
		m, ok := ReadMeta(out)
		o.chain, o.hash, o.anew, o.meta = m.Chain, m.Hash, m.Anew, ok
		o.cookie, o.size = m.Cookie, m.Size
		o.data = out[MetaSize:]
	}
	if o.meta != (o.verdict == VerdictSocket && o.reason.String() != "no_metadata") {
		r.t.Fatalf("verdict %s (%s): metadata is %t", o.verdict, o.reason, o.meta)
	}
	return o
}

// raw runs a port's program once and returns its action and the packet, with the metadata before it.
func (r *rig) raw(port int, packet []byte) (action uint32, out []byte) {
	r.t.Helper()
	opts := &ebpf.RunOptions{Data: packet, DataOut: make([]byte, len(packet)+256)}
	action, err := r.ports[port].prog.Run(opts)
	if err != nil {
		r.t.Fatal(err)
	}
	return action, opts.DataOut
}

type counterKey struct {
	port    int
	reason  Reason
	verdict Verdict
}

func (r *rig) counts() map[counterKey]Counter {
	r.t.Helper()
	list, err := r.Counters()
	if err != nil {
		r.t.Fatal(err)
	}
	m := make(map[counterKey]Counter, len(list))
	for _, c := range list {
		m[counterKey{c.Port, c.Reason, c.Verdict}] = c
	}
	return m
}

// entries returns the flow table.
func (r *rig) entries() map[FlowKey]FlowEntry {
	r.t.Helper()
	m := map[FlowKey]FlowEntry{}
	if err := r.Flows(func(e FlowEntry) bool { m[e.FlowKey] = e; return true }); err != nil {
		r.t.Fatal(err)
	}
	return m
}

// forget empties the flow table and the fragments.
func (r *rig) forget() {
	r.t.Helper()
	var flows []FlowKey
	for k := range r.entries() {
		flows = append(flows, k)
	}
	if _, err := r.Evict(flows, nil); err != nil {
		r.t.Fatal(err)
	}
	r.table.settle(Now())
	var keys []steerFragmentKey
	var k steerFragmentKey
	var v steerFragment
	for it := r.frags.Iterate(); it.Next(&k, &v); {
		keys = append(keys, k)
	}
	for i := range keys {
		if err := r.frags.Delete(&keys[i]); err != nil {
			r.t.Fatal(err)
		}
	}
}
