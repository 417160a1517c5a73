package bpf

import (
	"bytes"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"penstock/internal/rewrite"
	"penstock/internal/rewrite/rewritetest"
	"penstock/internal/wire"
)

var packets = flag.Int("packets", 75_000, "how many random packets TestTranslatorsAgree looks at")

// translators holds the program and internal/rewrite against each other: the same packets, the same rules, and afterwards the same bytes.
type translators struct {
	*rig
	out     [4096]byte
	taken   int // since slots were made free
	met     [rewrite.NumResults]int
	syn     int // recalled instead
	noFlow  int // nothing to offload
	skipped int // what XDP and user space see differently, or a test run does not take
}

func newTranslators(t testing.TB) *translators {
	r := newRig(t, func(o *Options) { o.Rules, o.Midstream, o.MaxFlows = all, MidstreamInspect, 8192 })
	return &translators{rig: r}
}

// test runs a frame once to begin its flow, offloads that with a rule, and runs it again. It does not keep frame.
func (d *translators) test(frame []byte, rule func(*wire.Headers) rewrite.Rule) {
	d.t.Helper()
	var h wire.Headers
	if len(frame) < wire.EthernetLen || len(frame) > 3000 {
		d.skipped++
		return
	}
	fault := h.Parse(frame)
	if hasAH(frame, &h) {
		d.skipped++
		return
	}
	if fault != wire.FaultNone || h.IPVersion == 0 || h.Frag == wire.FragLater {
		d.noFlow++
		return
	}
	if h.HasL4 {
		switch kind := frame[h.L4]; {
		case h.Proto == ProtoICMP && h.IPVersion == 4 && isError4(kind), h.Proto == ProtoICMPv6 && h.IPVersion == 6 && kind >= 1 && kind <= 4:
			d.noFlow++
			return
		}
	}
	opts := ebpf.RunOptions{Data: frame, DataOut: d.out[:]}
	if _, err := d.ports[0].prog.Run(&opts); err != nil {
		d.t.Fatal(err)
	}
	r := rule(&h)
	list := [1]OffloadFlow{{Key: packetKey(&h, frame), Rewrite: r}}
	if _, err := d.Offload(list[:]); err != nil {
		d.t.Fatal(err)
	}
	if list[0].Result == OffloadGone {
		d.noFlow++ // neighbour discovery
		return
	}
	if list[0].Result != OffloadTaken {
		d.t.Fatal(list[0].Result)
	}
	opts = ebpf.RunOptions{Data: frame, DataOut: d.out[:]}
	if _, err := d.ports[0].prog.Run(&opts); err != nil {
		d.t.Fatal(err)
	}
	was, got, up := bytes.Clone(frame), opts.DataOut, false
	if len(got) == len(frame)+MetaSize {
		_, up = ReadMeta(got)
		got = got[MetaSize:]
	}
	why := rewrite.SlowNoQuote // never one of Apply
	if h.Proto == ProtoTCP && h.HasL4 && wire.TCP(frame[h.L4:h.Payload]).Flags()&(wire.FlagSYN|wire.FlagACK) == wire.FlagSYN {
		d.syn++ // one that may begin another connection
	} else {
		why = r.Apply(frame, &h)
		d.met[why]++
	}
	if !bytes.Equal(got, frame) || up != (why != rewrite.Done) {
		d.t.Fatalf("rule %+v, %s\nwas %x\ngo  %x %v\nbpf %x up %t", r, wire.Summary(was), was, frame, why, got, up)
	}
	if n, err := d.Evict([]FlowKey{list[0].Key}, nil); n != 1 || err != nil {
		d.t.Fatal(n, err)
	}
	if d.taken++; d.taken%4096 == 0 {
		d.table.settle(Now())
	}
}

