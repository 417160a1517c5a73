package pipelinetest

import (
	"penstock/internal/wire"
	"penstock/pipeline"
)

// Arrival is a frame and the port that it comes in by.
type Arrival struct {
	In    pipeline.PortID
	Frame []byte
}

// Traffic returns one or more packets of every kind that a stage must be able
// to meet, in an order that makes sense: connections from beginning to end,
// with the client on port 0. All checksums are right.
func Traffic() []Arrival {
	var list []Arrival
	client := func(frames ...[]byte) {
		for _, f := range frames {
			list = append(list, Arrival{0, f})
		}
	}
	server := func(frames ...[]byte) {
		for _, f := range frames {
			list = append(list, Arrival{1, f})
		}
	}
	const syn, ack, psh, fin, rst = wire.FlagSYN, wire.FlagACK, wire.FlagPSH, wire.FlagFIN, wire.FlagRST
	for _, a := range [][2]string{{"10.0.0.1:40000", "192.0.2.10:80"}, {"[2001:db8::1]:40000", "[2001:db8:1::10]:443"}} {
		c, s := a[0], a[1]
		client(TCP(c, s, syn, 1000, MSS(1460), SACKPermitted(), Timestamps(1, 0), WindowScale(7)))
		server(TCP(s, c, syn|ack, 5000, Ack(1001), MSS(1440), SACKPermitted(), Timestamps(9, 1), WindowScale(8)))
		client(
			TCP(c, s, ack, 1001, Ack(5001), Timestamps(2, 9)),
			TCP(c, s, ack|psh, 1001, Ack(5001), Payload("GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")),
		)
		server(
			TCP(s, c, ack, 5001, Ack(1038), Window(0)),
			TCP(s, c, ack, 5001, Ack(1038), PayloadLen(1400), TOS(0xb8)),
			TCP(s, c, ack, 6401, Ack(1038), SACK(1100, 1200), PayloadLen(1)),
		)
		client(
			TCP(c, s, ack|fin, 1038, Ack(6402)),
			TCP(c, s, ack|wire.FlagURG, 1038, Ack(6402), Urgent(1), PayloadLen(2)),
		)
		server(TCP(s, c, rst, 6402), TCP(s, c, rst|ack, 6402, Ack(1039)))
		client(TCP(c, s, 0, 1), TCP(c, s, fin|psh|wire.FlagURG, 1), TCP(c, s, syn|fin, 1))
		client(UDP(c, s, PayloadLen(30)), UDP(c, s), UDP(c, s, PayloadLen(1472)))
		server(UDP(s, c, PayloadLen(500)))
		client(Fragments(UDP(c, s, PayloadLen(2000)), 800)...)
		client(Fragments(TCP(c, s, syn, 1, PayloadLen(100)), 48)...)
	}
	client(UDP("10.0.0.1:53", "192.0.2.10:53", NoUDPChecksum(), PayloadLen(3)))
	client(Ping("10.0.0.1", "192.0.2.10", 7, 1), Ping("2001:db8::1", "2001:db8:1::10", 7, 1, PayloadLen(56)))
	server(Pong("192.0.2.10", "10.0.0.1", 7, 1), Pong("2001:db8:1::10", "2001:db8::1", 7, 1, PayloadLen(56)))
	about := TCP("10.0.0.1:40000", "192.0.2.10:80", syn, 1000)
	about6 := TCP("[2001:db8::1]:40000", "[2001:db8:1::10]:443", syn, 1000)
	server(
		ICMPError("203.0.113.1", 3, 1, [4]byte{}, about),
		ICMPError("203.0.113.1", 3, 4, [4]byte{2: 5, 3: 0}, about),
		ICMPError("2001:db8:ffff::1", 2, 0, [4]byte{2: 5, 3: 0}, about6),
	)
	pad := []byte{0, 1, 4, 0, 0, 0, 0}
	client(
		TCP("[2001:db8::1]:1", "[2001:db8::2]:2", syn, 1, Extension(wire.ProtoHopByHop, pad...), Extension(wire.ProtoDestOpts, pad...)),
		UDP("[2001:db8::1]:1", "[2001:db8::2]:2", Extension(wire.ProtoRouting, 0, 4, 0, 0, 0, 0, 0)),
		UDP("[2001:db8::1]:1", "[2001:db8::2]:2", Extension(wire.ProtoFragment, 0, 0, 0, 1, 2, 3, 4)), // atomic
		TCP("10.0.0.1:40001", "192.0.2.10:80", syn, 1, VLAN(10)),
		TCP("10.0.0.1:40001", "192.0.2.10:80", syn, 1, VLAN(10, 20)),
		TCP("10.0.0.1:40001", "192.0.2.10:80", syn, 1, VLAN(1, 2, 3)), // not IP for us
		UDP("10.0.0.1:67", "255.255.255.255:68"),
		UDP("10.0.0.1:5353", "224.0.0.251:5353"),
		TCP("10.0.0.1:80", "10.0.0.1:80", syn, 1), // land
		TCP("127.0.0.1:80", "192.0.2.10:80", syn, 1),
		UDP("10.0.0.1:0", "192.0.2.10:0"),
		IP("10.0.0.1", "192.0.2.10", 47, PayloadLen(20)),
		IP("10.0.0.1", "192.0.2.10", 50),
		IP("2001:db8::1", "2001:db8::2", 59),
		ARP("10.0.0.1", "10.0.0.2"),
		Ethernet(0x88cc, make([]byte, 46)),
		TCP("10.0.0.1:40002", "192.0.2.10:80", syn, 1, DontFragment(), TTL(1), ID(0xffff)),
	)
	return list
}
