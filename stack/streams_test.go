package stack_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"penstock/internal/wire"
	"penstock/pipeline"
	"penstock/stack"
)

var reasonTest = pipeline.DefineReason("test_denied", "the test says so")

// script is a stream stage whose decisions a test writes.
type script struct {
	data func(s *scripted, d pipeline.Direction, b []byte) (int, pipeline.StreamVerdict)
	end  func(s *scripted, d pipeline.Direction) pipeline.StreamVerdict

	mu     sync.Mutex
	opened []*scripted
}

// scripted is what it saw of one connection.
type scripted struct {
	script *script
	conn   pipeline.Conn
	pos    [2]int // bytes passed
	seen   [2][]byte
	other  [2]int // bytes seen in the other direction when last shown some
	ends   [2]int
	closes int
	log    []string
}

func (s *script) Open(c *pipeline.Conn) pipeline.Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &scripted{script: s, conn: *c}
	s.opened = append(s.opened, st)
	return st
}

func (s *scripted) Data(d pipeline.Direction, b []byte, _ int64) (int, pipeline.StreamVerdict) {
	s.script.mu.Lock()
	defer s.script.mu.Unlock()
	if len(b) <= len(s.seen[d])-s.pos[d] && s.other[d] == len(s.seen[1-d]) {
		s.log = append(s.log, fmt.Sprintf("%v: shown %d bytes that it had seen, without news in either direction", d, len(b)))
	}
	s.other[d] = len(s.seen[1-d])
	s.seen[d] = append(s.seen[d][:s.pos[d]], b...)
	n, v := len(b), pipeline.StreamVerdict{}
	if s.script.data != nil {
		n, v = s.script.data(s, d, b)
	}
	s.pos[d] += n
	return n, v
}

func (s *scripted) End(d pipeline.Direction, _ int64) pipeline.StreamVerdict {
	s.script.mu.Lock()
	defer s.script.mu.Unlock()
	s.ends[d]++
	s.pos[d] = len(s.seen[d])
	if s.script.end != nil {
		return s.script.end(s, d)
	}
	return pipeline.StreamVerdict{}
}

func (s *scripted) Close(int64) {
	s.script.mu.Lock()
	defer s.script.mu.Unlock()
	s.closes++
}

// one returns the only connection that was opened, once it is closed.
func (s *script) one(t *testing.T) *scripted {
	t.Helper()
	eventually(t, "stream closed", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.opened) == 1 && s.opened[0].closes > 0
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.opened[0]
	if st.closes != 1 || st.ends[0] > 1 || st.ends[1] > 1 {
		t.Errorf("closed %d times, ended %v times, want at most once", st.closes, st.ends)
	}
	for _, l := range st.log {
		t.Error(l)
	}
	return st
}

// talk sends up through a connection, and has the server answer with down once
// it has everything. It returns what each end got until its peer finished, and
// the client's error.
func talk(t *testing.T, b *bed, up, down []byte) (atServer, atClient []byte, err error) {
	t.Helper()
	to := addr(server4, 80)
	l := b.server.listen(t, to)
	served := serveOnce(l, func(c net.Conn) {
		atServer, _ = io.ReadAll(c)
		c.Write(down)
	})
	c, err := b.client.dial(addr(client4, 0), to, dialTime)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() { c.Write(up); c.CloseWrite() }()
	atClient, err = io.ReadAll(c)
	c.Close()
	l.Close() // a connection that was reset at once is never accepted
	<-served
	return atServer, atClient, err
}

