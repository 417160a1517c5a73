package pipelinetest

import (
	"bytes"
	"testing"

	"penstock/internal/wire"
)

func TestBuild(t *testing.T) {
	const (
		c4, s4 = "10.0.0.1:1234", "10.0.0.2:80"
		c6, s6 = "[2001:db8::1]:1234", "[2001:db8::2]:80"
	)
	pad := []byte{0, 1, 4, 0, 0, 0, 0}
	syn := TCP(c4, s4, wire.FlagSYN, 100)
	rows := []struct {
		name  string
		frame []byte
		want  string
		sum   bool // the checksums are right
	}{
		{"syn", syn, "IP 10.0.0.1.1234 > 10.0.0.2.80: Flags [S], seq 100, win 64240, length 0", true},
		{"options", TCP(s4, c4, wire.FlagSYN|wire.FlagACK, 7, Ack(101), MSS(1460), SACKPermitted(), WindowScale(7)),
			"IP 10.0.0.2.80 > 10.0.0.1.1234: Flags [S.], seq 7, ack 101, win 64240, options [mss 1460,sackOK,wscale 7,eol], length 0", true},
		{"timestamps and SACK", TCP(c4, s4, wire.FlagACK, 7, Ack(101), Timestamps(1, 2), SACK(10, 20)),
			"IP 10.0.0.1.1234 > 10.0.0.2.80: Flags [.], ack 101, win 64240, options [nop,nop,TS val 1 ecr 2,sack 1 {10:20},eol], length 0", true},
		{"data over IPv6", TCP(c6, s6, wire.FlagACK|wire.FlagPSH, 5, Ack(9), Window(10), Payload("GET /")),
			"IP6 2001:db8::1.1234 > 2001:db8::2.80: Flags [P.], seq 5:10, ack 9, win 10, length 5", true},
		{"extensions", TCP(c6, s6, wire.FlagSYN, 5, Extension(wire.ProtoHopByHop, pad...), Extension(wire.ProtoDestOpts, pad...)),
			"IP6 2001:db8::1.1234 > 2001:db8::2.80: Flags [S], seq 5, win 64240, length 0", true},
		{"udp", UDP(c4, s4, Payload("abc")), "IP 10.0.0.1.1234 > 10.0.0.2.80: UDP, length 3", true},
		{"udp without checksum", UDP(c4, s4, Payload("abc"), NoUDPChecksum()), "IP 10.0.0.1.1234 > 10.0.0.2.80: UDP, length 3", true},
		{"udp over IPv6", UDP(c6, s6, PayloadLen(300)), "IP6 2001:db8::1.1234 > 2001:db8::2.80: UDP, length 300", true},
		{"ping", Ping("10.0.0.1", "10.0.0.2", 3, 4), "IP 10.0.0.1 > 10.0.0.2: ICMP echo request, id 3, seq 4, length 8", true},
		{"pong over IPv6", Pong("2001:db8::1", "2001:db8::2", 3, 4, Payload("x")),
			"IP6 2001:db8::1 > 2001:db8::2: ICMP6, echo reply, id 3, seq 4, length 9", true},
		{"error", ICMPError("10.0.0.9", 3, 4, [4]byte{2: 5, 3: 0xdc}, syn),
			"IP 10.0.0.9 > 10.0.0.1: ICMP type 3 code 4 about tcp 10.0.0.1:1234 > 10.0.0.2:80, length 36", true},
		{"tagged", TCP(c4, s4, wire.FlagRST, 1, VLAN(10, 20)), "vlan 10: vlan 20: IP 10.0.0.1.1234 > 10.0.0.2.80: Flags [R], seq 1, win 64240, length 0", true},
		{"bad IP checksum", UDP(c4, s4, BadIPChecksum()), "IP 10.0.0.1.1234 > 10.0.0.2.80: UDP, length 0", false},
		{"bad TCP checksum", TCP(c6, s6, wire.FlagSYN, 1, BadChecksum(), Extension(wire.ProtoDestOpts, pad...)),
			"IP6 2001:db8::1.1234 > 2001:db8::2.80: Flags [S], seq 1, win 64240, length 0", false},
		{"bad ICMP checksum", Ping("10.0.0.1", "10.0.0.2", 3, 4, BadChecksum()), "IP 10.0.0.1 > 10.0.0.2: ICMP echo request, id 3, seq 4, length 8", false},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			if got := wire.Summary(r.frame); got != r.want {
				t.Errorf("got  %s\nwant %s", got, r.want)
			}
			var h wire.Headers
			if f := h.Parse(r.frame); f != wire.FaultNone {
				t.Fatal(f)
			}
			sum := wire.VerifyL4(r.frame, &h) && (h.IPVersion == 6 || wire.VerifyIPv4(r.frame[h.L3:]))
			if sum != r.sum {
				t.Errorf("checksums right: %v, want %v", sum, r.sum)
			}
		})
	}
	if got := wire.Summary(ARP("10.0.0.1", "10.0.0.2")); got != "ARP, Request who-has 10.0.0.2 tell 10.0.0.1, length 28" {
		t.Error(got)
	}
	if got := wire.Summary(IP("10.0.0.1", "10.0.0.2", 47, PayloadLen(4))); got != "IP 10.0.0.1 > 10.0.0.2: ip-proto-47, length 4" {
		t.Error(got)
	}
	if got, want := Tagged(syn, 10, 20), TCP(c4, s4, wire.FlagSYN, 100, VLAN(10, 20)); !bytes.Equal(got, want) {
		t.Errorf("% x\n% x", got, want)
	}
}

func TestFragments(t *testing.T) {
	for _, b := range [][]byte{
		UDP("10.0.0.1:1", "10.0.0.2:2", PayloadLen(100), VLAN(7)),
		UDP("[2001:db8::1]:1", "[2001:db8::2]:2", PayloadLen(100)),
	} {
		var h wire.Headers
		h.Parse(b)
		want := b[h.L4:h.End]
		var got []byte
		parts := Fragments(b, 40)
		for i, p := range parts {
			var h wire.Headers
			if f := h.Parse(p); f != wire.FaultNone {
				t.Fatal(i, f)
			}
			at := h.L4
			if frag := wire.FragLater; i > 0 && h.Frag != frag || i == 0 && h.Frag != wire.FragFirst {
				t.Errorf("fragment %d is %v", i, h.Frag)
			}
			if h.IPVersion == 4 && !wire.VerifyIPv4(p[h.L3:]) {
				t.Error("header checksum")
			}
			got = append(got, p[at:h.End]...)
		}
		if len(parts) != 3 || !bytes.Equal(got, want) {
			t.Errorf("%d fragments, joined\n% x, want\n% x", len(parts), got, want)
		}
	}
}
