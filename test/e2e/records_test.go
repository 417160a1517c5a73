package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"penstock/internal/control"
	"penstock/internal/lab"
)

// TestReloadRecords adds, changes and removes sinks of records while requests are
// recorded: the file that stays has each of them once, no other has any twice, and a
// sink that cannot be opened changes nothing.
func TestReloadRecords(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{})
	const chains = `
[[steer]]
proto = "tcp"
dst_port = [80]
to = "inspect"
[[steer]]
proto = "tcp"
dst_port = [81]
to = "terminate"
[[chain]]
name = "inspect"
  [[chain.stage]]
  kind = "tcp"
  depth = "inspect"
  [[chain.stage]]
  kind = "http"
[[chain]]
name = "terminate"
  [[chain.stage]]
  kind = "tcp"
  depth = "terminate"
  [[chain.stage]]
  kind = "http"
`
	file := func(name string) string { return filepath.Join(r.dir, name) }
	sink := func(to string, events ...string) string {
		list, _ := json.Marshal(events)
		return fmt.Sprintf("[[record]]\nto = %q\nevents = %s\n", to, list)
	}
	stays := sink("file:"+file("stays"), "http")
	socket := file("socket")
	r.config("open", "", chains+stays)
	r.origin(80)
	r.origin(81)
	a := r.start()
	client := control.NewClient(r.control())
	var sent atomic.Int64
	stop := make(chan struct{})
	var group sync.WaitGroup
	end := sync.OnceFunc(func() { close(stop); group.Wait() })
	defer end()
	for i := range 8 {
		c := r.client().HTTP(i%4 < 3)
		group.Go(func() {
			defer c.CloseIdleConnections()
			for {
				select {
				case <-stop:
					return
				default:
				}
				res, err := c.Get(fmt.Sprintf("http://%s/bytes/100?n=%d", r.addr(i%3 == 1, 80+uint16(i%2)), sent.Add(1)))
				if err == nil {
					_, err = io.Copy(io.Discard, res.Body)
					res.Body.Close()
				}
				if err != nil {
					t.Errorf("talker %d: %v", i, err)
					return
				}
			}
		})
	}
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var received atomic.Int64
	group.Go(func() {
		<-stop
		ln.Close()
	})
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				b, _ := io.ReadAll(c)
				received.Add(int64(bytes.Count(b, []byte("\n"))))
				c.Close()
			}()
		}
	}()
	bodies := []string{
		stays + sink("file:"+file("one"), "http", "flow_start"),
		sink("file:"+file("two"), "all") + stays,
		sink("file:"+file("stays"), "http", "drop") + sink("unix:"+socket, "http"),
		stays,
	}
	kinds := func() (events map[string]int) {
		events = map[string]int{}
		for _, f := range []string{"one", "two"} {
			b, _ := os.ReadFile(file(f))
			for line := range strings.Lines(string(b)) {
				var e struct {
					Type string `json:"event_type"`
				}
				if json.Unmarshal([]byte(line), &e) == nil {
					events[e.Type]++
				}
			}
		}
		return events
	}
	var goroutines, maps int
	for n := range 12 {
		r.config("open", "", chains+bodies[n%len(bodies)])
		if res, err := client.Reload(false); err != nil || !res.Applied || len(res.Changes) == 0 || len(res.Kept) != 2 {
			t.Fatalf("reload %d: %+v, %v", n, res, err)
		}
		before := sent.Load()
		r.eventually("requests go on", func() error {
			if sent.Load() < before+100 {
				return fmt.Errorf("%d of 100", sent.Load()-before)
			}
			return nil
		})
		if n%4 == 3 { // as in the beginning
			_, now := a.memory()
			if s := a.status(); n == 3 {
				goroutines, maps = s.Goroutines, now
			} else if now != maps || s.Goroutines > goroutines+20 {
				t.Errorf("BPF maps and programs: %d, %d before; goroutines: %d, %d", now, maps, s.Goroutines, goroutines)
			}
			for to, want := range map[string]string{"file:" + file("no/file"): "does not exist", "unix:" + file("nobody"): "no such file"} {
				r.config("open", "", chains+sink(to, "all"))
				if res, err := client.Reload(false); err != nil || res.Applied || !strings.Contains(res.Refused, want) {
					t.Errorf("%s: %+v, %v", to, res, err)
				}
			}
		}
	}
	end()
	r.eventually("all is written", func() error {
		if s := a.status(); s.Records[0].Queued != 0 || s.Records[0].Written != uint64(sent.Load()) {
			return fmt.Errorf("%d requests, %+v", sent.Load(), s.Records)
		}
		return nil
	})
	for _, name := range []string{"stays", "one", "two"} {
		b, err := os.ReadFile(file(name))
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]int{}
		for line := range strings.Lines(string(b)) {
			var e struct {
				Type string `json:"event_type"`
				HTTP struct {
					URL string `json:"url"`
				} `json:"http"`
			}
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Errorf("%s: %q: %v", name, line, err)
			} else if e.Type == "http" {
				seen[e.HTTP.URL]++
			}
		}
		for url, n := range seen {
			if n > 1 {
				t.Errorf("%s has %s %d times", name, url, n)
			}
		}
		if name == "stays" && len(seen) != int(sent.Load()) {
			t.Errorf("%d requests, %d of them recorded", sent.Load(), len(seen))
		} else if len(seen) == 0 {
			t.Errorf("%s has no request: the test proves nothing", name)
		}
	}
	// Program and reader of XDP's events come and go with who wants them.
	if events := kinds(); events["flow_start"] == 0 || events["audit"] == 0 {
		t.Errorf("of other events: %v", events)
	}
	s := a.status()
	if rm := s.RemovedRecords; rm == nil || rm.Dropped+rm.Failed+rm.Queued != 0 {
		t.Errorf("of what was removed: %+v", rm)
	}
	r.eventually("the socket has its requests", func() error {
		total := received.Load()
		for _, n := range kinds() {
			total += int64(n)
		}
		if total != int64(s.RemovedRecords.Written) || received.Load() == 0 {
			return fmt.Errorf("%d lines arrived, %d of them by the socket; %d were written", total, received.Load(), s.RemovedRecords.Written)
		}
		return nil
	})
	t.Logf("%d requests, %d reloads, removed: %+v", sent.Load(), s.Reloads.Applied, *s.RemovedRecords)
	a.stop()
}