func TestStreamPassAndHold(t *testing.T) {
	const size = 500_000
	up, down := noise(1, size), noise(2, size)
	for name, data := range map[string]func(*scripted, pipeline.Direction, []byte) (int, pipeline.StreamVerdict){
		"pass": nil,
		// Lets go only whole groups of 1000 bytes.
		"groups": func(_ *scripted, _ pipeline.Direction, b []byte) (int, pipeline.StreamVerdict) {
			return len(b) / 1000 * 1000, pipeline.StreamVerdict{}
		},
		// Always keeps the last 777 bytes back.
		"tail": func(_ *scripted, _ pipeline.Direction, b []byte) (int, pipeline.StreamVerdict) {
			return max(0, len(b)-777), pipeline.StreamVerdict{}
		},
		// Holds the beginning, then wants nothing more.
		"release": func(s *scripted, d pipeline.Direction, b []byte) (int, pipeline.StreamVerdict) {
			if len(b) < 5000 {
				return 0, pipeline.StreamVerdict{}
			}
			return 100, pipeline.StreamVerdict{Action: pipeline.StreamRelease}
		},
		// Claims to pass more than it was shown, or less than nothing.
		"liar": func(s *scripted, d pipeline.Direction, b []byte) (int, pipeline.StreamVerdict) {
			s.pos[d] -= 5
			return len(b) + 5, pipeline.StreamVerdict{}
		},
	} {
		t.Run(name, func(t *testing.T) {
			first, second := &script{data: data}, &script{}
			b := newBed(t, bedOptions{streams: []pipeline.StreamStage{first, second}})
			atServer, atClient, err := talk(t, b, up, down)
			if err != nil || !bytes.Equal(atServer, up) || !bytes.Equal(atClient, down) {
				t.Errorf("server got %d bytes, client %d, error %v; want all %d both ways", len(atServer), len(atClient), err, size)
			}
			st := second.one(t)
			if !bytes.Equal(st.seen[pipeline.ToServer], up) || !bytes.Equal(st.seen[pipeline.ToClient], down) {
				t.Errorf("the second stream saw %d and %d bytes, want %d", len(st.seen[0]), len(st.seen[1]), size)
			}
			if st.ends != [2]int{1, 1} {
				t.Errorf("ends %v, want one each", st.ends)
			}
			if c := st.conn; c.Client.Addr() != client4 || c.Server != addr(server4, 80) || c.Depth != pipeline.DepthTerminate || c.In != lan || c.ID == 0 || c.Start == 0 {
				t.Errorf("connection %+v", c)
			}
			if name == "release" {
				if f := first.one(t); f.ends != [2]int{} || len(f.seen[0]) >= size {
					t.Errorf("a released stream saw %d bytes and %v ends", len(f.seen[0]), f.ends)
				}
			}
		})
	}
}

// TestStreamReleaseFreesOtherDirection: what a stream held back in one direction
// goes on when it releases the connection because of the other.
func TestStreamReleaseFreesOtherDirection(t *testing.T) {
	first := &script{data: func(_ *scripted, d pipeline.Direction, b []byte) (int, pipeline.StreamVerdict) {
		if d == pipeline.ToClient {
			return len(b), pipeline.StreamVerdict{Action: pipeline.StreamRelease}
		}
		return 0, pipeline.StreamVerdict{}
	}}
	second := &script{}
	b := newBed(t, bedOptions{noHosts: true, streams: []pipeline.StreamStage{first, second}})
	c, s, cSeq, cAck, sSeq, sAck := b.open(addr(client4, 5000), addr(server4, 80))
	c.send(wire.FlagACK|wire.FlagPSH, cSeq, cAck, nil, []byte("held"))
	c.expectWhere("acknowledgment", func(s segment) bool { return s.tcp.Ack() == cSeq+4 })
	s.silent("bytes that are held back")
	s.send(wire.FlagACK|wire.FlagPSH, sSeq, sAck, nil, []byte("220 hello"))
	if d := c.expectWhere("data", hasPayload); string(d.tcp.Payload()) != "220 hello" {
		t.Errorf("client got %q", d.tcp.Payload())
	}
	if d := s.expectWhere("data", hasPayload); string(d.tcp.Payload()) != "held" {
		t.Errorf("server got %q", d.tcp.Payload())
	}
	b.stop()
	if st := second.one(t); string(st.seen[0]) != "held" {
		t.Errorf("the second stream saw %q", st.seen[0])
	}
}

func TestStreamDeny(t *testing.T) {
	denyAt := func(marker string, reply string) func(*scripted, pipeline.Direction, []byte) (int, pipeline.StreamVerdict) {
		return func(_ *scripted, d pipeline.Direction, b []byte) (int, pipeline.StreamVerdict) {
			if i := bytes.Index(b, []byte(marker)); i >= 0 {
				return i, pipeline.StreamVerdict{Action: pipeline.StreamDeny, Reason: reasonTest, Reply: []byte(reply)}
			}
			return len(b), pipeline.StreamVerdict{}
		}
	}
	for _, tc := range []struct {
		name, reply string
		end         bool // deny at the end of the stream
	}{
		{"reset", "", false}, {"reply", "HTTP/1.1 403 Forbidden\r\n\r\n", false}, {"long reply", strings.Repeat("no ", 50_000), false},
		{"reset at end", "", true}, {"reply at end", "no", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			st := &script{data: denyAt("evil", tc.reply)}
			up := []byte("good then evil")
			if tc.end {
				up = []byte("good")
				st.end = func(*scripted, pipeline.Direction) pipeline.StreamVerdict {
					return pipeline.StreamVerdict{Action: pipeline.StreamDeny, Reason: reasonTest, Reply: []byte(tc.reply)}
				}
			}
			after := &script{}
			b := newBed(t, bedOptions{streams: []pipeline.StreamStage{st, after}})
			atServer, atClient, err := talk(t, b, up, []byte("never"))
			if bytes.Contains(atServer, []byte("evil")) {
				t.Errorf("server got %q", atServer)
			}
			if string(atClient) != tc.reply {
				t.Errorf("client got %d bytes, want the reply's %d", len(atClient), len(tc.reply))
			}
			if tc.reply == "" && err == nil {
				t.Error("the client was not reset")
			}
			if tc.reply != "" && err != nil {
				t.Errorf("client: %v, want the end after the reply", err)
			}
			st.one(t)
			after.one(t)
			if len(segments(b.ports[wan].frames(), false, wire.FlagRST)) == 0 {
				t.Error("the server was not reset")
			}
			eventually(t, "no flow left", func() bool { return b.flows() == 0 })
			b.wantCount("denied", 1)
			b.wantCount("denied_test_denied", 1)
			b.wantCount("denied_with_reply", map[bool]uint64{true: 1}[tc.reply != ""])
		})
	}
}

