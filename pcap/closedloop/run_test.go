package closedloop_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"penstock/pcap"
	"penstock/pcap/closedloop"
	"penstock/pipeline"
	"penstock/pipeline/fault"
	"penstock/stages"
	"penstock/stages/tcp"
)

// chain returns a chain of stages at their defaults, but for tcp, which
// terminates.
func chain(t testing.TB, kinds ...string) *pipeline.ChainSpec {
	t.Helper()
	reg := stages.Builtin()
	spec := &pipeline.ChainSpec{Name: "test"}
	for _, name := range kinds {
		k := reg.Lookup(name)
		if k == nil {
			t.Fatalf("no stage %s", name)
		}
		config := k.NewConfig()
		if c, ok := config.(*tcp.Config); ok {
			c.Depth = "terminate"
		}
		spec.Stages = append(spec.Stages, pipeline.StageSpec{Kind: k, Config: config, Shared: &pipeline.Shared{}})
	}
	return spec
}

// run replays, and checks what holds for every run.
func run(t testing.TB, o closedloop.Options) (closedloop.Result, []byte) {
	t.Helper()
	var out bytes.Buffer
	o.Out = &out
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	res, err := closedloop.Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if res.Played != res.Equal+res.Differs+res.Denied || res.Flows != res.Played+res.NotPlayed || len(res.List) != res.Flows {
		t.Errorf("the figures do not add up: %+v", summary(res))
	}
	if tot := (pipeline.Totals{Packets: res.Packets, Forwarded: res.Forwarded, Consumed: res.Consumed, Dropped: res.Dropped}); !tot.Balanced() {
		t.Errorf("packets disappeared: %+v", tot)
	}
	return res, out.Bytes()
}

// summary is a result without what is long or never the same.
func summary(r closedloop.Result) closedloop.Result {
	r.List, r.Chain, r.Seconds = nil, nil, 0
	return r
}

// describe logs the connections that a test is not content with.
func describe(t testing.TB, r closedloop.Result, ok func(f *closedloop.Flow) bool) {
	t.Helper()
	for i := range r.List {
		if f := &r.List[i]; !ok(f) {
			b, _ := json.Marshal(f)
			t.Errorf("%s", b)
		}
	}
}

func equalOrNotPlayed(f *closedloop.Flow) bool {
	return f.Status == closedloop.Equal || f.Status == closedloop.NotPlayed
}

