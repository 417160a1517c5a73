package stack_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"penstock/internal/lab"
	"penstock/internal/lab/labtest"
	"penstock/internal/wire"
	"penstock/pipeline"
	"penstock/stack"
)

// linuxBed is a bed whose ends are Linux, in network namespaces.
type linuxBed struct {
	*bed
	net *lab.Inline
}

func newLinuxBed(t testing.TB, options func(*stack.Options), streams ...pipeline.StreamStage) *linuxBed {
	t.Helper()
	l := labtest.NewForTest(t)
	in, err := l.Inline(lab.InlineOptions{Veth: lab.VethOptions{NoMerge: true, Backpressure: true}, StaticNeigh: true})
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{t: t}
	arena, err := pipeline.NewArena(make([]byte, 8192*2048), 2048, 64, 1)
	if err != nil {
		t.Fatal(err)
	}
	b.pool = arena.Pool(0)
	infos := []pipeline.PortInfo{{ID: lan, Name: "lan", MTU: 1500}, {ID: wan, Name: "wan", MTU: 1500}}
	lp := openPacketPort(t, in.Appliance, in.LANIf, infos[0], b.pool)
	wp := openPacketPort(t, in.Appliance, in.WANIf, infos[1], b.pool)
	waiter := newPollWaiter(t, lp, wp)
	b.worker = pipeline.NewWorker(pipeline.WorkerOptions{Ports: []pipeline.Port{lp, wp}, Infos: infos, Pool: b.pool, Waiter: waiter, SpinTurns: 2})
	b.build(options, streams)
	b.run(false)
	t.Cleanup(func() {
		if t.Failed() {
			b.describe()
			t.Logf("lan %+v, wan %+v, too long %d", lp.Stats(), wp.Stats(), lp.tooLong.Load()+wp.tooLong.Load())
		}
		b.stop()
	})
	return &linuxBed{b, in}
}

func (b *linuxBed) ends(v6 bool) (client, server netip.Addr) {
	if v6 {
		return b.net.ClientIP6, b.net.ServerIP6
	}
	return b.net.ClientIP4, b.net.ServerIP4
}

// serve accepts connections and hands each to fn, on a goroutine.
func (b *linuxBed) serve(at netip.AddrPort, fn func(*net.TCPConn)) {
	b.t.Helper()
	l, err := b.net.Server.Listen("tcp", at.String())
	if err != nil {
		b.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { fn(c.(*net.TCPConn)); c.Close() })
		}
	})
	b.t.Cleanup(func() { l.Close(); wg.Wait() })
}

func (b *linuxBed) dial(from, to netip.AddrPort) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), dialTime)
	defer cancel()
	c, err := b.net.Client.DialFrom(ctx, "tcp", from.String(), to.String())
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn), nil
}

// upload sends bytes both ways at once and has each end finish.
func upload(c *net.TCPConn, up []byte) (down []byte, err error) {
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(up)
		c.CloseWrite()
		wrote <- err
	}()
	down, err = io.ReadAll(c)
	return down, errors.Join(err, <-wrote)
}

func TestLinuxTransfer(t *testing.T) {
	const size = 8 << 20
	up, down := noise(1, size), noise(2, size)
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("v6 %v", v6), func(t *testing.T) {
			b := newLinuxBed(t, nil)
			cl, sv := b.ends(v6)
			got := make(chan []byte, 1)
			b.serve(addr(sv, 80), func(c *net.TCPConn) {
				if c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap() != cl {
					t.Errorf("the server sees %v, want %v", c.RemoteAddr(), cl)
				}
				all, err := upload(c, down)
				if err != nil {
					t.Errorf("server: %v", err)
				}
				got <- all
			})
			c, err := b.dial(addr(cl, 0), addr(sv, 80))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			begin := time.Now()
			back, err := upload(c, up)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(back, down) || !bytes.Equal(<-got, up) {
				t.Error("bytes differ")
			}
			t.Logf("%.0f Mbit/s both ways", float64(2*size*8)/1e6/time.Since(begin).Seconds())
			eventually(t, "connection closed", func() bool { return b.flows() == 0 })
			b.wantCount("closed", 1)
			b.wantCount("resets", 0)
		})
	}
}