// TestStreamDenyServer: bytes of the server are denied; what was let go before
// them comes before the reply.
func TestStreamDenyServer(t *testing.T) {
	st := &script{data: func(s *scripted, d pipeline.Direction, b []byte) (int, pipeline.StreamVerdict) {
		if i := bytes.Index(b, []byte("virus")); i >= 0 {
			return 0, pipeline.StreamVerdict{Action: pipeline.StreamDeny, Reason: reasonTest, Reply: []byte("[cut]")}
		}
		return len(b), pipeline.StreamVerdict{}
	}}
	b := newBed(t, bedOptions{noHosts: true, streams: []pipeline.StreamStage{st}})
	c, s, _, _, sSeq, sAck := b.open(addr(client4, 5000), addr(server4, 80))
	s.send(wire.FlagACK|wire.FlagPSH, sSeq, sAck, nil, []byte("fine "))
	c.expectWhere("data", hasPayload)
	s.send(wire.FlagACK|wire.FlagPSH, sSeq+5, sAck, nil, []byte("virus"))
	if d := c.expectWhere("data", hasPayload); string(d.tcp.Payload()) != "[cut]" {
		t.Errorf("client got %q", d.tcp.Payload())
	}
	c.expect(wire.FlagFIN)
	s.expect(wire.FlagRST)
}

func TestStreamHoldFull(t *testing.T) {
	st := &script{data: func(*scripted, pipeline.Direction, []byte) (int, pipeline.StreamVerdict) {
		return 0, pipeline.StreamVerdict{}
	}}
	b := newBed(t, bedOptions{streams: []pipeline.StreamStage{st}, options: func(o *stack.Options) { o.HoldBytes = 8 << 10 }})
	atServer, atClient, err := talk(t, b, noise(1, 100_000), nil)
	if len(atServer) != 0 || len(atClient) != 0 || err == nil {
		t.Errorf("server got %d bytes, client %d, %v; want a reset", len(atServer), len(atClient), err)
	}
	if s := st.one(t); len(s.seen[0]) != 8<<10 {
		t.Errorf("%d bytes were held, want %d", len(s.seen[0]), 8<<10)
	}
	b.wantCount("stream_hold_full", 1)
	b.wantCount("denied_stream_hold_full", 1)
}

// TestStreamPanics: a bug in a stream stage ends the connection that it shows in,
// and no other.
func TestStreamPanics(t *testing.T) {
	for _, where := range []string{"data", "end", "close", "open"} {
		t.Run(where, func(t *testing.T) {
			bad := addr(client4, 666)
			st := &panicking{where: where, client: bad}
			b := newBed(t, bedOptions{noHosts: true, mayPanic: true, streams: []pipeline.StreamStage{st}})
			good, goodS, cSeq, cAck, _, _ := b.open(addr(client4, 5000), addr(server4, 80))

			c, s := b.players(bad, addr(server4, 80))
			c.send(wire.FlagSYN, 1000, 0, nil, nil)
			syn := s.expect(wire.FlagSYN)
			s.send(wire.FlagSYN|wire.FlagACK, 2000, syn.tcp.Seq()+1, nil, nil)
			synack := c.expect(wire.FlagSYN | wire.FlagACK)
			c.send(wire.FlagACK|wire.FlagPSH, 1001, synack.tcp.Seq()+1, nil, []byte("boom"))
			if where == "end" {
				c.expectWhere("acknowledgment", func(s segment) bool { return s.tcp.Ack() == 1005 })
				c.send(wire.FlagACK|wire.FlagFIN, 1005, synack.tcp.Seq()+1, nil, nil)
			}
			if where == "close" {
				c.expectWhere("acknowledgment", func(s segment) bool { return s.tcp.Ack() == 1005 })
				c.send(wire.FlagRST, 1005, 0, nil, nil)
			}
			s.expect(wire.FlagRST)
			eventually(t, "the connection gone", func() bool { return b.flows() == 1 })

			good.send(wire.FlagACK|wire.FlagPSH, cSeq, cAck, nil, []byte("fine"))
			if d := goodS.expectWhere("data", hasPayload); string(d.tcp.Payload()) != "fine" {
				t.Errorf("got %q", d.tcp.Payload())
			}
			if n := b.worker.Stats().Panics; n != 1 {
				t.Errorf("%d panics, want 1", n)
			}
			if where != "close" {
				b.wantCount("stream_panics", 1)
			}
		})
	}
}

