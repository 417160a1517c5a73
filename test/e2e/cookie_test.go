package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"penstock/internal/lab"
	"penstock/internal/lab/traffic"
)

const cookieChain = `
[[steer]]
from = "lan"
proto = "tcp"
to = "web"
[[chain]]
name = "web"
  [[chain.stage]]
  kind = "tcp"
  depth = "terminate"
  syn_cookies = "%s"
  splice = "%s"
  max_pending = 256
  handshake_timeout = "1s"
  dial_timeout = "2s"
`

// TestSYNCookies: Linux connects by cookies only, and its bytes arrive, over
// connections that are terminated and over such that are spliced.
func TestSYNCookies(t *testing.T) {
	for _, splice := range []string{"never", "auto"} {
		t.Run("splice "+splice, func(t *testing.T) {
			const conns = 40
			r := newRig(t, lab.InlineOptions{})
			r.config("closed", "", fmt.Sprintf(cookieChain, "on", splice))
			r.tcpServer(7000)
			a := r.start()
			for _, v6 := range []bool{false, true} {
				ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
				var wg sync.WaitGroup
				for i := range conns {
					wg.Go(func() {
						if err := r.client().TCPEcho(ctx, r.addr(v6, 7000), int64(1+i*5000)); err != nil {
							t.Errorf("%s: %v", ipName(v6), err)
						}
					})
				}
				wg.Wait()
				cancel()
			}
			if got := a.counter("syn_cookie_flows"); got != 2*conns {
				t.Errorf("%d connections began with a cookie, want %d", got, 2*conns)
			}
			if splice == "auto" && a.counter("spliced") == 0 {
				t.Errorf("none was spliced; %d were not for their options", a.counter("syn_cookie_not_spliced"))
			}
			t.Logf("spliced %d, not for their options %d, offloaded %d", a.counter("spliced"), a.counter("syn_cookie_not_spliced"), a.counter("splice_offloaded"))
			a.stop()
		})
	}
}

// TestSYNFloodTerminated: SYNs of invented sources against a chain that
// terminates. Cookies are switched on, a client's new connections all succeed
// meanwhile, and cookies are switched off again after it. How much longer they
// take is logged: flood, ends and appliance share the processors here.
func TestSYNFloodTerminated(t *testing.T) {
	const (
		perSecond = 10000
		most      = 60000
		requests  = 2000
	)
	r := newRig(t, lab.InlineOptions{})
	r.config("closed", "", fmt.Sprintf(cookieChain, "auto", "never"))
	r.origin(80)
	a := r.start()
	load := func() traffic.LoadResult {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		defer cancel()
		res, err := traffic.Load(ctx, traffic.LoadOptions{
			Kind: "http", Address: r.addr(false, 80), Path: "/bytes/200", Conns: 4, Requests: requests, Dial: r.Client.DialContext,
		})
		if err != nil || res.Errors > 0 || res.Requests != requests {
			t.Errorf("%+v, %v", res, err)
		}
		return res
	}
	calm := load()
	if n := a.counter("syn_cookie_flows"); n != 0 {
		t.Errorf("%d connections began with a cookie in the calm", n)
	}

	end := r.floodSYNs(80, []byte{2, 4, 5, 0xb4, 4, 2, 1, 1, 1, 3, 3, 7}, perSecond, most)
	r.eventually("cookies are switched on", func() error {
		if a.counter("syn_cookies_active") == 0 {
			return fmt.Errorf("%d dials", a.counter("dials"))
		}
		return nil
	})
	flooded := load()
	pending := a.counter("flows_pending")
	sent := end()
	dials, began := a.counter("dials"), a.counter("syn_cookie_flows")
	t.Logf("%d SYNs, %d dials, %d connections by cookie; new connections with a request took %d us (p50), %d us (p99) in the calm, %d and %d in the flood: %.1f and %.1f times as long",
		sent, dials, began, calm.P50, calm.P99, flooded.P50, flooded.P99,
		float64(flooded.P50)/float64(calm.P50), float64(flooded.P99)/float64(calm.P99))
	switch {
	case sent < 2000:
		t.Errorf("only %d SYNs: the test proves little", sent)
	case began == 0 || dials > 2*requests+512:
		t.Errorf("%d connections by cookie, %d dials", began, dials)
	case pending > 256:
		t.Errorf("%d connections were being established", pending)
	}
	r.eventually("cookies are switched off", func() error {
		if a.counter("syn_cookies_active") != 0 {
			return fmt.Errorf("%d pending", a.counter("flows_pending"))
		}
		return nil
	})
	calmAgain := a.counter("syn_cookie_flows")
	if err := r.request(false); err != nil {
		t.Error(err)
	}
	if n := a.counter("syn_cookie_flows"); n != calmAgain {
		t.Errorf("a connection began with a cookie after the flood")
	}
	var answered uint64
	for _, p := range a.status().Ports {
		answered += p.Verdicts["tx"]["syn_cookie_sent"].Packets
	}
	if answered < uint64(sent)/2 {
		t.Errorf("%d of %d SYNs were answered", answered, sent)
	}
	a.stop()
}
