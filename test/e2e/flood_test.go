package e2e

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"penstock/internal/lab"
	"penstock/internal/lab/traffic"
	"penstock/internal/wire"
)

// TestSYNFlood: SYNs of invented sources against one port fill the flow table;
// a client's requests are answered all the same, and what is dropped or passes by
// has a reason. How much longer they take is logged: endpoints, flood and
// appliance share the processors here.
func TestSYNFlood(t *testing.T) {
	const (
		perSecond = 10000
		most      = 80000
		requests  = 40000
	)
	r := newRig(t, lab.InlineOptions{})
	r.config("closed", "", `
[gate]
rate_syns = "1000pkt/s"
[[chain]]
name = "filter"
  [[chain.stage]]
  kind = "acl"
  rules = [{ action = "drop", dst_port = [9999] }]
[[steer]]
from = "lan"
proto = "tcp"
to = "filter"
`)
	r.origin(80)
	a := r.start()
	load := func() traffic.LoadResult {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		defer cancel()
		res, err := traffic.Load(ctx, traffic.LoadOptions{
			Kind: "http", Address: r.addr(false, 80), Path: "/bytes/200", Conns: 4, Requests: requests, KeepAlive: true, Dial: r.Client.DialContext,
		})
		if err != nil || res.Errors > 0 || res.Requests != requests {
			t.Errorf("%+v, %v", res, err)
		}
		return res
	}
	calm := load()

	end := r.floodSYNs(81, []byte{2, 4, 5, 0xb4, 1, 1, 1, 1, 1, 1, 1, 1}, perSecond, most)
	r.eventually("the flood is under way", func() error { _, err := a.flow("10.77.0.2:81"); return err })
	flooded := load()
	// New connections as well, while it lasts.
	for range 20 {
		if err := r.request(false); err != nil {
			t.Error(err)
		}
	}
	sent := end()
	t.Logf("%d SYNs; requests took %d us (p50), %d us (p99) in the calm, %d and %d in the flood: %.1f and %.1f times as long",
		sent, calm.P50, calm.P99, flooded.P50, flooded.P99,
		float64(flooded.P50)/float64(calm.P50), float64(flooded.P99)/float64(calm.P99))
	if sent < 2000 {
		t.Errorf("only %d SYNs: the test proves little", sent)
	}
	a.balanced()
	a.stop()
}

// floodSYNs sends SYNs from invented sources to a port of the server, perSecond
// of them and most in all, until end is called, which says how many there were.
// options are the 12 bytes of their TCP options.
func (r *rig) floodSYNs(port uint16, options []byte, perSecond, most int) (end func() (sent int)) {
	r.t.Helper()
	raw, err := r.Client.Raw(r.ClientIf)
	if err != nil {
		r.t.Fatal(err)
	}
	frame := tcpFrame(r, true)
	var h wire.Headers
	h.Parse(frame)
	syn := wire.TCP(frame[h.L4:h.End])
	syn.SetFlags(wire.FlagSYN)
	syn.SetDstPort(port)
	copy(syn.Options(), options)
	stop, sent := make(chan struct{}), 0
	var flood sync.WaitGroup
	flood.Go(func() {
		rng := rand.New(rand.NewPCG(1, 2))
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for sent < most {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			for range perSecond / 1000 {
				// 198.18.0.0/15 is for such tests (RFC 2544), and nobody answers there.
				host := rng.Uint32N(1 << 17)
				copy(frame[h.L3+12:], []byte{198, 18 + byte(host>>16), byte(host >> 8), byte(host)})
				syn.SetSrcPort(uint16(1024 + rng.IntN(60000)))
				syn.SetSeq(rng.Uint32())
				wire.IPv4(frame[h.L3:]).FillChecksum()
				wire.FillL4(frame, &h)
				if _, err := raw.Write(frame); err != nil {
					r.t.Error(err)
					return
				}
				sent++
			}
		}
	})
	halt := sync.OnceFunc(func() {
		close(stop)
		flood.Wait()
		raw.Close()
	})
	r.t.Cleanup(halt) // a test that fails ends it too
	return func() int {
		halt()
		return sent
	}
}
