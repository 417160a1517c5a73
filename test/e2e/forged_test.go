package e2e

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"penstock/internal/lab"
	"penstock/internal/wire"
)

// forge sends a TCP segment without data from n, with numbers that somebody made up
// who knows the addresses and ports of a connection and nothing else.
func forge(t *testing.T, n *lab.NS, from, to netip.AddrPort, flags wire.TCPFlags) {
	t.Helper()
	seg := make([]byte, wire.TCPLen)
	tcp := wire.TCP(seg)
	tcp.SetSrcPort(from.Port())
	tcp.SetDstPort(to.Port())
	tcp.SetSeq(rand.Uint32())
	tcp.SetAck(rand.Uint32())
	tcp.SetDataOffset(wire.TCPLen)
	tcp.SetFlags(flags)
	src, dst := from.Addr().As4(), to.Addr().As4()
	pseudo := append(append(src[:], dst[:]...), 0, wire.ProtoTCP, 0, wire.TCPLen)
	tcp.SetChecksum(wire.Checksum(append(pseudo, seg...), 0))
	err := n.Do(func() error {
		c, err := net.DialIP("ip4:tcp", &net.IPAddr{IP: from.Addr().AsSlice()}, &net.IPAddr{IP: to.Addr().AsSlice()})
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(seg)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestForgedEnds: resets and ends that are invented do not let a connection be
// forgotten, be it spliced or terminated. What is forgotten is not translated any more.
func TestForgedEnds(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{})
	r.config("closed", "", `
[[steer]]
from = "lan"
proto = "tcp"
dst_port = [7001]
to = "keeps"
[[chain]]
name = "keeps"
  [[chain.stage]]
  kind = "tcp"
  depth = "terminate"
  splice = "never"
`+spliceChain)
	r.tcpServer(7000)
	r.tcpServer(7001)
	a := r.start()
	connect := func(port uint16) net.Conn {
		t.Helper()
		c, err := r.Client.Dial("tcp", r.addr(false, port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(60 * time.Second))
		io.WriteString(c, "echo\n")
		return c
	}
	echo := func(c net.Conn, text string) {
		t.Helper()
		got := make([]byte, len(text))
		io.WriteString(c, text)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
			t.Fatalf("%s: got %q, %v", c.LocalAddr(), got, err)
		}
	}
	victims := []net.Conn{connect(7000), connect(7001)}
	control := connect(7000)
	for _, c := range append(victims, control) {
		echo(c, "before")
	}
	r.eventually("two are offloaded", func() error {
		if n := a.counter("splice_offloaded"); n < 2 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	for _, c := range victims {
		client, server := c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
		for _, flags := range []wire.TCPFlags{wire.FlagFIN | wire.FlagACK, wire.FlagRST | wire.FlagACK, wire.FlagRST} {
			forge(t, r.Client, client, server, flags)
			forge(t, r.Server, server, client, flags)
		}
	}
	// One that is reset in earnest after that is forgotten when it has been idle for 10 s: the others have been so too.
	control.(*net.TCPConn).SetLinger(0)
	control.Close()
	r.eventually("the one that was reset is forgotten", func() error {
		if n := a.status().Flows.Steered; n > len(victims) {
			return fmt.Errorf("%d flows are there", n)
		}
		return nil
	})
	for _, c := range victims {
		echo(c, "after")
		c.Close()
	}
	a.stop()
}
