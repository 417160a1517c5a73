package capture

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"penstock/internal/packetring"
	"penstock/internal/wire"
	"penstock/pcap"
	"penstock/pipeline"
	"penstock/pipeline/pipelinetest"
)

func TestConformance(t *testing.T) {
	t.Chdir(t.TempDir()) // the manual's examples write to a directory below the present one
	small := defaults()
	small.Dir, small.SnapLen = "small", 60
	lossless := defaults()
	lossless.Dir, lossless.Lossless, lossless.Buffer = "lossless", true, minBuffer
	pipelinetest.Stage(t, Descriptor(), small, lossless)
}

// TestReplay captures a replay and compares the files, read by tshark, with what became of each packet.
func TestReplay(t *testing.T) {
	dir := t.TempDir()
	var frames [][]byte
	for _, a := range pipelinetest.Traffic() {
		if h := new(wire.Headers); h.Parse(a.Frame) == wire.FaultNone && h.Proto != panicProto {
			frames = append(frames, a.Frame)
		}
	}
	ports := []string{"client", "server"}
	var want []row
	res, err := pcap.Replay(context.Background(), pcap.ReplayOptions{
		In:    bytes.NewReader(pipelinetest.Capture(1500*time.Microsecond, frames...)),
		Chain: mustParse(t, "dir = '"+dir+"'\nsnaplen = \"200B\"\nlossless = true"),
		Outcome: func(o *pcap.Outcome) {
			if o.Packet.IPVersion == 0 {
				return
			}
			comment := "chain=c stage=2 verdict=" + o.Verdict.String()
			switch {
			case o.Verdict == pipeline.Drop:
				comment += " reason=" + o.Reason.String()
			case o.Verdict == pipeline.Forward:
				comment += " out=" + ports[o.Packet.Out]
			}
			n := o.Packet.Len()
			want = append(want, row{
				fmt.Sprintf("%d.%09d", o.Time/1e9, o.Time%1e9), ports[o.Packet.In],
				strconv.Itoa(n), strconv.Itoa(min(n, 200)), comment,
			})
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	files := glob(t, filepath.Join(dir, "*"))
	if len(files) != 1 || filepath.Base(files[0]) != "c-1.0000.pcapng" {
		t.Fatalf("files: %v", files)
	}
	got := tshark(t, files...)
	if len(got) != len(want) {
		t.Fatalf("%d packets were captured, want %d", len(got), len(want))
	}
	verdicts := map[string]int{}
	for i := range got {
		verdicts[strings.Fields(want[i].comment)[len(strings.Fields(want[i].comment))-1]]++
		if got[i] != want[i] {
			t.Errorf("packet %d:\ngot  %v\nwant %v", i+1, got[i], want[i])
		}
	}
	if len(verdicts) != 4 { // dropped, consumed, forwarded by either port

		t.Errorf("fates: %v", verdicts)
	}
	c := res.Chain.Stages[0].Counters
	if c["captured"] != uint64(len(want)) || c["capture_overrun"] != 0 || c["lost"] != 0 || c["files"] != 1 || c["write_errors"] != 0 {
		t.Errorf("counters: %v", c)
	}
}

var segment = pipelinetest.TCP("10.0.0.1:1000", "10.0.0.2:80", wire.FlagACK, 1, pipelinetest.PayloadLen(1400)) // 1,454 bytes

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	b := newBench(t, mustParse(t, "dir = '"+dir+"'\nprefix = \"web\"\nfile_size = \"1MiB\"\nfiles = 3\nlossless = true"))
	b.send(3000, segment) // 4.5 MB
	b.close()
	if c := b.counters(); c["captured"] != 3000 || c["files"] != 5 || c["captured_bytes"] != 3000*1454 {
		t.Errorf("counters: %v", c)
	}
	files := glob(t, dir+"/*")
	var names []string
	for _, f := range files {
		names = append(names, filepath.Base(f))
		if fi, err := os.Stat(f); err != nil || fi.Size() > 1<<20 {
			t.Errorf("%s: %v, %d bytes", f, err, fi.Size())
		}
	}
	if got := strings.Join(names, " "); got != "web.0002.pcapng web.0003.pcapng web.0004.pcapng" {
		t.Errorf("files: %s", got)
	}
	// The files that were removed were full, as the first two of these are.
	var in []int
	for _, f := range files {
		in = append(in, packets(t, f))
	}
	if len(in) == 3 && (in[0] != in[1] || 4*in[0]+in[2] != 3000) {
		t.Errorf("packets in the files: %v, want four times the first and the last to be 3000", in)
	}

	// The next run goes on behind them.
	b = newBench(t, mustParse(t, "dir = '"+dir+"'\nprefix = \"web\"\nfiles = 3"))
	b.send(1, segment)
	b.close()
	if c := b.counters(); c["files"] != 1 {
		t.Errorf("second run: counters %v", c)
	}
	if files := glob(t, dir+"/*"); len(files) != 3 || filepath.Base(files[2]) != "web.0005.pcapng" || packets(t, files[2]) != 1 {
		t.Errorf("second run: files %v", files)
	}
}

// TestReadableWhileRunning reads the file between packets.
func TestReadableWhileRunning(t *testing.T) {
	dir := t.TempDir()
	b := newBench(t, mustParse(t, "dir = '"+dir+"'"))
	defer b.close()
	file := filepath.Join(dir, "c-1.0000.pcapng")
	if n := packets(t, file); n != 0 {
		t.Errorf("%d packets before the first", n)
	}
	for i := 1; i <= 3; i++ {
		before, _ := os.Stat(file)
		b.send(1, segment)
		await(t, "the packet is in the file", func() bool { fi, _ := os.Stat(file); return fi.Size() > before.Size() })
		if n := packets(t, file); n != i {
			t.Errorf("%d packets, want %d", n, i)
		}
	}
}

// TestLaterStagePanics loses the verdicts of a batch, but not its packets.
func TestLaterStagePanics(t *testing.T) {
	dir := t.TempDir()
	b := newBench(t, mustParse(t, "dir = '"+dir+"'"))
	b.ports[0].Inject(segment)
	b.send(1, pipelinetest.IP("10.0.0.1", "10.0.0.2", panicProto))
	b.send(1, segment)
	b.close()
	r, err := pcap.Open(glob(t, dir+"/*")[0])
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var comments []string
	var rec pcap.Record
	for r.Next(&rec) == nil {
		comments = append(comments, string(rec.Comment()))
	}
	want := "chain=c verdict=unknown,chain=c verdict=unknown,chain=c stage=2 verdict=forward out=server"
	if got := strings.Join(comments, ","); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestMatch(t *testing.T) {
	dir := t.TempDir()
	b := newBench(t, mustParse(t, "dir = '"+dir+"'\nmatch = [{ proto = \"tcp\", dst_port = [443] }, { proto = \"icmp\", from = \"client\" }]"))
	b.send(5, segment)
	b.send(3, pipelinetest.TCP("10.0.0.1:1000", "10.0.0.2:443", wire.FlagSYN, 1))
	b.send(2, pipelinetest.Ping("10.0.0.1", "10.0.0.2", 1, 1))
	b.close()
	if n := packets(t, glob(t, dir+"/*")...); n != 5 {
		t.Errorf("%d packets were captured, want 5", n)
	}
	if c := b.counters(); c["captured"] != 5 || c["captured_bytes"] != 3*54+2*42 {
		t.Errorf("counters: %v", c)
	}
}

// TestWorkersShareFiles has three workers capture, one after the other and with times that interleave.
func TestWorkersShareFiles(t *testing.T) {
	dir := t.TempDir()
	var frames [][]byte
	for i := range 300 {
		frames = append(frames, pipelinetest.TCP(fmt.Sprintf("10.0.0.%d:1000", i%20), "10.9.0.1:80", wire.FlagACK, uint32(i)))
	}
	res, err := pcap.Replay(context.Background(), pcap.ReplayOptions{
		In: bytes.NewReader(pipelinetest.Capture(time.Millisecond, frames...)), Workers: 3,
		Chain: mustParse(t, "dir = '"+dir+"'"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if files := glob(t, dir+"/*"); len(files) != 1 || packets(t, files...) != 300 {
		t.Errorf("files %v, want one with 300 packets", files)
	}
	if c := res.Chain.Stages[0].Counters; c["captured"] != 300 || c["files"] != 1 {
		t.Errorf("counters: %v", c)
	}
}

// TestOverrunNeverWaits fills a buffer that nobody empties.
func TestOverrunNeverWaits(t *testing.T) {
	s := unwritten(10*packetring.Size(100), 100)
	b := pipeline.NewBatch(16)
	for range 16 {
		b.Add(packet(t, 1000))
	}
	s.Process(b)
	s.Observe(b)
	if s.captured.Load() != 10 || s.overrun.Load() != 6 || s.bytes.Load() != 1000 {
		t.Errorf("captured %d with %d bytes, overrun %d; want 10, 1000, 6", s.captured.Load(), s.bytes.Load(), s.overrun.Load())
	}
	for i, p := range b.All() {
		if v, _ := p.Verdict(); v != pipeline.Continue {
			t.Errorf("packet %d: %v", i, v)
		}
	}
}

// TestLosslessWaits sends far more than the buffer holds.
func TestLosslessWaits(t *testing.T) {
	dir := t.TempDir()
	b := newBench(t, mustParse(t, "dir = '"+dir+"'\nlossless = true\nbuffer = \"64KiB\"\nsnaplen = \"1500B\""))
	b.send(20000, segment) // 29 MB through 100 KB
	b.close()
	if c := b.counters(); c["captured"] != 20000 || c["capture_overrun"] != 0 || c["lost"] != 0 {
		t.Errorf("counters: %v", c)
	}
	n := 0
	r, err := pcap.Open(glob(t, dir+"/*")[0])
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var rec pcap.Record
	for err = r.Next(&rec); err == nil; err = r.Next(&rec) {
		n++
	}
	if err != io.EOF || n != 20000 {
		t.Errorf("%d packets in the file (%v), want 20000", n, err)
	}
}

// BenchmarkProcess is the cost on the packet path: the records are thrown away instead of written.
func BenchmarkProcess(b *testing.B) {
	for _, snap := range []int{pcap.MaxPacket, 128} {
		b.Run(fmt.Sprintf("snaplen=%d", snap), func(b *testing.B) {
			s := unwritten(4<<20, snap)
			batch := pipeline.NewBatch(pipeline.BatchSize)
			for range pipeline.BatchSize {
				p := packet(b, len(segment))
				copy(p.Bytes(), segment)
				p.Parse()
				batch.Add(p)
			}
			b.ReportAllocs()
			var rec packetring.Record
			for b.Loop() {
				s.Process(batch)
				s.Observe(batch)
				for s.ring.Peek(&rec) {
					s.ring.Done(&rec)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch.Len()), "ns/packet")
			if n := s.overrun.Load(); n > 0 {
				b.Fatalf("%d packets were not captured", n)
			}
		})
	}
}

var reasonTest = pipeline.DefineReason("capture_test", "used by the tests of this package")

func packet(t testing.TB, n int) *pipeline.Packet {
	t.Helper()
	arena, err := pipeline.NewArena(make([]byte, n+1), n+1, 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	p := arena.Pool(0).Get()
	p.SetView(0, n)
	return p
}
