package pcap

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"penstock/pipeline"
)

// TestCorpus runs every capture below PENSTOCK_PCAPS through a replay without
// stages and compares with capinfos, which is somebody else's reader.
func TestCorpus(t *testing.T) {
	dir := os.Getenv("PENSTOCK_PCAPS")
	if dir == "" {
		t.Skip("PENSTOCK_PCAPS is not set: a directory with captures")
	}
	var names []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if ext := filepath.Ext(path); err == nil && (ext == ".pcap" || ext == ".pcapng") {
			names = append(names, path)
		}
		return err
	})
	if err != nil || len(names) == 0 {
		t.Fatalf("%d captures in %s: %v", len(names), dir, err)
	}
	t.Logf("%d captures", len(names))
	for _, name := range names {
		t.Run(strings.TrimPrefix(name, dir), func(t *testing.T) {
			var counts [3]int
			res, err := Replay(context.Background(), ReplayOptions{
				Name: name, Out: io.Discard, AcceptBadChecksums: true,
				Outcome: func(o *Outcome) {
					if o.Verdict == pipeline.Drop {
						counts[1]++
					}
					counts[0]++
				},
			})
			if err != nil {
				t.Log(err)
			}
			if uint64(counts[0]) != res.Packets || uint64(counts[1]) != (pipeline.Totals{Dropped: res.Dropped}).DroppedTotal() {
				t.Errorf("outcomes %v, result %+v", counts, res)
			}
			if err != nil && strings.Contains(err.Error(), "is not supported") {
				return
			}
			packets, octets, ok := capinfos(t, name)
			if ok && (packets != res.Packets || octets != res.Bytes) {
				t.Errorf("%d packets, %d bytes; capinfos says %d, %d (%v)", res.Packets, res.Bytes, packets, octets, err)
			}
			if !ok {
				t.Logf("capinfos cannot read it; %d packets, %d bytes, %v", res.Packets, res.Bytes, err)
			}
			t.Logf("%+v", res)
			var outs [2]bytes.Buffer
			for i, workers := range []int{1, 3} {
				again, againErr := Replay(context.Background(), ReplayOptions{
					Name: name, Out: &outs[i], AcceptBadChecksums: true, Workers: workers,
				})
				again.Seconds, res.Seconds = 0, 0
				if !reflect.DeepEqual(again, res) || (err == nil) != (againErr == nil) {
					t.Errorf("%d workers: %+v, %v", workers, again, againErr)
				}
			}
			if !bytes.Equal(outs[0].Bytes(), outs[1].Bytes()) {
				t.Error("the output with three workers differs from that with one")
			}
		})
	}
}

// capinfos returns the packets and wire bytes that capinfos counts; not ok
// where it cannot read the capture.
func capinfos(t *testing.T, name string) (packets, octets uint64, ok bool) {
	t.Helper()
	out, err := exec.Command("capinfos", "-TmQrcd", name).Output()
	if err != nil {
		return 0, 0, false
	}
	fields := strings.Split(strings.TrimSpace(string(out)), ",")
	if len(fields) < 3 {
		t.Fatalf("capinfos says %q", out)
	}
	n := len(fields)
	packets, err1 := strconv.ParseUint(strings.Trim(fields[n-2], `"`), 10, 64)
	octets, err2 := strconv.ParseUint(strings.Trim(fields[n-1], `"`), 10, 64)
	if err1 != nil || err2 != nil {
		t.Fatalf("capinfos says %q", out)
	}
	return packets, octets, true
}
