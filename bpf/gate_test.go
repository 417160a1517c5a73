package bpf

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

func deny(list ...string) (out []GateEntry)  { return entries(GateDeny, list) }
func allow(list ...string) (out []GateEntry) { return entries(GateAllow, list) }

func entries(list GateList, prefixes []string) (out []GateEntry) {
	for _, p := range prefixes {
		out = append(out, GateEntry{GateKey: GateKey{netip.MustParsePrefix(p), list}})
	}
	return out
}

// gated is a newRig whose gate is empty now and afterwards.
func gated(t testing.TB, change func(*Options)) *rig {
	t.Helper()
	r := newRig(t, change)
	t.Cleanup(func() { r.shut() })
	return r
}

// shut empties the gate.
func (r *rig) shut() {
	r.t.Helper()
	r.change(GateChange{Settings: &GateSettings{}, Remove: keysOf(r.gateEntries())})
}

func (r *rig) change(c GateChange) {
	r.t.Helper()
	if err := r.ChangeGate(c); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) gateEntries() []GateEntry {
	r.t.Helper()
	list, err := r.GateEntries()
	if err != nil {
		r.t.Fatal(err)
	}
	return list
}

// from is a packet with another source address.
func from(packet []byte, addr string) []byte {
	b := append([]byte(nil), packet...)
	a := netip.MustParseAddr(addr)
	if a.Is4() {
		copy(b[26:], a.AsSlice())
	} else {
		copy(b[22:], a.AsSlice())
	}
	return b
}

var denied = fate{VerdictDrop, "gate_denied"}

func TestGateLists(t *testing.T) {
	r := gated(t, nil)
	r.change(GateChange{Add: append(deny("192.0.2.0/24", "198.51.100.7/32", "10.0.0.0/8", "2001:db8:1::/48", "2001:db8:2::5/128", "fc00::/7", "2001:db8:3:4::/64"),
		allow("192.0.2.128/25", "10.9.0.0/16", "2001:db8:1:8000::/52")...)})
	arp := build(t, eth(layers.EthernetTypeARP), payload(46))
	for _, c := range []struct {
		packet []byte
		src    string
		want   string // reason
	}{
		{udp4(t, 10), "192.0.2.1", "gate_denied"},
		{tcp4(t, "S", 0), "192.0.2.127", "gate_denied"},
		{udp4(t, 10), "192.0.2.128", "no_rule"}, // allow wins
		{udp4(t, 10), "192.0.3.1", "no_rule"},
		{udp4(t, 10), "198.51.100.7", "gate_denied"},
		{udp4(t, 10), "198.51.100.6", "no_rule"},
		{udp4(t, 10), "10.1.2.3", "gate_denied"},
		{udp4(t, 10), "10.9.2.3", "no_rule"},
		{tcp6(t, "S", 0), "2001:db8:1::1", "gate_denied"},
		{tcp6(t, "S", 0), "2001:db8:1:8fff::1", "no_rule"},
		{tcp6(t, "S", 0), "2001:db8:2::5", "gate_denied"},
		{tcp6(t, "S", 0), "2001:db8:2::4", "no_rule"},
		{tcp6(t, "S", 0), "fd00::1", "gate_denied"},
		{tcp6(t, "S", 0), "2001:db8:3:4::9", "gate_denied"},
		{tcp6(t, "S", 0), "2001:db8:3:5::9", "no_rule"},
		// A segment of a flow that is under way, and one that cannot be parsed, have a source as well.
		{tcp4(t, "A", 10), "192.0.2.1", "gate_denied"},
		{changed(tcp4(t, "S", 0), 46, 0), "192.0.2.1", "gate_denied"},
		{frag4(t, 1, 64, false, isUDP, make([]byte, 40)), "192.0.2.1", "gate_denied"},
		{arp, "", "not_ip"},
	} {
		packet := c.packet
		if c.src != "" {
			packet = from(packet, c.src)
		}
		if got := r.run(0, packet); got.reason.String() != c.want {
			t.Errorf("%s: %s, want %s", c.src, got.reason, c.want)
		}
	}
	if n := len(r.gateEntries()); n != 10 {
		t.Errorf("%d entries, want 10", n)
	}
}

