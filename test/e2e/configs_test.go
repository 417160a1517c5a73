package e2e

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"penstock/configs"
	"penstock/internal/lab"
)

// TestShippedConfigs runs every configuration that Penstock ships, as it is but
// for the names that must be its own on this machine, with traffic through it.
func TestShippedConfigs(t *testing.T) {
	t.Parallel()
	files, err := fs.Glob(configs.FS, "*.toml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		t.Run(file, func(t *testing.T) {
			text, err := configs.FS.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var r *rig
			if strings.Contains(string(text), `mode    = "router"`) {
				r = newRoutedRig(t, lab.RoutedOptions{})
			} else {
				r = newRig(t, lab.InlineOptions{})
			}
			own := "[appliance]\nname = \"" + r.name + "\"\ncontrol = \"" + r.control() + "\"\nmetrics = \"\"\n"
			var kept []string
			for _, line := range strings.Split(string(text), "\n") {
				switch key, _, _ := strings.Cut(strings.TrimSpace(line), " "); key {
				case "[appliance]":
					line = own
				case "control", "metrics":
					continue
				case "name":
					if strings.Contains(line, `"demo"`) || strings.Contains(line, `"router"`) {
						continue
					}
				}
				kept = append(kept, line)
			}
			r.toml = filepath.Join(r.dir, file)
			if err := os.WriteFile(r.toml, []byte(strings.Join(kept, "\n")), 0o600); err != nil {
				t.Fatal(err)
			}
			r.origin(80)
			r.tlsOrigin(443)
			a := r.start()
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			for _, v6 := range []bool{false, true} {
				who, err := r.client().Whoami(ctx, r.addr(v6, 80))
				if err != nil {
					t.Fatalf("%s: %v", ipName(v6), err)
				}
				if !strings.Contains(who.Peer, r.ClientIP4.String()) && !strings.Contains(who.Peer, r.ClientIP6.String()) {
					t.Errorf("the server saw %s", who.Peer)
				}
				if err := r.client().Bytes(ctx, r.addr(v6, 80), 1<<20, true); err != nil {
					t.Errorf("%s: %v", ipName(v6), err)
				}
			}
			for _, v6 := range []bool{false, true} {
				if body, err := r.https(r.addr(v6, 443), "www.good.example", nil); err != nil || body != tlsBody {
					t.Errorf("%s: %d bytes over TLS, %v", ipName(v6), len(body), err)
				}
			}
			if s := a.status(); s.Totals.Packets == 0 {
				t.Error("nothing went to user space")
			}
			a.stop()
		})
	}
}
