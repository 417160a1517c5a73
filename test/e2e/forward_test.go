package e2e

import (
	"context"
	"testing"
	"time"

	"penstock/internal/lab"
)

const forwardChain = `
[[steer]]
from = "lan"
proto = "tcp"
to = "plain"
[[chain]]
name = "plain"
`

// TestForward sends TCP through a chain without stages: every packet of both
// directions goes up to user space and down again.
func TestForward(t *testing.T) {
	t.Parallel()
	for _, port := range []string{`xdp = "native"`, `xdp = "generic"`} {
		t.Run(port, func(t *testing.T) {
			r := newRig(t, lab.InlineOptions{})
			r.config("closed", port, forwardChain+"offload = \"never\"\n")
			r.origin(80)
			a := r.start()
			ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
			defer cancel()
			for _, v6 := range []bool{false, true} {
				who, err := r.client().Whoami(ctx, r.addr(v6, 80))
				if err != nil {
					t.Fatalf("%s: %v", ipName(v6), err)
				}
				t.Logf("%s: %+v", ipName(v6), who)
				if err := r.client().Bytes(ctx, r.addr(v6, 80), 8<<20, false); err != nil {
					t.Fatalf("%s download: %v", ipName(v6), err)
				}
				if err := r.client().Upload(ctx, r.addr(v6, 80), 8<<20); err != nil {
					t.Fatalf("%s upload: %v", ipName(v6), err)
				}
			}
			s := a.status()
			if s.Totals.Forwarded < 10000 || s.Totals.DroppedTotal() != 0 {
				t.Errorf("totals: %+v", s.Totals)
			}
			a.stop()
		})
	}
}