// An ICMP error is judged by who sends it, not by what it quotes.
func TestGateJudgesTheSenderOfAnError(t *testing.T) {
	r := gated(t, nil)
	r.change(GateChange{Add: deny("203.0.113.1/32", "10.0.0.1/32")})
	quoted := build(t, ip4(layers.IPProtocolUDP), udp(ip4(layers.IPProtocolUDP)), payload(8)) // from 10.0.0.1
	ip := ip4(layers.IPProtocolICMPv4)
	ip.DstIP = client4
	for src, want := range map[string]string{"203.0.113.1": "gate_denied", "203.0.113.2": "icmp_error_unknown"} {
		ip.SrcIP = net.ParseIP(src).To4()
		packet := build(t, eth(layers.EthernetTypeIPv4), ip,
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 3)}, gopacket.Payload(quoted))
		if got := r.run(0, packet); got.reason.String() != want {
			t.Errorf("an error from %s: %s, want %s", src, got.reason, want)
		}
	}
}

// Neighbour discovery belongs to the wire, whoever sends it.
func TestGateLeavesNeighborDiscovery(t *testing.T) {
	r := gated(t, nil)
	r.change(GateChange{Add: deny("::/0", "0.0.0.0/0"), Settings: &GateSettings{Screens: ScreenOptions | ScreenSource}})
	ip := ip6(layers.IPProtocolICMPv6)
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(135, 0)}
	_ = icmp.SetNetworkLayerForChecksum(ip)
	packet := build(t, eth(layers.EthernetTypeIPv6), ip, icmp, payload(20))
	if got := r.run(0, packet); got.reason.String() != "icmp_neighbor" {
		t.Errorf("neighbour solicitation: %s", got.reason)
	}
	for _, packet := range [][]byte{tcp6(t, "S", 0), udp4(t, 0)} {
		if got := r.run(0, packet).fate(); got != denied {
			t.Errorf("everything is denied: %v", got)
		}
	}
}

