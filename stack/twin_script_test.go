package stack_test

import (
	"fmt"
	"strings"
	"time"

	"penstock/internal/wire"
)

const (
	fACK = wire.FlagACK
	fPSH = wire.FlagPSH | wire.FlagACK
	fSYN = wire.FlagSYN
	fFIN = wire.FlagFIN | wire.FlagACK
	fRST = wire.FlagRST
)

var usual = [][]byte{optMSS(1460), optSACK, {wire.OptNop}, optScale}

// established begins a script with an open connection.
func established(play func(p *peer)) func(p *peer) {
	return func(p *peer) {
		if p.open(usual...) {
			play(p)
		}
	}
}

// stamped is established, with timestamps.
func stamped(play func(p *peer)) func(p *peer) {
	return func(p *peer) {
		p.ts = true
		if p.open(usual...) {
			play(p)
		}
	}
}

// old sends a segment whose timestamp is older than the last one (PAWS).
func (p *peer) old(flags wire.TCPFlags, seq, ack int, payload string) {
	p.mu.Lock()
	echo := p.echo
	p.mu.Unlock()
	p.ts = false
	p.send(flags, seq, ack, payload, []byte{wire.OptNop, wire.OptNop}, optTS(p.stamp-500, echo))
	p.ts = true
}

// acknowledge makes everything be acknowledged at once, by segments with that
// sequence number.
func (p *peer) acknowledge(seq int) {
	p.mu.Lock()
	p.acks, p.next1, p.acked = true, seq, 1
	p.mu.Unlock()
	p.acknowledgeNow()
}

// reach notes how far what the other end sends goes: it has to be there, and
// nothing beyond.
func (p *peer) reach(step string, want int) {
	end, quietSince := 0, time.Now()
	for begin := time.Now(); time.Since(begin) < late && (end < want || time.Since(quietSince) < quiet); time.Sleep(time.Millisecond) {
		p.mu.Lock()
		for ; p.at < len(p.got); p.at++ {
			t := p.got[p.at].tcp
			if e := int(t.Seq()-p.isn) - 1 + len(t.Payload()); e > end {
				end, quietSince = e, time.Now()
			}
		}
		p.mu.Unlock()
	}
	p.note(step, fmt.Sprintf("%d bytes", end))
}