// captures returns the files of a directory.
func captures(t testing.TB, dirs ...string) (files []string) {
	t.Helper()
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(file string, _ fs.DirEntry, err error) error {
			if ext := filepath.Ext(file); ext == ".pcap" || ext == ".pcapng" {
				files = append(files, file)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// all returns the captures of the repository and, where PENSTOCK_PCAPS names a
// directory of more, those too.
func all(t testing.TB) []string {
	dirs := []string{"../../internal/wire/testdata", "../testdata"}
	if more := os.Getenv("PENSTOCK_PCAPS"); more != "" {
		dirs = append(dirs, more)
	}
	return captures(t, dirs...)
}

// readable leaves out captures that cannot be read to their end.
func readable(t testing.TB, file string) bool {
	r, err := pcap.Open(file)
	if err != nil {
		return false
	}
	defer r.Close()
	var rec pcap.Record
	var eth [14]byte
	for {
		if err := r.Next(&rec); err != nil {
			return err == io.EOF
		}
		if _, _, err := rec.Link.EthernetHeader(rec.Data, &eth); err != nil {
			return false
		}
	}
}

// TestCaptures: in every connection of every capture that is complete, both
// ends receive exactly the capture's bytes, through the real netstack.
func TestCaptures(t *testing.T) {
	played, withPayload := 0, 0
	for _, file := range all(t) {
		if !readable(t, file) {
			continue
		}
		res, _ := run(t, closedloop.Options{Name: file, Chain: chain(t, "tcp"), AcceptBadChecksums: true})
		describe(t, res, func(f *closedloop.Flow) bool { return equalOrNotPlayed(f) && f.Relaxed == 0 })
		if t.Failed() {
			t.Fatal(file)
		}
		played += res.Played
		for _, f := range res.List {
			if f.ToServer.Received+f.ToClient.Received > 0 {
				withPayload++
			}
		}
	}
	if withPayload < 10 {
		t.Errorf("%d connections were played, %d with payload", played, withPayload)
	}
	t.Logf("%d connections, %d with payload", played, withPayload)
}

// TestCapturesWithFaults: the same over wires that lose, repeat, reorder, delay
// and damage.
func TestCapturesWithFaults(t *testing.T) {
	f, err := fault.Parse("loss=5%,duplicate=5%,reorder=5%,corrupt=2%,jitter=1ms,seed=11")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range all(t) {
		if !readable(t, file) {
			continue
		}
		res, _ := run(t, closedloop.Options{Name: file, Chain: chain(t, "tcp"), AcceptBadChecksums: true, Faults: f})
		describe(t, res, func(f *closedloop.Flow) bool { return equalOrNotPlayed(f) })
		if t.Failed() {
			t.Fatal(file)
		}
	}
}

// TestNoChain: without a stage the ends talk to each other.
func TestNoChain(t *testing.T) {
	f := fault.Options{Loss: 0.05, Duplicate: 0.05, Reorder: 0.05}
	res, _ := run(t, closedloop.Options{Name: "conversations", In: bytes.NewReader(conversations(t, 1, 30)), Faults: f})
	describe(t, res, func(f *closedloop.Flow) bool { return f.Status == closedloop.Equal })
	if res.Played != 30 || res.Forwarded == 0 || res.Consumed != 0 {
		t.Errorf("got %+v", summary(res))
	}
}

// TestTenRuns: ten runs write the same output, to the byte, and tell the same,
// with any number of processors, over good wires and bad ones.
func TestTenRuns(t *testing.T) {
	capture := conversations(t, 2, 60)
	for name, f := range map[string]fault.Options{"good": {}, "bad": {Seed: 5, Loss: 0.05, Duplicate: 0.05, Reorder: 0.05, Corrupt: 0.02}} {
		t.Run(name, func(t *testing.T) {
			var first []byte
			var told string
			for i := range 10 {
				before := runtime.GOMAXPROCS(1 + i%4)
				res, out := run(t, closedloop.Options{Name: "conversations", In: bytes.NewReader(capture), Chain: chain(t, "tcp", "http"), Faults: f, Seed: 3})
				runtime.GOMAXPROCS(before)
				res.Seconds = 0
				b, err := json.Marshal(res)
				if err != nil {
					t.Fatal(err)
				}
				if i == 0 {
					first, told = out, string(b)
					continue
				}
				if !bytes.Equal(out, first) {
					t.Fatalf("run %d: the output differs", i)
				}
				if string(b) != told {
					t.Fatalf("run %d tells %s, the first %s", i, b, told)
				}
			}
			res, out := run(t, closedloop.Options{Name: "conversations", In: bytes.NewReader(capture), Chain: chain(t, "tcp", "http"), Faults: f, Seed: 4})
			if bytes.Equal(out, first) {
				t.Error("another seed makes the same output")
			}
			describe(t, res, func(f *closedloop.Flow) bool { return f.Status == closedloop.Equal })
		})
	}
}

// TestCapturesAgain: each capture gives the same output in each run: in two of
// them, and in ten where PENSTOCK_PCAPS names the captures.
func TestCapturesAgain(t *testing.T) {
	runs := 2
	if os.Getenv("PENSTOCK_PCAPS") != "" {
		runs = 10
	}
	for _, file := range all(t) {
		if !readable(t, file) {
			continue
		}
		var first []byte
		for i := range runs {
			_, out := run(t, closedloop.Options{Name: file, Chain: chain(t, "tcp"), AcceptBadChecksums: true})
			if i == 0 {
				first = out
			} else if !bytes.Equal(out, first) {
				t.Fatalf("%s: run %d writes another output", file, i+1)
			}
		}
	}
}

// TestLong: a thousand connections over wires that lose, repeat and reorder 5 %
// of everything. Every byte is right, and nothing is left behind.
func TestLong(t *testing.T) {
	const n = 1000
	capture := conversations(t, 3, n)
	f := fault.Options{Seed: 9, Loss: 0.05, Duplicate: 0.05, Reorder: 0.05}
	goroutines, heap := resting()
	var counters map[string]uint64
	once := func(seed uint64) {
		res, _ := run(t, closedloop.Options{Name: "conversations", In: bytes.NewReader(capture), Chain: chain(t, "tcp"), Faults: f, Seed: seed, Window: 200})
		describe(t, res, func(f *closedloop.Flow) bool { return f.Status == closedloop.Equal })
		if res.Played != n || res.Equal != n {
			t.Errorf("got %+v", summary(res))
		}
		counters = res.Chain.Stages[0].Counters
	}
	once(1)
	// A client that resets at once may do so before its handshake is over.
	if counters["accepted"]+counters["handshake_failed"] != n || counters["flows_active"] != 0 || counters["flows_pending"] != 0 || counters["flows_lingering"] != 0 {
		t.Errorf("the stage's figures: %v", counters)
	}
	after, size := resting()
	for end := time.Now().Add(5 * time.Second); after > goroutines && time.Now().Before(end); after, size = resting() {
		time.Sleep(time.Millisecond)
	}
	if after > goroutines {
		t.Errorf("%d goroutines before, %d after", goroutines, after)
	}
	if size > heap+8<<20 {
		t.Errorf("heap of %d bytes before, %d after", heap, size)
	}
}

// resting returns how many goroutines there are and how large the heap is.
func resting() (goroutines int, heap uint64) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return runtime.NumGoroutine(), m.HeapAlloc
}