// A deny entry stops a flow that is under way, an offloaded one too.
func TestGateStopsAFlow(t *testing.T) {
	r := gated(t, func(o *Options) { o.Rules = all })
	r.run(0, tcp4(t, "S", 0))
	if n, err := r.Offload([]OffloadFlow{{Key: flowOf(t, tcp4(t, "S", 0))}}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if got := r.run(0, tcp4(t, "A", 0)); got.reason.String() != "flow_offloaded" {
		t.Fatalf("before: %s", got.reason)
	}
	r.change(GateChange{Add: deny("10.0.0.1/32")})
	if got := r.run(0, tcp4(t, "A", 0)).fate(); got != denied {
		t.Errorf("denied: %v", got)
	}
	r.change(GateChange{Remove: keysOf(deny("10.0.0.1/32"))})
	if got := r.run(0, tcp4(t, "A", 0)); got.reason.String() != "flow_offloaded" {
		t.Errorf("after: %s", got.reason)
	}
}

func TestGateScreens(t *testing.T) {
	r := gated(t, nil)
	land := from(udp4(t, 0), "192.0.2.80")
	land6 := from(tcp6(t, "S", 0), "2001:db8::80")
	router := ip4(layers.IPProtocolUDP)
	router.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}}
	igmp := ip4(layers.IPProtocolIGMP)
	igmp.Options = router.Options
	u := udp(router)
	for _, c := range []struct {
		name   string
		screen GateScreens
		packet []byte
		reason string // "": no screen drops it
	}{
		{"land", ScreenLand, land, "gate_land"},
		{"land ipv6", ScreenLand, land6, "gate_land"},
		{"xmas", ScreenFlags, changed(tcp4(t, "", 0), 47, 0x29), "gate_tcp_flags"},
		{"null", ScreenFlags, tcp4(t, "", 0), "gate_tcp_flags"},
		{"syn fin", ScreenFlags, tcp4(t, "SF", 0), "gate_tcp_flags"},
		{"syn rst", ScreenFlags, tcp4(t, "SR", 0), "gate_tcp_flags"},
		{"fin alone", ScreenFlags, tcp4(t, "F", 0), "gate_tcp_flags"},
		{"fin rst", ScreenFlags, tcp4(t, "FRA", 0), "gate_tcp_flags"},
		{"multicast", ScreenSource, from(udp4(t, 0), "224.0.0.1"), "gate_source"},
		{"broadcast", ScreenSource, from(udp4(t, 0), "255.255.255.255"), "gate_source"},
		{"multicast ipv6", ScreenSource, from(tcp6(t, "S", 0), "ff02::1"), "gate_source"},
		{"tiny fragment", ScreenFragments, frag4(t, 1, 8, false, isTCP, make([]byte, 40)), "gate_tiny_fragment"},
		{"tcp offset", ScreenLengths, changed(tcp4(t, "S", 0), 46, 0), "gate_length"},
		{"ip length", ScreenLengths, changed(udp4(t, 10), 16, 0xff), "gate_length"},
		{"udp length", ScreenLengths, changed(udp4(t, 10), 38, 0xff), "gate_length"},
		{"options", ScreenOptions, build(t, eth(layers.EthernetTypeIPv4), router, u, payload(4)), "gate_ip_options"},
		{"igmp", ScreenOptions, build(t, eth(layers.EthernetTypeIPv4), igmp, payload(8)), ""},
		{"syn", ^GateScreens(0), tcp4(t, "S", 0), ""},
		{"syn ack", ^GateScreens(0), tcp4(t, "SA", 0), ""},
		{"ack", ^GateScreens(0), tcp4(t, "A", 0), ""},
		{"push", ^GateScreens(0), tcp4(t, "PA", 9), ""},
		{"fin", ^GateScreens(0), tcp4(t, "FA", 0), ""},
		{"rst", ^GateScreens(0), tcp4(t, "R", 0), ""},
		{"rst ack", ^GateScreens(0), tcp4(t, "RA", 0), ""},
		{"syn with ecn", ^GateScreens(0), changed(tcp4(t, "S", 0), 47, 0xc2), ""},
		{"dhcp", ^GateScreens(0), from(udp4(t, 0), "0.0.0.0"), ""},
		{"echo", ^GateScreens(0), build(t, eth(layers.EthernetTypeIPv4), ip4(layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: 0x0800}), ""},
	} {
		everyScreen := ScreenLand | ScreenFlags | ScreenSource | ScreenFragments | ScreenLengths | ScreenOptions
		r.change(GateChange{Settings: &GateSettings{Screens: c.screen & everyScreen}})
		got := r.run(0, c.packet)
		if c.reason == "" {
			if got.verdict == VerdictDrop {
				t.Errorf("%s: %v", c.name, got.fate())
			}
			continue
		}
		if want := (fate{VerdictDrop, c.reason}); got.fate() != want {
			t.Errorf("%s: %v, want %v", c.name, got.fate(), want)
		}
		r.change(GateChange{Settings: &GateSettings{Screens: everyScreen &^ c.screen}})
		if got := r.run(0, c.packet); got.verdict == VerdictDrop {
			t.Errorf("%s with its screen off: %v", c.name, got.fate())
		}
	}
}