// fromClient is what a client may do to a server. RFC numbers say what the answer
// should be.
var fromClient = []stimulus{
	{"SYN with every option", "", func(p *peer) {
		p.send(fSYN, -1, 0, "", join(usual...), optTS(5, 0))
		p.hear("SYN")
	}},
	{"SYN without options", "", func(p *peer) { p.send(fSYN, -1, 0, ""); p.hear("SYN") }},
	{"SYN with data", "", func(p *peer) { p.send(fSYN, -1, 0, "early", usual...); p.hear("SYN") }},
	{"SYN that offers ECN", "", func(p *peer) { p.send(fSYN|wire.FlagECE|wire.FlagCWR, -1, 0, "", usual...); p.hear("SYN") }},
	{"SYN and FIN", "", func(p *peer) { p.send(fSYN|wire.FlagFIN, -1, 0, ""); p.hear("SYN, FIN") }},
	{"SYN and RST", "", func(p *peer) { p.send(fSYN|fRST, -1, 0, ""); p.hear("SYN, RST") }},
	{"no flags", "", func(p *peer) { p.send(0, 0, 0, ""); p.hear("nothing") }},
	{"ACK of no connection", "", func(p *peer) { p.send(fACK, 0, 0, ""); p.hear("ACK") }},
	{"FIN of no connection", "", func(p *peer) { p.send(wire.FlagFIN, 0, 0, ""); p.hear("FIN") }},
	{"SYN repeated", "", func(p *peer) {
		p.send(fSYN, -1, 0, "", usual...)
		p.hear("SYN")
		p.send(fSYN, -1, 0, "", usual...)
		p.hear("the same SYN")
	}},
	{"handshake with a wrong ACK", "", func(p *peer) {
		p.send(fSYN, -1, 0, "", usual...)
		if s, ok := p.next(fSYN | fACK); ok {
			p.isn, p.known = s.tcp.Seq(), true
			p.send(fACK, 0, 1000, "")
			p.hear("ACK")
		}
	}},
	{"handshake with a reset", "", func(p *peer) {
		p.send(fSYN, -1, 0, "", usual...)
		if s, ok := p.next(fSYN | fACK); ok {
			p.isn, p.known = s.tcp.Seq(), true
			p.send(fRST, 0, 0, "")
			p.hear("RST")
			p.send(fACK, 0, 0, "")
			p.hear("ACK")
		}
	}},
	{"handshake with data in its ACK", "", func(p *peer) {
		p.send(fSYN, -1, 0, "", usual...)
		if s, ok := p.next(fSYN | fACK); ok {
			p.isn, p.known = s.tcp.Seq(), true
			p.send(fPSH, 0, 0, "hello")
			p.hear("data")
			p.heard()
		}
	}},
	{"data", "", established(func(p *peer) { p.send(fPSH, 0, 0, "hello"); p.hear("data"); p.heard() })},
	{"data with a gap", "", established(func(p *peer) {
		p.send(fPSH, 5, 0, "world")
		p.hear("the second half")
		p.send(fPSH, 0, 0, "hello")
		p.hear("the first half")
		p.heard()
	})},
	{"data that overlaps and differs", "", established(func(p *peer) {
		p.send(fPSH, 0, 0, "aaaaaaaaaa")
		p.hear("10 bytes")
		p.send(fPSH, 5, 0, "bbbbbbbbbb")
		p.hear("10 others, 5 bytes on")
		p.heard()
	})},
	{"overlap in front of a gap", "", established(func(p *peer) {
		p.send(fPSH, 5, 0, "ccccc")
		p.hear("bytes 5 to 10")
		p.send(fPSH, 0, 0, "dddddddddd")
		p.hear("bytes 0 to 10, others")
		p.heard()
	})},
	{"data again", "", established(func(p *peer) {
		p.send(fPSH, 0, 0, "hello")
		p.hear("data")
		p.send(fPSH, 0, 0, "hello")
		p.hear("the same data")
		p.heard()
	})},
	{"data beyond the window", "", established(func(p *peer) { p.send(fPSH, 64<<20, 0, "far"); p.hear("data"); p.heard() })},
	{"data without ACK", "", established(func(p *peer) { p.send(wire.FlagPSH, 0, 0, "hello"); p.hear("data"); p.heard() })},
	{"tiny segments", "", established(func(p *peer) {
		for i := range 200 {
			p.send(fPSH, i, 0, "x")
		}
		end := time.Now().Add(late)
		for last := 0; last < 201 && time.Now().Before(end); {
			if s, ok := p.next(fACK); ok {
				last = int(s.tcp.Ack() - p.iss)
			}
		}
		p.send(fPSH, 200, 0, "y")
		p.hear("200 bytes in 200 segments, and one")
		p.heard()
	})},
	{"data with a wrong checksum", "", established(func(p *peer) {
		p.bend(fPSH, 0, 0, "hello", true, func(t wire.TCP) { t.SetChecksum(t.Checksum() ^ 0x5555) })
		p.hear("data")
	})},
	{"RST in its place", "", established(func(p *peer) {
		p.send(fRST, 0, 0, "")
		p.hear("RST")
		p.heard()
		p.send(fPSH, 0, 0, "more")
		p.hear("data behind it")
	})},
	{"RST elsewhere in the window", "", established(func(p *peer) { p.send(fRST, 1000, 0, ""); p.hear("RST"); p.heard() })},
	{"RST outside of the window", "", established(func(p *peer) { p.send(fRST, 64<<20, 0, ""); p.hear("RST"); p.heard() })},
	{"RST before the window", "", established(func(p *peer) { p.send(fRST, -1000, 0, ""); p.hear("RST"); p.heard() })},
	{"SYN in the window", "", established(func(p *peer) { p.send(fSYN, 1000, 0, "", usual...); p.hear("SYN"); p.heard() })},
	{"SYN in its place", "", established(func(p *peer) { p.send(fSYN, 0, 0, "", usual...); p.hear("SYN"); p.heard() })},
	{"SYN-ACK", "", established(func(p *peer) { p.send(fSYN|fACK, 0, 0, ""); p.hear("SYN-ACK"); p.heard() })},
	{"FIN", "", established(func(p *peer) {
		p.send(fFIN, 0, 0, "")
		p.hear("FIN")
		p.heard()
	})},
	{"FIN beyond the window", "", established(func(p *peer) { p.send(fFIN, 64<<20, 0, ""); p.hear("FIN"); p.heard() })},
	{"FIN behind a gap", "", established(func(p *peer) {
		p.send(fFIN, 5, 0, "")
		p.hear("FIN")
		p.heard()
		p.send(fPSH, 0, 0, "hello")
		p.hear("what was missing")
		p.heard()
	})},
	{"data after FIN", "answers late", established(func(p *peer) {
		p.acknowledge(1)
		p.send(fFIN, 0, 0, "")
		p.hear("FIN")
		p.send(fPSH, 1, 5, "more")
		p.hear("data")
	})},
	{"half-close", "answers late", established(func(p *peer) {
		p.acknowledge(1)
		p.send(fFIN, 0, 0, "")
		p.hear("FIN")
		p.heard()
	})},
	{"simultaneous close", "closes", established(func(p *peer) {
		p.hear("nothing")
		p.send(fFIN, 0, 0, "")
		p.hear("FIN that acknowledges none")
		p.send(fACK, 1, 1, "")
		p.hear("ACK")
	})},
	{"data after the server has closed", "closes", established(func(p *peer) {
		p.hear("nothing")
		p.send(fPSH, 0, 1, "more")
		p.hear("data")
	})},
	{"SYN in TIME_WAIT", "closes", established(func(p *peer) {
		p.hear("nothing")
		p.send(fFIN, 0, 1, "")
		p.hear("FIN")
		p.send(fFIN, 0, 1, "")
		p.hear("FIN again")
		p.known = false
		p.iss += 1 << 19
		p.send(fSYN, -1, 0, "", usual...)
		p.hear("SYN")
	})},
	{"old ACK", "says hello", established(func(p *peer) {
		p.acknowledge(0)
		p.reach("all of it", 5)
		p.send(fPSH, 0, 2, "hello")
		p.hear("data with an older ACK")
		p.heard()
	})},
	{"very old ACK", "", established(func(p *peer) {
		p.send(fPSH, 0, -1<<30, "hello")
		p.hear("data with an ACK from long ago")
		p.heard()
	})},
	{"ACK of what was not sent", "", established(func(p *peer) {
		p.send(fPSH, 0, 5000, "hello")
		p.hear("data")
		p.heard()
	})},
	{"urgent data", "", established(func(p *peer) {
		p.bend(fPSH|wire.FlagURG, 0, 0, "abc", false, func(t wire.TCP) { t[19] = 3 })
		p.hear("URG")
		p.heard()
	})},
	{"timestamps missing", "", stamped(func(p *peer) {
		p.ts = false
		p.send(fPSH, 0, 0, "hello")
		p.hear("data")
		p.heard()
	})},
	{"timestamps from the past", "", stamped(func(p *peer) {
		p.send(fPSH, 0, 0, "hello")
		p.hear("data")
		p.old(fPSH, 5, 0, "world")
		p.hear("data with an old one")
		p.heard()
	})},
	{"RST with a timestamp from the past", "", stamped(func(p *peer) {
		p.send(fPSH, 0, 0, "hello")
		p.hear("data")
		p.old(fRST, 5, 0, "")
		p.hear("RST")
		p.heard()
	})},
	{"keep-alive", "", established(func(p *peer) { p.send(fACK, -1, 0, ""); p.hear("ACK of one byte before") })},
	{"keep-alive with a byte", "", established(func(p *peer) {
		p.send(fPSH, 0, 0, "hello")
		p.hear("data")
		p.send(fACK, 4, 0, "x")
		p.hear("a byte that was there")
		p.heard()
	})},
	{"zero window", "says hello", func(p *peer) {
		p.frame.window = 0
		if !p.open(usual...) {
			return
		}
		if s, ok := p.next(fACK); ok { // a probe
			p.note("a probe of", map[bool]string{true: "no byte", false: "a byte"}[len(s.tcp.Payload()) == 0])
		}
		p.send(fACK, 0, 0, "")
		p.frame.window = 65535
		p.send(fACK, 0, 0, "")
		p.hear("the window opens")
	}},
	{"window shrinks", "sends 3000", func(p *peer) {
		p.frame.window = 1460
		if !p.open(optMSS(1460)) {
			return
		}
		p.reach("a window of 1460", 1460)
		p.frame.window = 100
		p.send(fACK, 0, 1460, "")
		p.reach("a window of 100", 1560)
	}},
	{"SACK reneging", "sends 3000", established(func(p *peer) {
		p.reach("a large window", 3000)
		p.send(fACK, 0, 0, "", []byte{wire.OptNop, wire.OptNop, 5, 10}, be32(p.isn+1461), be32(p.isn+2921))
		p.next(fACK) // the first segment again
		p.send(fACK, 0, 1460, "")
		s, ok := p.next(fACK)
		for ok && s.tcp.Seq()-p.isn != 1461 {
			s, ok = p.next(fACK)
		}
		if ok {
			p.note("what was reneged", "comes again")
		}
	})},
	{"many segments out of order", "", established(func(p *peer) {
		for i := 20; i > 0; i-- {
			p.send(fPSH, 10*i, 0, strings.Repeat("o", 10))
		}
		for end := time.Now().Add(late); time.Now().Before(end); {
			if s, ok := p.next(fACK); ok && strings.HasSuffix(p.describe(s.tcp), " 11-211") {
				break
			}
		}
		p.hear("20 segments from the back")
		p.send(fPSH, 0, 0, strings.Repeat("i", 10))
		p.hear("the first one")
		p.heard()
	})},
}