// packetKey is the key of a packet that is a flow.
func packetKey(h *wire.Headers, packet []byte) FlowKey {
	k := FlowKey{Proto: h.Proto, VLAN: [2]uint16{h.VLAN[0] & 0xfff, h.VLAN[1] & 0xfff}}
	if f, ok := h.Flow(packet); ok {
		k = keyOf(f)
	} else if h.IPVersion == 4 {
		k.Src, k.Dst = addr(packet[h.L3+12:h.L3+16]), addr(packet[h.L3+16:h.L3+20])
	} else {
		k.Src, k.Dst = addr(packet[h.L3+8:h.L3+24]), addr(packet[h.L3+24:h.L3+40])
	}
	return k
}

// finish compares the counters with what was met.
func (d *translators) finish(before map[counterKey]Counter) {
	d.t.Helper()
	d.t.Logf("%v; %d SYN, %d no flow, %d skipped", d.met, d.syn, d.noFlow, d.skipped)
	slow := 0
	for why, n := range d.met {
		if rewrite.Result(why) != rewrite.Done {
			slow += n
		}
	}
	got := map[string]uint64{}
	for k, c := range d.counts() {
		got[k.reason.String()] += c.Packets - before[k].Packets
	}
	if got["flow_offloaded"] != uint64(d.met[rewrite.Done]) || got["rewrite_slow"] != uint64(slow) || got["rewrite_stale"] != 0 {
		d.t.Errorf("counters %v; want %d flow_offloaded, %d rewrite_slow", got, d.met[rewrite.Done], slow)
	}
}

func TestTranslatorsAgree(t *testing.T) {
	n := *packets
	if testing.Short() {
		n /= 10
	}
	d := newTranslators(t)
	before := d.counts()
	g := rewritetest.New(20)
	for range n {
		d.test(g.Frame(), g.Rule)
	}
	d.finish(before)
	// Of each kind that XDP can meet at all: what is malformed or not IP is no flow, and three tags are no flow either.
	for why, got := range d.met {
		switch rewrite.Result(why) {
		case rewrite.SlowMalformed, rewrite.SlowNoEthernet, rewrite.SlowNotIP, rewrite.SlowNoQuote:
		default:
			if got*20_000 < n {
				t.Errorf("%v: %d of %d packets", rewrite.Result(why), got, n)
			}
		}
	}
}

// TestTranslatorsAgreeOnCaptures does the same with real packets: those in the repository, and those in the folder that
// PENSTOCK_PCAPS names.
func TestTranslatorsAgreeOnCaptures(t *testing.T) {
	d := newTranslators(t)
	before := d.counts()
	g := rewritetest.New(21)
	dirs := []string{"../internal/rewrite/testdata", "../internal/wire/testdata", "../pcap/testdata"}
	if more := os.Getenv("PENSTOCK_PCAPS"); more != "" {
		dirs = append(dirs, more)
	}
	files := 0
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(file string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() && frames(file, func(frame []byte) { d.test(frame, g.Rule) }) {
				files++
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	d.finish(before)
	t.Logf("%d files", files)
	if files < 60 || d.met[rewrite.Done] < 300 {
		t.Errorf("%d files, %d packets changed", files, d.met[rewrite.Done])
	}
}

// frames calls fn with each Ethernet frame of a capture, which it may change. It returns false if the file is no such capture.
func frames(file string, fn func([]byte)) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	var r interface {
		ReadPacketData() ([]byte, gopacket.CaptureInfo, error)
		LinkType() layers.LinkType
	}
	switch filepath.Ext(file) {
	case ".pcap":
		r, err = pcapgo.NewReader(f)
	case ".pcapng":
		r, err = pcapgo.NewNgReader(f, pcapgo.NgReaderOptions{WantMixedLinkType: false})
	default:
		return false
	}
	if err != nil || r.LinkType() != layers.LinkTypeEthernet {
		return false
	}
	for {
		data, _, err := r.ReadPacketData()
		if err != nil { // some are cut on purpose
			return true
		}
		fn(data)
	}
}
