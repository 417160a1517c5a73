package bpf

import (
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
)

func TestExpire(t *testing.T) {
	const never = time.Duration(-1)
	times := Timeouts{
		TCPOpening: 30 * time.Second, TCPEstablished: 1000 * time.Second, TCPHalfClosed: 100 * time.Second, TCPClosed: 10 * time.Second,
		UDP: 40 * time.Second, UDPReplied: 400 * time.Second, ICMP: 50 * time.Second, Other: 500 * time.Second,
	}
	type pkt struct {
		port   int
		packet []byte
	}
	c := func(p []byte) pkt { return pkt{0, p} }
	s := func(p []byte) pkt { return pkt{1, p} }
	echo := func(kind uint8) []byte {
		return build(t, eth(layers.EthernetTypeIPv4), ip4(layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, 0), Id: 77}, payload(8))
	}
	handshake := []pkt{c(tcp4(t, "S", 0)), s(tcp4Reply(t, "SA", 0)), c(tcp4(t, "A", 0))}
	and := func(more ...pkt) []pkt { return append(append([]pkt(nil), handshake...), more...) }
	r := newRig(t, func(o *Options) { o.Rules = all })
	for _, row := range []struct {
		name    string
		packets []pkt
		after   time.Duration // removed when idle for longer than this, or never (within Other)
	}{
		{"SYN only", []pkt{c(tcp4(t, "S", 0))}, times.TCPOpening},
		{"established", handshake, times.TCPEstablished},
		{"IPv6, SYN only", []pkt{c(tcp6(t, "S", 0))}, times.TCPOpening},
		{"FIN of the client", and(c(tcp4(t, "FA", 0))), times.TCPHalfClosed},
		{"FIN of the server", and(s(tcp4Reply(t, "FA", 0))), times.TCPHalfClosed},
		{"both FIN", and(c(tcp4(t, "FA", 0)), s(tcp4Reply(t, "FA", 0))), times.TCPClosed},
		{"RST of the client", and(c(tcp4(t, "R", 0))), times.TCPClosed},
		{"RST of the server", and(s(numbered(tcp4Reply(t, "RA", 0), 1001, 0))), times.TCPClosed},
		{"refused", []pkt{c(tcp4(t, "S", 0)), s(tcp4Reply(t, "RA", 0))}, times.TCPClosed},
		{"reopened", and(c(tcp4(t, "R", 0)), c(tcp4(t, "S", 0)), s(tcp4Reply(t, "SA", 0))), times.TCPEstablished},
		{"UDP", []pkt{c(udp4(t, 0)), c(udp4(t, 0))}, times.UDP},
		{"UDP, replied", []pkt{c(udp4(t, 0)), s(reversedUDP(t))}, times.UDPReplied},
		{"echo", []pkt{c(echo(8))}, times.ICMP},
		{"GRE", []pkt{c(build(t, eth(layers.EthernetTypeIPv4), ip4(47), payload(20)))}, times.Other},
		{"nothing", nil, never},
	} {
		t.Run(row.name, func(t *testing.T) {
			r.t = t
			r.forget()
			for _, p := range row.packets {
				if o := r.run(p.port, p.packet); o.verdict != VerdictSocket {
					t.Fatalf("got %v", o.fate())
				}
			}
			now := Now()
			expire := func(at time.Duration, want int) {
				t.Helper()
				if n, err := r.Expire(at, times, nil); err != nil || n != want {
					t.Errorf("expire after %v: %d, %v; want %d", at-now, n, err, want)
				}
			}
			if row.after == never {
				expire(now+2000*time.Second, 0)
				return
			}
			// The coarse clock lags by up to a tick.
			expire(now-time.Hour, 0)
			expire(now+row.after-100*time.Millisecond, 0)
			if n := len(r.entries()); n != 2 {
				t.Errorf("%d entries, want 2", n)
			}
			expire(now+row.after+100*time.Millisecond, 1)
			if n := len(r.entries()); n != 0 {
				t.Errorf("%d entries, want 0", n)
			}
			expire(now+row.after+100*time.Millisecond, 0)
		})
	}
}

// A flow is idle if both directions are.
func TestExpireLooksAtBothDirections(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules = all })
	syn, reply := tcp4(t, "S", 0), tcp4Reply(t, "SA", 0)
	for _, fresh := range [][]byte{syn, reply} {
		r.forget()
		r.run(0, syn)
		r.run(1, reply)
		for _, packet := range [][]byte{syn, reply} {
			k := flowOf(t, packet).raw()
			v, err := r.flow(&k)
			if err != nil {
				t.Fatal(err)
			}
			v.LastSeen = uint64(Now() - 3*time.Hour)
			if flowOf(t, packet) == flowOf(t, fresh) {
				v.LastSeen = uint64(Now() - time.Minute)
			}
			if err := r.flows.Put(&k, v); err != nil {
				t.Fatal(err)
			}
		}
		if n, err := r.Expire(Now(), Timeouts{}, nil); n != 0 || err != nil || len(r.entries()) != 2 {
			t.Errorf("one direction is in use: %d removed, %v, %d entries left", n, err, len(r.entries()))
		}
		if n, err := r.Expire(Now()+3*time.Hour, Timeouts{}, nil); n != 1 || err != nil || len(r.entries()) != 0 {
			t.Errorf("both are idle: %d removed, %v, %d entries left", n, err, len(r.entries()))
		}
	}
}

// One direction that was left alone is removed too.
func TestExpireRemovesHalfAFlow(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules = all })
	for _, lost := range [][]byte{tcp4(t, "S", 0), tcp4Reply(t, "S", 0)} {
		r.run(0, tcp4(t, "S", 0))
		k := flowOf(t, lost).raw()
		if err := r.flows.Delete(&k); err != nil {
			t.Fatal(err)
		}
		if n, err := r.Expire(Now()+3*time.Hour, Timeouts{}, nil); n != 1 || err != nil || len(r.entries()) != 0 {
			t.Errorf("%d removed, %v, %d entries left; want 1 and none", n, err, len(r.entries()))
		}
	}
}

// More flows than one system call reads, half of them idle.
func TestExpireMany(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules, o.MaxFlows = all, 16384 })
	const n = 6000
	packet := udp4(t, 0)
	for i := range n {
		r.raw(0, changed(packet, 34, byte(i>>8), byte(i)))
	}
	if got := len(r.entries()); got != 2*n {
		t.Fatalf("%d entries, want %d", got, 2*n)
	}
	old := 0
	for k, e := range r.entries() {
		if e.Reply || k.SrcPort%2 == 0 {
			continue
		}
		old++
		for _, key := range []FlowKey{k, k.Reverse()} {
			raw := key.raw()
			v, err := r.flow(&raw)
			if err != nil {
				t.Fatal(err)
			}
			v.LastSeen -= uint64(time.Hour)
			if err := r.flows.Put(&raw, v); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got, err := r.Expire(Now(), Timeouts{}, nil); got != old || err != nil {
		t.Errorf("removed %d, %v; want %d", got, err, old)
	}
	if got := len(r.entries()); got != 2*(n-old) {
		t.Errorf("%d entries left, want %d", got, 2*(n-old))
	}
}