type panicking struct {
	where  string
	client netip.AddrPort
}

func (p *panicking) Open(c *pipeline.Conn) pipeline.Stream {
	if c.Client != p.client {
		return nil
	}
	p.at("open")
	return (*panickingStream)(p)
}

func (p *panicking) at(where string) {
	if p.where == where {
		panic("a bug")
	}
}

type panickingStream panicking

func (p *panickingStream) Data(_ pipeline.Direction, b []byte, _ int64) (int, pipeline.StreamVerdict) {
	(*panicking)(p).at("data")
	return len(b), pipeline.StreamVerdict{}
}

func (p *panickingStream) End(pipeline.Direction, int64) pipeline.StreamVerdict {
	(*panicking)(p).at("end")
	return pipeline.StreamVerdict{}
}

func (p *panickingStream) Close(int64) { (*panicking)(p).at("close") }

// TestStreamNotInterested: a stage that does not open a stream costs nothing.
type nobody struct{}

func (nobody) Open(*pipeline.Conn) pipeline.Stream { return nil }

func TestStreamNotInterested(t *testing.T) {
	b := newBed(t, bedOptions{streams: []pipeline.StreamStage{nobody{}}})
	up, down := noise(3, 100_000), noise(4, 100_000)
	atServer, atClient, err := talk(t, b, up, down)
	if err != nil || !bytes.Equal(atServer, up) || !bytes.Equal(atClient, down) {
		t.Errorf("server got %d bytes, client %d, %v", len(atServer), len(atClient), err)
	}
}

// TestStreamClosedOnReset: streams hear of the end once, however it comes.
func TestStreamClosedOnReset(t *testing.T) {
	st := &script{}
	b := newBed(t, bedOptions{noHosts: true, streams: []pipeline.StreamStage{st}})
	c, s, cSeq, _, _, _ := b.open(addr(client4, 5000), addr(server4, 80))
	c.send(wire.FlagRST, cSeq, 0, nil, nil)
	s.expect(wire.FlagRST)
	if got := st.one(t); got.ends != [2]int{} {
		t.Errorf("ends %v after a reset, want none", got.ends)
	}
}

// TestStreamShownAgain: what a stream holds back in one direction it is shown
// again when there is news in the other, though its sender says no more.
func TestStreamShownAgain(t *testing.T) {
	script := &script{data: func(s *scripted, d pipeline.Direction, b []byte) (int, pipeline.StreamVerdict) {
		if d == pipeline.ToServer && len(s.seen[pipeline.ToClient]) == 0 {
			return 0, pipeline.StreamVerdict{} // not before the server has spoken
		}
		return len(b), pipeline.StreamVerdict{}
	}}
	b := newBed(t, bedOptions{streams: []pipeline.StreamStage{script}})
	to := addr(server4, 80)
	l := b.server.listen(t, to)
	speak, got := make(chan struct{}), make(chan string, 1)
	served := serveOnce(l, func(c net.Conn) {
		<-speak
		io.WriteString(c, "welcome")
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		hello := make([]byte, 5)
		n, _ := io.ReadFull(c, hello)
		got <- string(hello[:n])
	})
	c, err := b.client.dial(addr(client4, 0), to, dialTime)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stream holds what the client says", func() bool {
		script.mu.Lock()
		defer script.mu.Unlock()
		return len(script.opened) == 1 && len(script.opened[0].seen[pipeline.ToServer]) == 5
	})
	close(speak)
	if text := <-got; text != "hello" {
		t.Errorf("the server got %q after it had spoken, want %q", text, "hello")
	}
	c.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