func TestGateRates(t *testing.T) {
	const burst = 10 * time.Second // of a rate of 1 a second: 10, and no more for a second
	for _, c := range []struct {
		name   string
		rates  GateRates
		packet []byte
		reason string
		passed int
	}{
		{"packets", GateRates{Packets: 1, Burst: burst}, udp4(t, 0), "gate_rate_packets", 10},
		{"packets ipv6", GateRates{Packets: 1, Burst: burst}, tcp6(t, "A", 0), "gate_rate_packets", 10},
		{"bytes", GateRates{Bytes: 10000, Burst: burst}, tcp4(t, "A", 946), "gate_rate_bytes", 100},
		{"syns", GateRates{SYNs: 1, Burst: burst}, tcp4(t, "S", 0), "gate_rate_syns", 10},
		{"syns do not touch others", GateRates{SYNs: 1, Burst: burst}, tcp4(t, "SA", 0), "", 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := gated(t, nil)
			r.gate.seed++ // the sources of other tests are others'
			r.change(GateChange{Settings: &GateSettings{Rates: c.rates}})
			passed, begun := 0, time.Now()
			for range 200 {
				switch got := r.run(0, c.packet); {
				case got.verdict != VerdictDrop:
					passed++
				case got.reason.String() != c.reason:
					t.Fatalf("dropped as %s, want %s", got.reason, c.reason)
				}
			}
			// A tenth of the burst comes back each second.
			if most := c.passed + int(time.Since(begun).Seconds()*float64(c.passed)/10) + 1; passed < c.passed || passed > most {
				t.Errorf("%d of 200 passed, want %d", passed, c.passed)
			}
			if c.reason == "" {
				return
			}
			other := from(c.packet, map[bool]string{false: "10.0.0.99", true: "fd00:0:0:1::1"}[c.name == "packets ipv6"])
			if got := r.run(0, other); got.verdict == VerdictDrop {
				t.Errorf("another source: %v", got.fate())
			}
			if c.name == "packets ipv6" {
				if got := r.run(0, from(c.packet, "fd00::9999")); got.verdict != VerdictDrop {
					t.Errorf("the same /64: %v", got.fate())
				}
				return
			}
			r.change(GateChange{Add: allow("10.0.0.1/32")})
			if got := r.run(0, c.packet); got.verdict == VerdictDrop {
				t.Errorf("on the allow list: %v", got.fate())
			}
		})
	}
}

// Making up sources does not bring a source its tokens back.
func TestGateForgetsNoDebt(t *testing.T) {
	r := ownRig(t, func(o *Options) { o.GateSources = 4 })
	r.change(GateChange{Settings: &GateSettings{Rates: GateRates{Packets: 1, Burst: 10 * time.Second}}})
	packet := udp4(t, 0)
	ok := 0
	send := func(src string) {
		if got := r.run(0, from(packet, src)); got.verdict != VerdictDrop {
			ok++
		}
	}
	for range 20 {
		send("192.0.2.66")
	}
	if ok != 10 && ok != 11 {
		t.Fatalf("%d of 20 passed, want 10", ok)
	}
	for i := range 300 {
		send(fmt.Sprintf("10.0.%d.%d", i/250, i%250))
		if i%10 == 0 {
			before := ok
			send("192.0.2.66")
			if ok > before+1 {
				t.Fatal("one packet counts twice")
			}
		}
	}
	// Four sources are remembered, each with ten packets; one more a second for each.
	if ok > 60 {
		t.Errorf("%d of 350 packets passed, want about 40", ok)
	}
}

// randomPrefix is dense enough for prefixes to cover one another.
func randomPrefix(rnd *rand.Rand, six bool) netip.Prefix {
	if !six {
		a := netip.AddrFrom4([4]byte{10 + byte(rnd.IntN(2)), byte(rnd.IntN(4)), byte(rnd.IntN(4)), byte(rnd.Uint32())})
		p, _ := a.Prefix([]int{0, 1, 6, 7, 8, 9, 15, 16, 17, 20, 22, 23, 24, 24, 24, 25, 26, 30, 31, 32, 32, 32}[rnd.IntN(22)])
		return p
	}
	var b [16]byte
	b[0], b[1] = 0x20, 1
	for _, i := range []int{3, 5, 7, 9, 15} {
		b[i] = byte(rnd.IntN(3))
	}
	p, _ := netip.AddrFrom16(b).Prefix([]int{0, 3, 15, 16, 17, 29, 31, 32, 33, 47, 48, 48, 49, 56, 63, 64, 64, 65, 80, 96, 126, 127, 128, 128}[rnd.IntN(24)])
	return p
}

