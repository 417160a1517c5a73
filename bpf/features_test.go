package bpf

import (
	"errors"
	"strings"
	"testing"
	"time"

	"penstock/internal/lab"
)

// A veth whose peer has no NAPI takes no redirected frames: said, and true.
func TestCheckPeers(t *testing.T) {
	for _, mode := range []Mode{ModeNative, ModeGeneric} {
		t.Run(mode.String(), func(t *testing.T) {
			a := inline(t, lab.VethOptions{}, func(o *Options) { o.Ports[0].Mode, o.Ports[1].Mode = mode, mode })
			gro := func(on bool) {
				if err := a.Server.SetOffload("eth0", map[string]bool{"gro": on}); err != nil {
					t.Fatal(err)
				}
			}
			check := func(want ...string) {
				t.Helper()
				err := a.Appliance.Do(a.CheckPeers)
				if errors.Is(err, ErrNoFeatures) {
					t.Skip(err)
				}
				if (err != nil) != (len(want) > 0) {
					t.Errorf("got %v, want %q", err, want)
				}
				for _, w := range want {
					if err != nil && !strings.Contains(err.Error(), w) {
						t.Errorf("got %v, want %q", err, w)
					}
				}
			}
			gro(false)
			check() // not attached yet
			a.attach(mode)
			if mode == ModeGeneric {
				check()
				if err := a.echo(a.ServerIP4, patience); err != nil {
					t.Error(err)
				}
				return
			}
			check("redirect packets of lan (eth1) to wan (eth2): it takes no redirected frames", "mend: ")
			if err := a.echo(a.ServerIP4, 200*time.Millisecond); err == nil {
				t.Error("frames arrive, though the interface says that it takes none")
			}
			gro(true)
			check()
			if err := a.echo(a.ServerIP4, patience); err != nil {
				t.Error(err)
			}
		})
	}
}
