package bpf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"penstock/internal/lab"
	"penstock/internal/lab/labtest"
	"penstock/internal/rewrite"
)

// dynasty is a row of instances of one name, one after the other on the same ports.
type dynasty struct {
	t     *testing.T
	ns    *lab.NS
	ports []Port
	root  string
	*rig
}

func newDynasty(t *testing.T) *dynasty {
	d := &dynasty{t: t, root: bpffs(t)}
	d.ns, d.ports = twoPorts(t, labtest.NewForTest(t))
	return d
}

// next loads the next instance and attaches it.
func (d *dynasty) next(change func(*Options)) {
	d.t.Helper()
	o := Options{
		Name: "rig", Ports: slices.Clone(d.ports), MaxFlows: 1024, PinRoot: d.root, Rules: all,
		Chains: []Chain{{Name: "first"}, {Name: "second"}, {Name: "third"}},
	}
	if change != nil {
		change(&o)
	}
	d.rig = &rig{Steerer: loadIn(d.t, d.ns, o), t: d.t}
	s := d.Steerer
	d.t.Cleanup(func() { _ = d.ns.Do(s.Close) })
	err := d.ns.Do(func() error {
		for i := range o.Ports {
			if _, err := s.Attach(i); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
	for i := range o.Ports {
		d.listen(i)
	}
}

func (d *dynasty) leave() {
	d.t.Helper()
	if err := d.Leave(); err != nil {
		d.t.Fatal(err)
	}
}

// populate makes three flows of three chains: one in user space, two offloaded.
func (d *dynasty) populate() (inUserSpace, forwarded, dropped []byte) {
	d.t.Helper()
	inUserSpace, forwarded, dropped = udp4(d.t, 0), tcp4(d.t, "S", 0), tcp6(d.t, "S", 0)
	for i, p := range [][]byte{inUserSpace, forwarded, dropped} {
		if err := d.SetRules([]Rule{{From: -1, Action: ToChain, Chain: uint16(i)}}); err != nil {
			d.t.Fatal(err)
		}
		if got := d.run(0, p).fate(); got != toSocket {
			d.t.Fatalf("flow %d: %v", i, got)
		}
	}
	n, err := d.Offload([]OffloadFlow{{Key: flowOf(d.t, forwarded)}, {Key: flowOf(d.t, dropped), Drop: true}})
	if n != 2 || err != nil {
		d.t.Fatalf("%d flows offloaded, %v", n, err)
	}
	return inUserSpace, tcp4(d.t, "A", 0), tcp6(d.t, "A", 0)
}

func TestSuccessorGoesOnWithFlows(t *testing.T) {
	midstream, fresh := fate{VerdictPeer, "midstream"}, fate{VerdictSocket, "flow_new"}
	forwards, drops := fate{VerdictPeer, "flow_offloaded"}, fate{VerdictDrop, "flow_offloaded"}
	for _, c := range []struct {
		name      string
		change    func(*Options)
		user      fate
		forwarded fate
		dropped   fate
		want      Inheritance
	}{
		{"the same chains", nil, fresh, forwards, drops, Inheritance{Flows: 2, Offloaded: 2, Forgotten: 1}},
		{
			"a chain that passes", func(o *Options) { o.Chains[0].Pass = true },
			forwards, forwards, drops, Inheritance{Flows: 3, Offloaded: 2, Passed: 1},
		},
		{
			"a chain that resumes", func(o *Options) { o.Chains[0].Resume = true },
			fate{VerdictSocket, "flow_known"}, forwards, drops, Inheritance{Flows: 3, Offloaded: 2, Resumed: 1},
		},
		{
			"other numbers", func(o *Options) {
				o.Chains = []Chain{{Name: "third"}, {Name: "new"}, {Name: "second"}, {Name: "first", Resume: true}}
			},
			fate{VerdictSocket, "flow_known"}, forwards, drops, Inheritance{Flows: 3, Offloaded: 2, Resumed: 1},
		},
		{
			"a chain less", func(o *Options) { o.Chains = o.Chains[:2] },
			fresh, forwards, midstream, Inheritance{Flows: 1, Offloaded: 1, Forgotten: 2},
		},
		{
			"other ports", func(o *Options) { o.Ports[0].Name = "inside" },
			fresh, midstream, midstream, Inheritance{Refused: "its ports were lan, wan"},
		},
		{
			"another size", func(o *Options) { o.MaxFlows = 512 },
			fresh, midstream, midstream, Inheritance{Refused: `its map "flows" had 2048 entries, and now it has 1024`},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDynasty(t)
			d.next(nil)
			if got := d.Inherited(); got != (Inheritance{}) {
				t.Errorf("the first one inherits %+v", got)
			}
			user, forwarded, dropped := d.populate()
			before := d.entries()
			d.leave()

			d.next(c.change)
			if got := d.Inherited(); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
			if n := len(d.entries()); n != 2*c.want.Flows {
				t.Errorf("%d entries, want %d", n, 2*c.want.Flows)
			}
			for key, e := range d.entries() {
				old := before[key]
				if name := d.opts.Chains[e.Chain].Name; name != []string{"first", "second", "third"}[old.Chain] {
					t.Errorf("%v of chain %d is in %q now", key, old.Chain, name)
				}
				old.Chain = e.Chain
				if old.Action == ToChain && c.want.Passed > 0 {
					old.Action = Bypass
				}
				if e != old {
					t.Errorf("got %+v, want %+v", e, old)
				}
			}
			for i, want := range []fate{c.user, c.forwarded, c.dropped} {
				if got := d.run(0, [][]byte{user, forwarded, dropped}[i]).fate(); got != want {
					t.Errorf("flow %d: got %v, want %v", i, got, want)
				}
			}
			d.leave()
			d.next(nil) // one that inherits from an heir
			if got := d.Inherited(); got.Refused == "" && got.Flows < c.want.Flows-1 {
				t.Errorf("the one after it inherits %+v", got)
			}
		})
	}
}

// TestSuccessorOfChangedChains: the numbers of chains changed while the instance lived.
func TestSuccessorOfChangedChains(t *testing.T) {
	d := newDynasty(t)
	d.next(nil)
	_, forwarded, dropped := d.populate() // of chains 1 and 2
	for _, c := range []struct {
		chains []Chain
		want   Inheritance
	}{
		{[]Chain{{Name: ""}, {Name: "third"}, {Name: "third"}}, Inheritance{Flows: 2, Offloaded: 2}},
		{[]Chain{{Name: "first"}, {Name: "second"}, {Name: strings.Repeat("long", willSize/4)}}, Inheritance{}},
	} {
		if err := d.SetChains(c.chains); err != nil {
			t.Fatal(err)
		}
		d.leave()
		d.next(nil)
		got := d.Inherited()
		got.Forgotten = 0
		if got != c.want {
			t.Errorf("got %+v, want %+v", got, c.want)
		}
		for _, e := range d.entries() {
			if e.Action != ToChain && e.Chain != 2 {
				t.Errorf("%+v is not of the third chain", e)
			}
		}
		if c.want.Flows == 0 {
			break
		}
		for i, want := range []fate{{VerdictPeer, "flow_offloaded"}, {VerdictDrop, "flow_offloaded"}} {
			if got := d.run(0, [][]byte{forwarded, dropped}[i]).fate(); got != want {
				t.Errorf("flow %d: %v", i, got)
			}
		}
	}
}

// A map that an older program laid out in another way is not taken over, whatever its sizes are.
func TestSuccessorRefusesOtherLayouts(t *testing.T) {
	for _, c := range []struct {
		name    string
		value   func(will) []byte
		refused string
	}{
		{"layout", func(w will) []byte {
			w.Layouts = maps.Clone(w.Layouts)
			w.Layouts["flows"] = strings.Replace(w.Layouts["flows"], "last_seen", "seen", 1)
			b, _ := json.Marshal(w)
			return b
		}, `its map "flows" was laid out in another way`},
		{"nonsense", func(will) []byte { return []byte("{\xff") }, `read map "instance": `},
		{"nothing", func(will) []byte { return nil }, `read map "instance": `},
	} {
		d := newDynasty(t)
		d.next(nil)
		d.populate()
		path := filepath.Join(d.pinDir(), willName)
		m, err := ebpf.LoadPinnedMap(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		text := c.value(d.will)
		if err := m.Put(uint32(0), append(text, make([]byte, willSize-len(text))...)); err != nil {
			t.Fatal(err)
		}
		m.Close()
		d.leave()
		d.next(nil)
		if got := d.Inherited(); got.Flows != 0 || !strings.HasPrefix(got.Refused, c.refused) {
			t.Errorf("%s: got %+v, want %q", c.name, got, c.refused)
		}
		if n := len(d.entries()); n != 0 {
			t.Errorf("%s: %d entries", c.name, n)
		}
	}
}

// The layout of a type says what it would be read as.
func TestLayout(t *testing.T) {
	spec, err := loadSteer()
	if err != nil {
		t.Fatal(err)
	}
	key := layout(spec.Maps["flows"].Key)
	for _, want := range []string{"src@0:[4]4;", "sport@256:2;", "vlan@320:[2]2;", "}44"} {
		if !strings.Contains(key, want) {
			t.Errorf("layout %q lacks %q", key, want)
		}
	}
}

// With LinksLate no link is pinned while an instance lives, and all are when it leaves.
func TestLinksLate(t *testing.T) {
	d := newDynasty(t)
	late := func(o *Options) { o.LinksLate = true }
	pins := func() []string {
		list, err := filepath.Glob(filepath.Join(d.root, "*", "*", linkPrefix+"*"))
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	d.next(late)
	_, forwarded, _ := d.populate()
	if got := pins(); len(got) != 0 {
		t.Errorf("pinned at once: %v", got)
	}
	progs := func() (ids []uint32) {
		for _, p := range d.ports {
			var id uint32
			err := d.ns.Do(func() error { x, err := xdpOn(p.Ifindex); id = x.ProgId; return err })
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		return ids
	}
	old := progs()
	d.leave()
	if got := pins(); len(got) != 2 {
		t.Errorf("after Leave only %v are pinned", got)
	}
	if got := progs(); !slices.Equal(got, old) || slices.Contains(got, 0) {
		t.Errorf("programs %v, after Leave %v", old, got)
	}
	d.next(late)
	if got := pins(); len(got) != 0 {
		t.Errorf("pinned after the take-over: %v", got)
	}
	if got, want := d.run(0, forwarded).fate(), (fate{VerdictPeer, "flow_offloaded"}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if err := d.ns.Do(d.Close); err != nil {
		t.Fatal(err)
	}
	if got := progs(); !slices.Equal(got, []uint32{0, 0}) {
		t.Errorf("programs after Close: %v", got)
	}
	if exists(filepath.Join(d.root, "rig")) {
		t.Error("Close left the folder")
	}
}

// Links of a version that pinned elsewhere are found, and nothing of it is left.
func TestSuccessorOfAnotherVersion(t *testing.T) {
	d := newDynasty(t)
	d.next(nil)
	d.leave()
	old := filepath.Join(d.root, "rig", "v0")
	if err := os.Mkdir(old, 0o700); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(d.pinDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries { // bpffs moves no pins by rename(2) between folders
		from, to := filepath.Join(d.pinDir(), e.Name()), filepath.Join(old, e.Name())
		if isLinkPin(from) {
			var l link.Link
			if l, err = link.LoadPinnedLink(from, nil); err == nil {
				err = l.Pin(to)
				l.Close()
			}
		} else {
			var m *ebpf.Map
			if m, err = ebpf.LoadPinnedMap(from, nil); err == nil {
				err = m.Pin(to)
				m.Close()
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		_ = os.Remove(from)
	}
	d.next(nil)
	if exists(old) {
		left, _ := filepath.Glob(filepath.Join(old, "*"))
		t.Errorf("left behind: %v", left)
	}
	pins, _ := filepath.Glob(filepath.Join(d.pinDir(), linkPrefix+"*"))
	if len(pins) != 2 {
		t.Errorf("pinned links: %v", pins)
	}
}

// Two thousand chains fit into what is left in writing; what does not is no error.
func TestManyChains(t *testing.T) {
	d := newDynasty(t)
	for _, n := range []int{2000, 10000} {
		d.next(func(o *Options) {
			o.Chains = nil
			for i := range n {
				o.Chains = append(o.Chains, Chain{Name: fmt.Sprintf("chain-%05d", i)})
			}
		})
		if got, want := exists(filepath.Join(d.pinDir(), willName)), n == 2000; got != want {
			t.Errorf("%d chains: pinned %t, want %t", n, got, want)
		}
		d.leave()
	}
	if bytes.Contains([]byte(d.Inherited().Refused), []byte("chain")) {
		t.Error(d.Inherited().Refused)
	}
}

// A rewritten flow goes on under the next instance, which does not give its slot to another one before it has ended.
func TestSuccessorGoesOnWithRewrites(t *testing.T) {
	d := newDynasty(t)
	two := func(o *Options) { o.MaxRewrites, o.Rules = 2, []Rule{{From: -1, Action: ToChain, Chain: 1}} }
	d.next(two)
	nat := natFlow(t)
	d.run(0, tcp4(t, "S", 0))
	if got := d.one(nat); got != OffloadTaken {
		t.Fatal(got)
	}
	d.expect("SYN-ACK", 1, backendReply(t, "SA", 0), forwarded, &nat.ReplyRewrite)
	want := RewrittenFlow{
		Key: nat.Key, Reply: nat.Reply, Rules: [2]rewrite.Rule{nat.Rewrite, nat.ReplyRewrite}, InPort: 0, ReplyInPort: 1, Chain: 1, Hash: FlowHash(nat.Key),
	}
	// A SYN has just brought it up when the instance dies: it is not forgotten, and who knows its rewrites gives it back.
	d.expect("SYN", 0, tcp4(t, "S", 0), known, nil)
	d.leave()
	d.next(two)
	if got, err := d.Rewritten(); err != nil || len(got) != 1 || got[0] != want {
		t.Fatalf("got %+v, %v\nwant %+v", got, err, want)
	}
	if got := d.one(nat); got != OffloadTaken {
		t.Fatal(got)
	}
	d.table.settle(Now())
	d.leave()
	d.next(two)
	if got, err := d.Rewritten(); err != nil || len(got) != 1 || got[0] != want {
		t.Fatalf("got %+v, %v\nwant %+v", got, err, want)
	}
	d.expect("data", 0, tcp4(t, "PA", 9), forwarded, &nat.Rewrite)
	d.expect("reply", 1, backendReply(t, "PA", 9), forwarded, &nat.ReplyRewrite)
	for i, want := range []OffloadResult{OffloadTaken, OffloadSlotsFull} {
		packet := changed(udp4(t, 10), 34, 0, byte(i))
		d.run(0, packet)
		other := OffloadFlow{Key: flowOf(t, packet), Rewrite: rewrite.Rule{Flags: rewrite.SetDstMAC, DstMAC: [6]byte{2, 9}}}
		if got := d.one(other); got != want {
			t.Errorf("flow %d: %v, want %v", i, got, want)
		}
	}
	d.expect("data, beside another flow", 0, tcp4(t, "PA", 9), forwarded, &nat.Rewrite)
	if n, err := d.Evict([]FlowKey{nat.Reply}, nil); n != 1 || err != nil {
		t.Error(n, err)
	}
	d.table.settle(Now())
	if free := len(d.table.slots.free); free != 1 {
		t.Errorf("%d slots are free, want 1", free)
	}
}
