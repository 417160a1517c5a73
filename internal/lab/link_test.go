package lab_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"penstock/internal/lab"
	"penstock/internal/lab/labtest"
)

// pair builds two namespaces "a" and "b" with a veth between them, both ends "eth0",
// 10.1.0.1 and 10.1.0.2. Without IPv6 the kernel sends nothing by itself.
func pair(t *testing.T, o lab.VethOptions) (a, b *lab.NS) {
	t.Helper()
	l := labtest.NewForTest(t)
	var err error
	if a, err = l.NS("a"); err != nil {
		t.Fatal(err)
	}
	if b, err = l.NS("b"); err != nil {
		t.Fatal(err)
	}
	err = l.Veth(
		lab.End{NS: a, Name: "eth0", Addrs: prefix("10.1.0.1/24"), NoIPv6: true},
		lab.End{NS: b, Name: "eth0", Addrs: prefix("10.1.0.2/24"), NoIPv6: true}, o)
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

func TestOffloads(t *testing.T) {
	for _, c := range []struct {
		name string
		o    lab.VethOptions
		want map[string]bool
	}{
		{"wire", lab.VethOptions{}, map[string]bool{
			"tx-checksum-ip-generic": false, "tx-tcp-segmentation": false, "tx-tcp6-segmentation": false,
			"tx-generic-segmentation": false, "rx-gro": true}},
		{"kernel", lab.VethOptions{KernelOffloads: true}, map[string]bool{
			"tx-checksum-ip-generic": true, "tx-tcp-segmentation": true, "tx-tcp6-segmentation": true,
			"tx-generic-segmentation": true, "rx-gro": false}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := pair(t, c.o)
			for _, n := range []*lab.NS{a, b} {
				got, err := n.Offloads("eth0")
				if err != nil {
					t.Fatal(err)
				}
				for f, want := range c.want {
					if on, known := got[f]; on != want || !known {
						t.Errorf("%s: %s is %v (known: %v), want %v", n.Role(), f, on, known, want)
					}
				}
			}
		})
	}
	a, _ := pair(t, lab.VethOptions{})
	for _, bad := range []map[string]bool{{"lro": true}, {"no-such-feature": false}, {"tso": true}} {
		// tso without tx checksums is refused by the kernel, silently.
		if err := a.SetOffload("eth0", bad); err == nil {
			t.Errorf("SetOffload(%v): no error", bad)
		}
	}
	if err := a.SetOffload("eth0", map[string]bool{"tx": true, "tso": true, "gro": false, "lro": false}); err != nil {
		t.Error(err)
	}
	if err := a.SetOffload("eth9", map[string]bool{"tx": true}); err == nil {
		t.Error("SetOffload of no interface: no error")
	}
}

func TestLinkSettings(t *testing.T) {
	a, b := pair(t, lab.VethOptions{MTU: 3000, Queues: 2})
	var mtu int
	err := a.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		req, err := unix.NewIfreq("eth0")
		if err != nil {
			return err
		}
		err = unix.IoctlIfreq(fd, unix.SIOCGIFMTU, req)
		mtu = int(req.Uint32())
		return err
	})
	if err != nil || mtu != 3000 {
		t.Errorf("mtu is %d (%v), want 3000", mtu, err)
	}
	if err := a.SetMTU("eth0", 1280); err != nil {
		t.Error(err)
	}
	if err := a.SetLink("eth0", false); err != nil {
		t.Error(err)
	}
	raw, err := b.Raw("eth0")
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	before, err := b.LinkStats("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := raw.Write(frame(0x88b5, "into a wire that is down")); err != nil {
		t.Fatal(err)
	}
	after, err := b.LinkStats("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if after.TxDropped != before.TxDropped+1 {
		t.Errorf("tx dropped went from %d to %d, want one more", before.TxDropped, after.TxDropped)
	}
	if _, ok := after.Driver["rx_queue_1_xdp_packets"]; !ok {
		t.Errorf("driver counters %v: want those of two queues", after.Driver)
	}
	if err := a.SetLink("eth0", true); err != nil {
		t.Error(err)
	}
	if _, err := raw.Write(make([]byte, 9000)); err == nil {
		t.Error("a frame beyond the MTU: no error")
	}
	// A neighbour that is not there and a route over it: the frame goes to that MAC.
	mac := []byte{2, 0, 0, 0, 9, 9}
	gw := netip.MustParseAddr("10.1.0.9")
	if err := b.AddNeigh("eth0", gw, mac); err != nil {
		t.Fatal(err)
	}
	if err := b.AddRoute(netip.MustParsePrefix("192.0.2.0/24"), gw, "eth0"); err != nil {
		t.Fatal(err)
	}
	tap, err := a.Tap("eth0", 100)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := b.Dial("udp", "192.0.2.1:9")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("routed")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := tap.Wait(ctx, func(f lab.Frame) bool {
		return bytes.HasPrefix(f.Data, mac) && bytes.HasSuffix(f.Data, []byte("routed"))
	}); err != nil {
		t.Error(err)
	}
	if got, err := b.MAC("eth0"); err != nil || len(got) != 6 {
		t.Errorf("MAC: %v, %v", got, err)
	}
}

