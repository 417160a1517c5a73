package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"penstock/internal/control"
	"penstock/internal/lab"
)

// soakTime is how long TestSoak takes: PENSTOCK_SOAK, as "30m", or a few seconds.
func soakTime(t *testing.T) time.Duration {
	text := os.Getenv("PENSTOCK_SOAK")
	if text == "" {
		return 8 * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("PENSTOCK_SOAK: %v", err)
	}
	return d
}

// TestSoak lets connections of every depth exchange bytes while the
// configuration changes, links go down and up, sources are denied and
// allowed again, and, with PENSTOCK_SOAK_STOPS=1, the process stops for longer than
// its heartbeat. No byte is wrong, no connection breaks, nothing grows, and
// whatever is dropped has a cause that is known here.
func TestSoak(t *testing.T) {
	took, conns := soakTime(t), 60
	if took > time.Minute {
		conns = 300
	}
	r := newRig(t, lab.InlineOptions{})
	write := func(n int) { r.configWith("drain = \"10s\"", everyDepth(n)) }
	write(0)
	ports := []uint16{7000, 7001, 7002, 7003, 7004}
	for _, port := range ports {
		r.tcpServer(port)
	}
	a := r.start()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	k, wait := r.everyTalker(ctx, conns, ports, 2*time.Second)
	client := control.NewClient(r.control())
	stopping := os.Getenv("PENSTOCK_SOAK_STOPS") == "1"
	var reloads, flaps, denies, stops int
	var rss, maps, goroutines int // after a tenth of the time
	began := time.Now()
	said := began
	for n := 1; time.Since(began) < took; n++ {
		if rss == 0 && time.Since(began) > took/10 {
			rss, maps = a.memory()
			goroutines = a.status().Goroutines
		}
		switch {
		case n%10 == 5: // shorter than what a connection waits before it gives up
			name := r.LANIf
			if flaps%2 == 1 {
				name = r.WANIf
			}
			for _, up := range []bool{false, true} {
				if err := r.Appliance.SetLink(name, up); err != nil {
					t.Fatal(err)
				}
				if !up {
					time.Sleep(100 * time.Millisecond) // so long it is down
				}
			}
			flaps++
		case stopping && n%16 == 8:
			a.suspend()
			time.Sleep(time.Second + time.Duration(n%5)*300*time.Millisecond) // longer than the heartbeat
			if err := a.cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			stops++
		case n%3 == 0:
			net := netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, byte(n >> 8), byte(n)}), 32)
			if _, err := client.DenyAdd(control.DenyAdd{Prefixes: []netip.Prefix{net}, ForSeconds: 30, Why: "soak"}); err != nil {
				t.Errorf("deny %v: %v", net, err)
			}
			if n%2 == 0 {
				if err := client.DenyDel([]netip.Prefix{net}); err != nil {
					t.Errorf("allow %v again: %v", net, err)
				}
			}
			denies++
		default:
			write(n)
			if res, err := client.Reload(false); err != nil || !res.Applied {
				t.Errorf("reload %d: %+v, %v", n, res, err)
			}
			reloads++
		}
		if time.Since(said) > time.Minute {
			said = time.Now()
			rss, _ := a.memory()
			t.Logf("%v: %d connections, %d MiB; %d MiB resident, %d goroutines", time.Since(began).Round(time.Second), k.conns.Load(), k.bytes.Load()>>20, rss>>20, a.status().Goroutines)
		}
		time.Sleep(400 * time.Millisecond) // so much later the next change comes
	}
	cancel()
	wait()
	for i, b := range k.broken {
		if t.Errorf("%s", b); i > 20 {
			break
		}
	}
	a.balanced()
	s := a.status()
	dropped, silent := map[string]uint64{}, uint64(0)
	for name, n := range s.Totals.Dropped {
		dropped[name] += n
	}
	for _, p := range s.Ports {
		silent += p.Reasons["worker_silent_open"].Packets
		for name, c := range p.Verdicts["drop"] {
			dropped["xdp "+name] += c.Packets
		}
		for _, q := range p.Queues {
			for _, name := range []string{"rx_dropped", "rx_ring_full", "fill_ring_empty", "bad_frames"} {
				if n := q.Extra[name]; n > 0 {
					dropped["queue "+name] += n
				}
			}
		}
	}
	endRSS, endMaps := a.memory()
	t.Logf("%v: %d reloads, %d flaps, %d denies, %d stops; %d connections, %d MiB, %d broken", took, reloads, flaps, denies, stops, k.conns.Load(), k.bytes.Load()>>20, len(k.broken))
	t.Logf("resident MiB %d, %d; BPF maps and programs %d, %d; goroutines %d, %d; dropped %v; %d passed a silent worker by", rss>>20, endRSS>>20, maps, endMaps, goroutines, s.Goroutines, dropped, silent)
	if endRSS > rss+rss/4+64<<20 {
		t.Errorf("memory grew from %d to %d MiB", rss>>20, endRSS>>20)
	}
	if endMaps != maps {
		t.Errorf("BPF maps and programs: %d, and %d before", endMaps, maps)
	}
	if s.Goroutines > goroutines+100 {
		t.Errorf("%d goroutines, %d before", s.Goroutines, goroutines)
	}
	for name := range dropped {
		if !soakDrops[name] && !(stopping && strings.HasPrefix(name, "queue ")) { // rings are full when nobody takes from them
			t.Errorf("%d packets dropped as %q, for which there is no cause here", dropped[name], name)
		}
	}
	if soakTime(t) > time.Minute {
		r.eventually("no connection is left in the netstack", func() error {
			// What has ended is remembered for a while.
			if f := a.status().Flows; f.Terminated > 0 {
				return fmt.Errorf("%+v", f)
			}
			return nil
		})
	}
	a.stop()
}

// soakDrops are the causes that TestSoak gives. A busy machine, too, leaves a worker
// without a processor for longer than its heartbeat.
var soakDrops = map[string]bool{"xdp worker_silent_held": true}