// The gate against a list of prefixes that is searched from one end to the other.
func TestGateModel(t *testing.T) {
	r := gated(t, nil)
	rnd := rand.New(rand.NewPCG(7, 11))
	model := map[GateKey]*GateEntry{}
	never := rnd.IntN(1 << 30)
	packets := [2][]byte{udp4(t, 0), tcp6(t, "A", 0)}
	for round := range 60 {
		c := GateChange{}
		inAdd := map[GateKey]bool{}
		for range 1 + rnd.IntN(30) {
			e := GateEntry{GateKey: GateKey{randomPrefix(rnd, rnd.IntN(2) == 0), GateDeny}}
			if rnd.IntN(8) == 0 {
				e.List = GateAllow
			}
			if e.Prefix.Bits() < 8 && rnd.IntN(4) > 0 || inAdd[e.GateKey] {
				continue // else all is denied most of the time
			}
			switch rnd.IntN(4) {
			case 0:
				e.Expires = Now() - time.Second // has expired
			case 1:
				e.Expires = Now() + time.Hour + time.Duration(never)
			}
			inAdd[e.GateKey] = true
			c.Add = append(c.Add, e)
		}
		for k := range model {
			if rnd.IntN(4) == 0 && !inAdd[k] {
				c.Remove = append(c.Remove, k)
			}
		}
		refuse := errors.New("no")
		if rnd.IntN(5) == 0 {
			c.Commit = func() error { return refuse }
		}
		err := r.ChangeGate(c)
		if (c.Commit != nil) != errors.Is(err, refuse) {
			t.Fatal(err)
		}
		if err == nil {
			for _, e := range c.Add {
				if old := model[e.GateKey]; old != nil {
					e.Hits = old.Hits
				}
				model[e.GateKey] = &e
			}
			for _, k := range c.Remove {
				delete(model, k)
			}
		}
		for range 40 {
			six := rnd.IntN(2)
			addr := randomPrefix(rnd, six == 1).Addr()
			action, _ := r.raw(0, from(packets[six], addr.String()))
			best := [2]*GateEntry{}
			for k, e := range model {
				if k.Prefix.Contains(addr) && (e.Expires == 0 || e.Expires > Now()) &&
					(best[k.List] == nil || best[k.List].Prefix.Bits() < k.Prefix.Bits()) {
					best[k.List] = e
				}
			}
			want := best[GateAllow] == nil && best[GateDeny] != nil
			if got := action == 1; got != want {
				t.Fatalf("round %d, %v: dropped %t, want %t; allow %+v, deny %+v", round, addr, got, want, best[GateAllow], best[GateDeny])
			}
			if best[GateAllow] != nil {
				best[GateAllow].Hits++
			} else if best[GateDeny] != nil {
				best[GateDeny].Hits++
			}
		}
		list := r.gateEntries()
		if len(list) != len(model) {
			t.Fatalf("round %d: %d entries, want %d", round, len(list), len(model))
		}
		for _, e := range list {
			if m := model[e.GateKey]; m == nil || *m != e {
				t.Fatalf("round %d: %+v, want %+v", round, e, m)
			}
		}
		if round%20 == 19 { // another process takes the maps over
			var again gate
			if err := again.open(&steerMaps{
				GateEpoch: r.gateMaps["gate_epoch"], GateOptions: r.gateMaps["gate_options"], GateList4: r.gateMaps["gate_list4"], GateList6: r.gateMaps["gate_list6"],
				GateDir4: r.gateMaps["gate_dir4"], GateCodes: r.gateMaps["gate_codes"], GateSlots6: r.gateMaps["gate_slots6"], GateSources: r.gateMaps["gate_sources"],
			}); err != nil {
				t.Fatal(err)
			}
			if len(again.have) != len(model) || again.epoch != r.gate.epoch {
				t.Fatalf("taken over: %d entries at epoch %d, want %d at %d", len(again.have), again.epoch, len(model), r.gate.epoch)
			}
			r.gate.have, r.gate.count, r.gate.index = again.have, again.count, again.index
		}
	}
}