func TestTapAndRaw(t *testing.T) {
	a, b := pair(t, lab.VethOptions{})
	sent, err := a.Tap("eth0", 1000)
	if err != nil {
		t.Fatal(err)
	}
	received, err := b.Tap("eth0", 1000)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := a.Raw("eth0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	start := time.Now()
	tagged := binary.BigEndian.AppendUint16(nil, 0x8100)
	tagged = binary.BigEndian.AppendUint16(tagged, 5<<13|42)
	plain := frame(0x88b5, "local experimental ethertype, a MAC of nobody")
	vlan := slices.Concat(plain[:12], tagged, plain[12:])
	for _, want := range [][]byte{plain, vlan} {
		if _, err := raw.Write(want); err != nil {
			t.Fatal(err)
		}
		same := func(f lab.Frame) bool { return bytes.Equal(f.Data, want) }
		out, err := sent.Wait(ctx, same)
		if err != nil {
			t.Fatalf("sender's tap: %v\nit has %x", err, sent.Packets())
		}
		in, err := received.Wait(ctx, same)
		if err != nil {
			t.Fatalf("receiver's tap: %v\nit has %x", err, received.Packets())
		}
		if !out.Outgoing || in.Outgoing {
			t.Errorf("outgoing: %v at the sender, %v at the receiver", out.Outgoing, in.Outgoing)
		}
		if in.Time.Before(start.Add(-time.Second)) || in.Time.After(time.Now().Add(time.Second)) {
			t.Errorf("time %v is not now (%v)", in.Time, start)
		}
	}
	if err := received.Close(); err != nil {
		t.Error(err)
	}
	if _, err := received.Wait(ctx, func(lab.Frame) bool { return false }); err == nil {
		t.Error("wait on a closed tap: no error")
	}

	few, err := b.Tap("eth0", 2)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if _, err := raw.Write(plain); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "three frames missed", func() bool {
		missed, err := few.Missed()
		if err != nil {
			t.Fatal(err)
		}
		return missed >= 3
	})
	if got := len(few.Packets()); got != 2 {
		t.Errorf("tap of two has %d", got)
	}
	if _, err := b.Tap("eth9", 1); err == nil {
		t.Error("tap of no interface: no error")
	}
	if _, err := b.Tap("eth0", 0); err == nil {
		t.Error("tap of no frames: no error")
	}
}

// TestTapSurvivesLinkDown sets a link down and up under a tap.
func TestTapSurvivesLinkDown(t *testing.T) {
	a, b := pair(t, lab.VethOptions{})
	tap, err := b.Tap("eth0", 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, up := range []bool{false, true} {
		if err := b.SetLink("eth0", up); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := a.Raw("eth0")
	if err != nil {
		t.Fatal(err)
	}
	want := frame(0x88b5, "after the link came back")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	got := make(chan error, 1)
	go func() {
		_, err := tap.Wait(ctx, func(f lab.Frame) bool { return bytes.Equal(f.Data, want) })
		got <- err
	}()
	for {
		if _, err := raw.Write(want); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-got:
			if err != nil {
				t.Error(err)
			}
			return
		case <-time.After(10 * time.Millisecond): // carrier comes back in its own time
		}
	}
}

// TestNoMerge checks what a receiver's tap shows of a bulk transfer: with GRO
// packets larger than the MTU, with NoMerge the frames of the wire.
func TestNoMerge(t *testing.T) {
	for _, noMerge := range []bool{false, true} {
		a, b := pair(t, lab.VethOptions{NoMerge: noMerge})
		tap, err := b.Tap("eth0", 100000)
		if err != nil {
			t.Fatal(err)
		}
		exchangeTCP(t, a, b, netip.MustParseAddrPort("10.1.0.2:7001"))
		longest := 0
		for _, p := range tap.Packets() {
			longest = max(longest, len(p))
		}
		const wire = 1500 + 14
		if noMerge && longest != wire || !noMerge && longest <= wire {
			t.Errorf("NoMerge %v: the longest frame is %d bytes, the wire's is %d", noMerge, longest, wire)
		}
		if f, err := b.Offloads("eth0"); err != nil || !f["rx-gro"] {
			t.Errorf("GRO is %v (%v), want on: NAPI depends on it", f["rx-gro"], err)
		}
		if missed, err := tap.Missed(); missed > 0 || err != nil {
			t.Errorf("tap missed %d, %v", missed, err)
		}
	}
}

// frame builds an Ethernet frame for nobody, so that no IP stack takes it.
func frame(ethertype uint16, payload string) []byte {
	f := []byte{2, 0, 0, 0, 0xaa, 1, 2, 0, 0, 0, 0xaa, 2}
	f = binary.BigEndian.AppendUint16(f, ethertype)
	f = append(f, payload...)
	for len(f) < 60 {
		f = append(f, 0)
	}
	return f
}