// TestLinuxSequential uses a handful of client ports again and again. The
// server finishes first, so that the client may.
func TestLinuxSequential(t *testing.T) {
	const connections, ports = 3000, 6
	b := newLinuxBed(t, nil)
	cl, sv := b.ends(false)
	b.serve(addr(sv, 80), func(c *net.TCPConn) {
		var word [4]byte
		if _, err := io.ReadFull(c, word[:]); err == nil {
			c.Write(word[:])
		}
	})
	busy := 0
	for i := range connections {
		var c *net.TCPConn
		eventually(t, "client port free", func() bool {
			var err error
			if c, err = b.dial(addr(cl, uint16(20000+i%ports)), addr(sv, 80)); errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EADDRNOTAVAIL) {
				busy++
				return false
			} else if err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
			return true
		})
		word := []byte{byte(i), byte(i >> 8), 3, 4}
		c.Write(word)
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, word) {
			t.Fatalf("connection %d: got % x, %v", i, got, err)
		}
		c.Close()
	}
	t.Logf("port busy %d times", busy)
	b.wantCount("accepted", connections)
	b.wantCount("dials", connections)
	b.wantCount("resets", 0)
	if n := b.count("reused"); n < connections*9/10 {
		t.Errorf("%d connections of %d on a port that was remembered, want nearly all", n, connections)
	}
}

func TestLinuxConcurrent(t *testing.T) {
	const connections, size = 500, 30_000
	b := newLinuxBed(t, nil)
	cl, sv := b.ends(true)
	b.serve(addr(sv, 80), func(c *net.TCPConn) { io.Copy(c, c) })
	var wg sync.WaitGroup
	for i := range connections {
		wg.Go(func() {
			c, err := b.dial(addr(cl, 0), addr(sv, 80))
			if err != nil {
				t.Errorf("connection %d: %v", i, err)
				return
			}
			defer c.Close()
			want := noise(byte(i), size)
			if got, err := upload(c, want); err != nil || !bytes.Equal(got, want) {
				t.Errorf("connection %d: %d bytes, %v", i, len(got), err)
			}
		})
	}
	wg.Wait()
	eventually(t, "no flow left", func() bool { return b.flows() == 0 })
	b.wantCount("closed", connections)
	b.wantCount("resets", 0)
}

func TestLinuxEnds(t *testing.T) {
	b := newLinuxBed(t, nil)
	cl, sv := b.ends(false)

	t.Run("refused", func(t *testing.T) {
		if _, err := b.dial(addr(cl, 0), addr(sv, 9)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("got %v, want ECONNREFUSED", err)
		}
	})
	t.Run("client resets", func(t *testing.T) {
		seen := make(chan error, 1)
		b.serve(addr(sv, 81), func(c *net.TCPConn) {
			_, err := io.Copy(io.Discard, c)
			seen <- err
		})
		c, err := b.dial(addr(cl, 0), addr(sv, 81))
		if err != nil {
			t.Fatal(err)
		}
		c.Write(noise(1, 100_000))
		eventually(t, "bytes relayed", func() bool { return b.count("bytes_to_server") >= 100_000 })
		c.SetLinger(0)
		c.Close()
		if err := <-seen; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the server saw %v, want ECONNRESET", err)
		}
	})
	t.Run("server resets", func(t *testing.T) {
		b.serve(addr(sv, 82), func(c *net.TCPConn) {
			var word [1]byte
			c.Read(word[:])
			c.SetLinger(0)
		})
		c, err := b.dial(addr(cl, 0), addr(sv, 82))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write([]byte{1})
		if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client saw %v, want ECONNRESET", err)
		}
	})
	t.Run("server finishes first", func(t *testing.T) {
		late := noise(4, 200_000)
		got := make(chan []byte, 1)
		b.serve(addr(sv, 83), func(c *net.TCPConn) {
			c.Write([]byte("bye"))
			c.CloseWrite()
			all, _ := io.ReadAll(c)
			got <- all
		})
		c, err := b.dial(addr(cl, 0), addr(sv, 83))
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(c); string(text) != "bye" || err != nil {
			t.Errorf("client got %q, %v", text, err)
		}
		c.Write(late)
		c.Close()
		if !bytes.Equal(<-got, late) {
			t.Error("the server got other bytes than were sent after it had finished")
		}
	})
	eventually(t, "no flow left", func() bool { return b.flows() == 0 })
	b.wantCount("dial_refused", 1)
	b.wantCount("resets", 2)
	b.wantCount("closed", 1)
}

