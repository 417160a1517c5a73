package bpf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"penstock/internal/lab"
	"penstock/internal/lab/labtest"
	"penstock/internal/rewrite"
	"penstock/xsk"
)

const patience = 5 * time.Second

// appliance is a Steerer between a client and a server:
//
//	client eth0 ---- eth1 [lan] Steerer [wan] eth2 ---- eth0 server
type appliance struct {
	*lab.Inline
	*Steerer
	t testing.TB
}

// inline builds the topology; change edits the options before Load. Nothing is attached yet.
func inline(t testing.TB, veth lab.VethOptions, change func(*Options)) *appliance {
	t.Helper()
	in, err := labtest.NewForTest(t).Inline(lab.InlineOptions{Veth: veth})
	if err != nil {
		t.Fatal(err)
	}
	// A veth learns that it can be redirected to when GRO is turned on at its peer while both are up, and not when its peer
	// comes up with GRO on already (drivers/net/veth.c, veth_open and veth_set_features; XDP redirects end in EOPNOTSUPP).
	for ns, name := range map[*lab.NS]string{in.Client: in.ClientIf, in.Server: in.ServerIf} {
		for _, on := range []bool{false, true} {
			if err := ns.SetOffload(name, map[string]bool{"gro": on}); err != nil {
				t.Fatal(err)
			}
		}
	}
	a := &appliance{Inline: in, t: t}
	a.load(change)
	return a
}

// options are those of a Steerer between the two ports.
func (a *appliance) options() Options {
	a.t.Helper()
	o := Options{Name: "test", Ports: []Port{{Name: "lan"}, {Name: "wan"}}, MaxFlows: 1024}
	for i, name := range []string{a.LANIf, a.WANIf} {
		var err error
		if o.Ports[i].Ifindex, err = a.Appliance.LinkIndex(name); err != nil {
			a.t.Fatal(err)
		}
	}
	return o
}

// load replaces the Steerer by a new one.
func (a *appliance) load(change func(*Options)) {
	a.t.Helper()
	o := a.options()
	if change != nil {
		change(&o)
	}
	var s *Steerer
	a.in(func() (err error) { s, err = Load(o); return err })
	a.Steerer = s
	a.t.Cleanup(func() { _ = a.Appliance.Do(s.Close) })
}

// in runs fn in the appliance's namespace.
func (a *appliance) in(fn func() error) {
	a.t.Helper()
	if err := a.Appliance.Do(fn); err != nil {
		a.t.Fatalf("%+v", err)
	}
}

// attach attaches both ports and checks the mode.
func (a *appliance) attach(want Mode) {
	a.t.Helper()
	for port := range a.opts.Ports {
		a.in(func() error {
			mode, err := a.Attach(port)
			if err == nil && mode != want {
				err = fmt.Errorf("port %d is attached in mode %s, want %s", port, mode, want)
			}
			return err
		})
	}
}

// echo runs a TCP connection from the client to the server and back; it returns an error if it does not come about in time.
func (a *appliance) echo(server netip.Addr, timeout time.Duration) error {
	l, err := a.Server.Listen("tcp", netip.AddrPortFrom(server, 0).String())
	if err != nil {
		return err
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err == nil {
			io.Copy(c, c)
			c.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c, err := a.Client.DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(timeout))
	out, in := bytes.Repeat([]byte("penstock"), 8192), make([]byte, 65536)
	go c.Write(out)
	if _, err := io.ReadFull(c, in); err != nil {
		return err
	}
	if !bytes.Equal(in, out) {
		return errors.New("the echo differs")
	}
	return nil
}

// count sums the counters that have a verdict and a reason.
func (a *appliance) count(v Verdict, reason string) (n uint64) {
	a.t.Helper()
	list, err := a.Counters()
	if err != nil {
		a.t.Fatal(err)
	}
	for _, c := range list {
		if c.Verdict == v && c.Reason.String() == reason {
			n += c.Packets
		}
	}
	return n
}

func TestBridgeConnectsClientAndServer(t *testing.T) {
	for _, c := range []struct {
		mode     Mode
		headroom bool
	}{{ModeNative, false}, {ModeGeneric, false}, {ModeNative, true}, {ModeGeneric, true}} {
		name, mode := c.mode.String(), c.mode
		if c.headroom {
			name += ", headroom"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := inline(t, lab.VethOptions{}, func(o *Options) {
				for i := range o.Ports {
					o.Ports[i].Mode, o.Ports[i].Headroom = mode, c.headroom
				}
			})
			if err := a.echo(a.ServerIP4, 200*time.Millisecond); err == nil {
				t.Fatal("the ends are connected before anything is attached: the test would prove nothing")
			}
			a.attach(mode)
			for _, server := range []netip.Addr{a.ServerIP4, a.ServerIP6} {
				if err := a.echo(server, patience); err != nil {
					t.Errorf("%s: %v", server, err)
				}
			}
			if a.count(VerdictPeer, "no_rule") == 0 || a.count(VerdictPeer, "not_ip") == 0 || a.count(VerdictPeer, "icmp_neighbor") == 0 {
				t.Errorf("TCP, ARP and neighbour discovery have crossed, the counters do not say so")
			}
			a.in(a.Close)
			if err := a.echo(a.ServerIP4, 200*time.Millisecond); err == nil {
				t.Error("the ends are still connected after Close")
			}
		})
	}
}