func TestGateExpiryIsExact(t *testing.T) {
	r := gated(t, nil)
	packet := from(udp4(t, 0), "192.0.2.1")
	end := Now() + 300*time.Millisecond
	add := deny("192.0.2.0/24")
	add[0].Expires = end
	r.change(GateChange{Add: add})
	dropped := 0
	for {
		before := Now()
		action, _ := r.raw(0, packet)
		after := Now()
		if action == 1 {
			dropped++
			if before >= end {
				t.Fatalf("dropped %v after the expiry", before-end)
			}
		} else {
			if after < end {
				t.Fatalf("passed %v before the expiry", end-after)
			}
			break
		}
	}
	if dropped == 0 {
		t.Error("nothing was dropped")
	}
}

// Whole lists are exchanged while packets pass whose source is on both: every one is dropped.
func TestGateExchangeIsAtomic(t *testing.T) {
	r := gated(t, nil)
	var lists [2][]GateEntry
	for i := range 3000 {
		lists[0] = append(lists[0], deny(fmt.Sprintf("10.%d.%d.0/24", i>>8, i&255))...)
		lists[1] = append(lists[1], deny(fmt.Sprintf("10.%d.%d.0/25", i>>8, i&255))...)
	}
	r.change(GateChange{Add: lists[0]})
	packet := from(udp4(t, 0), "10.5.9.1")
	before := r.counts()
	stop := make(chan struct{})
	var ran sync.WaitGroup
	ran.Add(1)
	go func() {
		defer ran.Done()
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, _, err := r.ports[0].prog.Benchmark(packet, 1000, nil); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for i := range 16 {
		r.change(GateChange{Add: lists[1-i%2], Remove: keysOf(lists[i%2])})
	}
	close(stop)
	ran.Wait()
	var dropped uint64
	for k, c := range r.counts() {
		n := c.Packets - before[k].Packets
		if k.reason.String() == "gate_denied" {
			dropped = n
		} else if n > 0 {
			t.Errorf("%d packets passed as %s", n, k.reason)
		}
	}
	if dropped < 1000 {
		t.Errorf("%d packets dropped: the test has looked at nothing", dropped)
	}
	t.Logf("%d packets, all dropped, during 16 exchanges of 3000 entries", dropped)
}

func TestGateHasNoRoom(t *testing.T) {
	r := ownRig(t, func(o *Options) { o.GateEntries = 3 })
	r.change(GateChange{Add: deny("192.0.2.0/24", "192.0.3.0/24")})
	if err := r.ChangeGate(GateChange{Add: deny("10.0.0.0/8", "11.0.0.0/8"), Remove: keysOf(deny("192.0.2.0/24"))}); err == nil {
		t.Error("four entries have room for three")
	}
	if err := r.ChangeGate(GateChange{Add: deny("10.0.0.0/8", "2001:db8::/32")}); err != nil {
		t.Error(err)
	}
	if n := len(r.gateEntries()); n != 4 {
		t.Errorf("%d entries, want 4", n)
	}
	for _, bad := range []GateChange{
		{Add: []GateEntry{{GateKey: GateKey{Prefix: netip.MustParsePrefix("10.0.0.1/8")}}}},
		{Add: []GateEntry{{}}},
		{Settings: &GateSettings{Rates: GateRates{Packets: 0.5}}},
		{Settings: &GateSettings{Rates: GateRates{Burst: -1}}},
		{Settings: &GateSettings{Rates: GateRates{Prefix4: 33}}},
	} {
		if err := r.ChangeGate(bad); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}
