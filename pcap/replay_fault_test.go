package pcap_test

import (
	"bytes"
	"context"
	"encoding/json"
	"testing"
	"time"

	"penstock/internal/units"
	"penstock/internal/wire"
	"penstock/pcap"
	"penstock/pipeline/fault"
	"penstock/pipeline/pipelinetest"
)

// TestReplayWithFaults: what faults lose, repeat and hold back is accounted for,
// and two replays are the same.
func TestReplayWithFaults(t *testing.T) {
	var frames [][]byte
	for i := range 3000 {
		src, dst := "10.0.0.1:1000", "10.0.0.2:80"
		if i%2 == 1 {
			src, dst = dst, src
		}
		frames = append(frames, pipelinetest.TCP(src, dst, wire.FlagACK, uint32(i), pipelinetest.PayloadLen(i%1400), pipelinetest.DontFragment()))
	}
	capture := pipelinetest.Capture(time.Millisecond, frames...)
	for _, workers := range []int{1, 3} {
		o := pcap.ReplayOptions{Name: "faults", Workers: workers, Faults: fault.Options{
			Seed: 4, Loss: 0.05, Duplicate: 0.05, Reorder: 0.05, Corrupt: 0.01, Jitter: units.Duration(3 * time.Millisecond), MTU: 1200, PacketTooBig: true,
		}}
		var first []byte
		var told string
		for range 2 {
			var out bytes.Buffer
			o.In, o.Out = bytes.NewReader(capture), &out
			res, err := pcap.Replay(context.Background(), o)
			if err != nil {
				t.Fatal(err)
			}
			res.Seconds = 0
			text, err := json.Marshal(res)
			if err != nil {
				t.Fatal(err)
			}
			in := res.Faults["client"]
			if res.Packets != 3000 || res.Added == 0 || res.Dropped["fault_loss"] == 0 || res.Dropped["fault_mtu"] == 0 || in["rx_fault_loss"] == 0 ||
				res.Faults["server"]["tx_fault_reorder"] == 0 || res.Dropped["fault_stopped"] != 0 || res.Dropped["bad_l4_checksum"] == 0 {
				t.Errorf("got %s", text)
			}
			if first == nil {
				first, told = out.Bytes(), string(text)
			} else if !bytes.Equal(first, out.Bytes()) || told != string(text) {
				t.Errorf("%d workers: two replays differ", workers)
			}
		}
	}
}