// listenOn opens an AF_XDP socket in copy mode on queue 0 of a port and steers to it.
func (a *appliance) listenOn(u *xsk.UMEM, port int) *xsk.Socket {
	a.t.Helper()
	prefill := make([]uint64, 64)
	pool := u.NewPool(port*64, 64)
	pool.Alloc(prefill)
	var sock *xsk.Socket
	a.in(func() (err error) {
		sock, err = u.Open(a.opts.Ports[port].Ifindex, 0, &xsk.SocketOptions{Mode: copyIf(port == 0), Prefill: prefill})
		return err
	})
	a.t.Cleanup(func() { sock.Close() })
	if err := a.SetSocket(port, 0, sock.FD()); err != nil {
		a.t.Fatal(err)
	}
	return sock
}

// copyIf: only the first socket of a UMEM may state a mode.
func copyIf(first bool) xsk.Mode {
	if first {
		return xsk.Copy
	}
	return xsk.Auto
}

// receive waits for one packet on a socket and returns it with the metadata before it.
func (a *appliance) receive(u *xsk.UMEM, sock *xsk.Socket) (packet, meta []byte) {
	a.t.Helper()
	var d [1]xsk.Desc
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if sock.Receive(d[:]) == 1 {
			frame := u.Frame(d[0].Addr)
			off := int(d[0].Addr) % u.FrameSize()
			return bytes.Clone(u.Data(d[0])), bytes.Clone(frame[off-MetaSize : off])
		}
		if err := sock.Poll(100 * time.Millisecond); err != nil {
			a.t.Fatal(err)
		}
	}
	a.t.Fatal("nothing arrived at the AF_XDP socket")
	return nil, nil
}

func TestSocketGetsPacketsWithMetadata(t *testing.T) {
	for _, mode := range []Mode{ModeNative, ModeGeneric} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			a := inline(t, lab.VethOptions{}, func(o *Options) {
				o.Ports[0].Mode, o.Ports[1].Mode = mode, mode
				o.Rules = []Rule{
					{From: 0, Proto: ProtoTCP, Action: ToChain, Chain: 0xbcd},
					{From: 0, Proto: ProtoUDP, Action: ToChain, Chain: 3},
				}
			})
			u, err := xsk.NewUMEM(xsk.UMEMOptions{Frames: 128, HugePages: xsk.HugeOff})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { u.Close() })
			a.attach(mode)
			socks := []*xsk.Socket{a.listenOn(u, 0), a.listenOn(u, 1)}
			ends := []*lab.NS{a.Client, a.Server}

			vlanned := ip4(layers.IPProtocolTCP)
			for _, s := range []struct {
				name   string
				port   int
				packet []byte
				chain  uint16
			}{
				{"SYN", 0, tcp4(t, "S", 0), 0xbcd},
				{"full size", 0, tcp4(t, "PA", 1460), 0xbcd},
				{"odd size", 0, tcp4(t, "PA", 7), 0xbcd},
				{"reply", 1, tcp4Reply(t, "SA", 0), 0xbcd},
				{"UDP", 0, udp4(t, 1), 3},
				{"IPv6", 0, tcp6(t, "S", 33), 0xbcd},
				{"VLAN", 0, build(t, eth(layers.EthernetTypeDot1Q), vlan(9, layers.EthernetTypeIPv4), vlanned, tcp(vlanned, "S")), 0xbcd},
			} {
				raw, err := ends[s.port].Raw("eth0")
				if err != nil {
					t.Fatal(err)
				}
				if _, err := raw.Write(s.packet); err != nil {
					t.Fatal(err)
				}
				raw.Close()
				packet, meta := a.receive(u, socks[s.port])
				if !bytes.Equal(packet, s.packet) {
					t.Errorf("%s: got\n%x, want\n%x", s.name, packet, s.packet)
				}
				m, ok := ReadMeta(meta)
				if !ok || m.Chain != s.chain {
					t.Errorf("%s: metadata %x (chain %#x), want chain %#x", s.name, meta, m.Chain, s.chain)
				}
				if want := hashOf(t, s.packet); m.Hash != want {
					t.Errorf("%s: hash %#x, want %#x", s.name, m.Hash, want)
				}
			}
			if n := a.count(VerdictSocket, "no_metadata"); n != 0 {
				t.Errorf("%d packets came without metadata", n)
			}
		})
	}
}

