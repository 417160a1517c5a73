package fault

import (
	"strings"
	"testing"
	"time"

	"penstock/internal/units"
)

func TestParse(t *testing.T) {
	o, err := Parse("loss=1%, seed=7,delay=5ms,jitter=1ms,duplicate=0.5%,reorder=2%,reorder_gap=5,corrupt=1%,fix_checksum,mtu=1400,packet_too_big=true,on=receive,hold=64")
	want := Options{
		Seed: 7, On: OnReceive, Loss: 0.01, Duplicate: 0.005, Reorder: 0.02, ReorderGap: 5, Delay: units.Duration(5 * time.Millisecond),
		Jitter: units.Duration(time.Millisecond), Corrupt: 0.01, FixChecksum: true, MTU: 1400, PacketTooBig: true, Hold: 64,
	}
	if err != nil || o != want {
		t.Errorf("got %+v, %v", o, err)
	}
	if again, err := Parse(o.String()); err != nil || again != o {
		t.Errorf("%q read again: %+v, %v", o, again, err)
	}
	if d := Default(); d.Active() || !o.Active() || d.String() != "" {
		t.Errorf("active: default %v (%q), %v", d.Active(), d, o.Active())
	}
}

func TestParseErrors(t *testing.T) {
	for in, want := range map[string]string{
		"":                         `unknown key ""`,
		"lost=1%":                  "want some of seed, on, loss",
		"loss=1":                   `such as "5%"`,
		"seed=-1":                  "want an integer from 0",
		"reorder_gap=0":            "want an integer from 1 to 1000",
		"on=never":                 "want one of both, receive, transmit",
		"delay=5":                  `such as "30s"`,
		"mtu=20":                   "mtu: want 0 or at least 68, got 20",
		"packet_too_big":           "packet_too_big: want an mtu",
		"fix_checksum":             "fix_checksum: want corrupt",
		"loss=1%,packet_too_big=x": "want true or false",
	} {
		if _, err := Parse(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", in, err, want)
		}
	}
}