// TestLinuxOptions turns options off at one end: the other end's handshake shows
// it, and bytes pass.
func TestLinuxOptions(t *testing.T) {
	b := newLinuxBed(t, nil)
	cl, sv := b.ends(false)
	b.serve(addr(sv, 80), func(c *net.TCPConn) { io.Copy(c, c) })
	clientTap, err := b.net.Client.Tap(b.net.ClientIf, 1<<16)
	if err != nil {
		t.Fatal(err)
	}
	serverTap, err := b.net.Server.Tap(b.net.ServerIf, 1<<16)
	if err != nil {
		t.Fatal(err)
	}
	keys := []string{"tcp_timestamps", "tcp_sack", "tcp_window_scaling"}
	for i := range 64 {
		if i&7 != 0 && i>>3 != 0 && i != 63 && i != 0o34 {
			continue // one end at a time, both ends off, and one mixture
		}
		t.Run(fmt.Sprintf("client off %03b server off %03b", i&7, i>>3), func(t *testing.T) {
			for k, key := range keys {
				for bit, ns := range map[int]*lab.NS{k: b.net.Client, 3 + k: b.net.Server} {
					value := "1"
					if i>>bit&1 != 0 {
						value = "0"
					}
					if err := ns.Sysctl("net/ipv4/"+key, value); err != nil {
						t.Fatal(err)
					}
				}
			}
			from := addr(cl, uint16(30000+i))
			c, err := b.dial(from, addr(sv, 80))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			want := noise(byte(i), 300_000)
			if got, err := upload(c, want); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			on := func(bits int) offers { return offers{ts: bits&1 == 0, sack: bits&2 == 0, scale: bits&4 == 0} }
			client, server := on(i), on(i>>3)
			for _, w := range []struct {
				name  string
				tap   *lab.Tap
				flags wire.TCPFlags
				want  offers
			}{
				{"SYN at the client", clientTap, wire.FlagSYN, client},
				{"SYN at the server", serverTap, wire.FlagSYN, client},
				{"SYN-ACK at the server", serverTap, wire.FlagSYN | wire.FlagACK, client.and(server)},
				{"SYN-ACK at the client", clientTap, wire.FlagSYN | wire.FlagACK, client.and(server)},
			} {
				ctx, cancel := context.WithTimeout(context.Background(), dialTime)
				_, err := w.tap.Wait(ctx, func(f lab.Frame) bool {
					var h wire.Headers
					if h.Parse(f.Data) != wire.FaultNone || h.Proto != wire.ProtoTCP || !h.HasL4 {
						return false
					}
					s := segment{frame: f.Data, tcp: wire.TCP(f.Data[h.L4:h.End])}
					s.flow, _ = h.Flow(f.Data)
					if s.tcp.Flags()&(wire.FlagSYN|wire.FlagACK) != w.flags || s.flow.SrcAddr() != from && s.flow.DstAddr() != from {
						return false
					}
					if got, mss, _ := read(t, s); got != w.want || mss != 1460 {
						t.Errorf("%s: %v, MSS %d, want %v, MSS 1460", w.name, got, mss, w.want)
					}
					return true
				})
				cancel()
				if err != nil {
					t.Errorf("%s: %v", w.name, err)
				}
			}
		})
	}
	b.wantCount("resets", 0)
}
