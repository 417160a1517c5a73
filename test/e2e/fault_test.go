package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"penstock/internal/lab"
	"penstock/internal/lab/traffic"
)

// TestRehearsal: an appliance with faults on purpose, which harm what passes and
// destroy nothing. They are counted, and said aloud.
func TestRehearsal(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{})
	file := r.config("closed", "[port.fault]\nseed = 5\nloss = \"1%\"\nduplicate = \"1%\"\nreorder = \"1%\"\ncorrupt = \"0.5%\"\ndelay = \"1ms\"\njitter = \"1ms\"\n", terminateChain)
	cmd := r.penstock("check", file)
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "FAULTS ARE ON: port") != 2 {
		t.Fatalf("check: %v\n%s", err, out)
	}
	a := r.start()
	r.origin(80)
	object := filepath.Join(r.dir, "object")
	const size = 2000000
	r.run(r.Client, 60*time.Second, "curl", "-sS", "--fail", "-o", object, "http://"+r.addr(false, 80)+"/bytes/2000000")
	b, err := os.ReadFile(object)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	if got, want := hex.EncodeToString(sum[:]), traffic.Sum(traffic.Seed, size); got != want {
		t.Errorf("%d bytes with sum %s, want %s", len(b), got, want)
	}
	met := map[string]uint64{}
	for _, p := range a.status().Ports {
		for _, q := range p.Queues {
			for k, n := range q.Extra {
				met[k] += n
			}
		}
	}
	for _, k := range []string{"rx_fault_loss", "rx_fault_delay", "tx_fault_loss", "tx_fault_delay", "tx_fault_duplicate"} {
		if met[k] == 0 {
			t.Errorf("%s is 0 of %v", k, met)
		}
	}
	a.balanced()
	a.stop()
}