func be32(v uint32) []byte { return []byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)} }

// answered begins a script with the connection of a client.
func answered(play func(p *peer)) func(p *peer) {
	return func(p *peer) {
		if p.answer(true, usual...) {
			play(p)
		}
	}
}

// fromServer is what a server may do to a client.
var fromServer = []stimulus{
	{"refusal", "", func(p *peer) {
		if p.answer(false) {
			p.send(fRST|fACK, -1, 0, "")
			p.hear("RST")
			p.heard()
		}
	}},
	{"refusal of something else", "", func(p *peer) {
		if p.answer(false) {
			p.send(fRST|fACK, -1, 1000, "")
			p.hear("RST with a wrong ACK")
			p.heard()
		}
	}},
	{"reset without ACK", "", func(p *peer) {
		if p.answer(false) {
			p.send(fRST, 0, 0, "")
			p.hear("RST")
			p.heard()
		}
	}},
	{"SYN-ACK of something else", "", func(p *peer) {
		if p.answer(false) {
			p.send(fSYN|fACK, -1, 1000, "", usual...)
			p.hear("SYN-ACK with a wrong ACK")
			p.heard()
		}
	}},
	{"simultaneous open", "", func(p *peer) {
		if p.answer(false) {
			p.send(fSYN, -1, 0, "", usual...)
			p.hear("SYN")
			p.heard()
		}
	}},
	{"data instead of a SYN-ACK", "", func(p *peer) {
		if p.answer(false) {
			p.send(fPSH, 0, 0, "early")
			p.hear("data")
			p.heard()
		}
	}},
	{"SYN-ACK", "", answered(func(p *peer) { p.hear("nothing more"); p.heard() })},
	{"SYN-ACK again", "", answered(func(p *peer) { p.send(fSYN|fACK, -1, 0, "", usual...); p.hear("SYN-ACK"); p.heard() })},
	{"data", "", answered(func(p *peer) { p.send(fPSH, 0, 0, "hello"); p.hear("data"); p.heard() })},
	{"data with a gap", "", answered(func(p *peer) {
		p.send(fPSH, 5, 0, "world")
		p.hear("the second half")
		p.send(fPSH, 0, 0, "hello")
		p.hear("the first half")
		p.heard()
	})},
	{"data beyond the window", "", answered(func(p *peer) { p.send(fPSH, 64<<20, 0, "far"); p.hear("data") })},
	{"RST in its place", "", answered(func(p *peer) { p.send(fRST, 0, 0, ""); p.hear("RST"); p.heard() })},
	{"RST elsewhere in the window", "", answered(func(p *peer) { p.send(fRST, 1000, 0, ""); p.hear("RST"); p.heard() })},
	{"RST outside of the window", "", answered(func(p *peer) { p.send(fRST, 64<<20, 0, ""); p.hear("RST"); p.heard() })},
	{"SYN in the window", "", answered(func(p *peer) { p.send(fSYN, 1000, 0, "", usual...); p.hear("SYN"); p.heard() })},
	{"ACK of what was not sent", "", answered(func(p *peer) { p.send(fPSH, 0, 5000, "hello"); p.hear("data"); p.heard() })},
	{"FIN", "", answered(func(p *peer) { p.send(fFIN, 0, 0, ""); p.hear("FIN"); p.heard() })},
	{"half-close", "answers late", answered(func(p *peer) { p.acknowledge(1); p.send(fFIN, 0, 0, ""); p.hear("FIN"); p.heard() })},
	{"data to a client that has closed", "closes", answered(func(p *peer) {
		p.hear("nothing")
		p.send(fPSH, 0, 1, "more")
		p.hear("data")
	})},
	{"simultaneous close", "closes", answered(func(p *peer) {
		p.hear("nothing")
		p.send(fFIN, 0, 0, "")
		p.hear("FIN that acknowledges none")
		p.send(fACK, 1, 1, "")
		p.hear("ACK")
	})},
	{"zero window", "says hello", func(p *peer) {
		p.frame.window = 0
		if !p.answer(true, usual...) {
			return
		}
		if s, ok := p.next(fACK); ok {
			p.note("a probe of", map[bool]string{true: "no byte", false: "a byte"}[len(s.tcp.Payload()) == 0])
		}
		p.frame.window = 65535
		p.send(fACK, 0, 0, "")
		p.hear("the window opens")
	}},
	{"no options", "", func(p *peer) {
		if p.answer(true) {
			p.send(fPSH, 5, 0, "world")
			p.hear("data with a gap")
		}
	}},
}