// Real hosts talk through rewrites in both directions: the client to a port on which nobody listens, the server from another one.
func TestRewriteBetweenHosts(t *testing.T) {
	for _, mode := range []Mode{ModeNative, ModeGeneric} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			a := inline(t, lab.VethOptions{}, func(o *Options) { o.Ports[0].Mode, o.Ports[1].Mode = mode, mode })
			a.attach(mode)
			for _, ends := range [][2]netip.Addr{{a.ClientIP4, a.ServerIP4}, {a.ClientIP6, a.ServerIP6}} {
				key := FlowKey{Src: ends[0], Dst: ends[1], SrcPort: 40000, DstPort: 53, Proto: ProtoUDP}
				o := OffloadFlow{
					Key: key, Reply: key.Reverse(), Rewrite: rewrite.Rule{Flags: rewrite.SetDstPort, DstPort: 5353},
					ReplyRewrite: rewrite.Rule{Flags: rewrite.SetSrcPort, SrcPort: 53},
				}
				o.Reply.SrcPort = 5353
				now := uint64(Now())
				for i, k := range []FlowKey{key, key.Reverse()} {
					raw, v := k.raw(), steerFlow{Start: now, LastSeen: now, Reply: uint8(i)}
					if err := a.flows.Put(&raw, &v); err != nil {
						t.Fatal(err)
					}
				}
				list := []OffloadFlow{o}
				if n, err := a.Offload(list); n != 1 || err != nil {
					t.Fatal(list[0].Result, err)
				}
				if err := a.datagram(key, 5353); err != nil {
					t.Errorf("%s: %v", ends[1], err)
				}
				var ended []EndedFlow
				n, err := a.Evict([]FlowKey{o.Reply}, func(e *EndedFlow) { ended = append(ended, *e) })
				if n != 1 || err != nil || ended[0].Packets == 0 || ended[0].ReplyPackets == 0 || ended[0].Key != key || ended[0].Reply != o.Reply {
					t.Errorf("%d, %v, %+v", n, err, ended)
				}
				if err := a.datagram(key, 5353); err == nil {
					t.Error("they still talk without the rewrite")
				}
			}
		})
	}
}

// datagram sends one from k.Src to k.Dst and wants it back from there; the server listens on another port than k says.
func (a *appliance) datagram(k FlowKey, listen uint16) error {
	var server, client *net.UDPConn
	err := a.Server.Do(func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(k.Dst, listen)))
		return err
	})
	if err != nil {
		return err
	}
	defer server.Close()
	err = a.Client.Do(func() (err error) {
		client, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(k.Src, k.SrcPort)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(k.Dst, k.DstPort)))
		return err
	})
	if err != nil {
		return err
	}
	defer client.Close()
	go func() {
		var b [64]byte
		for {
			n, from, err := server.ReadFromUDPAddrPort(b[:])
			if err != nil {
				return
			}
			server.WriteToUDPAddrPort(b[:n], from)
		}
	}()
	var b [64]byte
	for range 10 { // the first one may wait for a neighbour
		client.Write([]byte("penstock"))
		client.SetReadDeadline(time.Now().Add(patience / 10))
		n, err := client.Read(b[:])
		if err == nil && string(b[:n]) == "penstock" {
			return nil
		}
		if errors.Is(err, unix.ECONNREFUSED) {
			return err
		}
	}
	return errors.New("no answer")
}
