package units

import (
	"testing"
	"time"
)

func TestDuration(t *testing.T) {
	for _, c := range []struct {
		in   string
		want time.Duration
		bad  bool
	}{{"30s", 30 * time.Second, false}, {"250ms", 250 * time.Millisecond, false}, {"-1s", 0, true}, {"30", 0, true}, {"", 0, true}} {
		var d Duration
		err := d.UnmarshalText([]byte(c.in))
		if (err != nil) != c.bad || time.Duration(d) != c.want {
			t.Errorf("%q: got %v, %v", c.in, d, err)
		}
	}
}

func TestSize(t *testing.T) {
	for _, c := range []struct {
		in, out string
		want    Size
		bad     bool
	}{
		{"64KiB", "64KiB", 64 << 10, false}, {"1.5MB", "1500000B", 1500000, false}, {"0B", "0B", 0, false},
		{"12", "", 0, true}, {"-1KiB", "", 0, true}, {"1e300GiB", "", 0, true}, {"NaNB", "", 0, true}, {"KiB", "", 0, true},
	} {
		var s Size
		err := s.UnmarshalText([]byte(c.in))
		if (err != nil) != c.bad || s != c.want || (!c.bad && s.String() != c.out) {
			t.Errorf("%q: got %v, %v", c.in, s, err)
		}
	}
}

func TestRate(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Rate
		bad  bool
	}{
		{"2000pkt/s", Rate{2000, true}, false}, {"10Mbit/s", Rate{1.25e6, false}, false}, {"5MB/s", Rate{5e6, false}, false},
		{"0pkt/s", Rate{}, true}, {"-1pkt/s", Rate{}, true}, {"10", Rate{}, true}, {"10/s", Rate{}, true}, {"InfB/s", Rate{}, true}, {"NaNB/s", Rate{}, true},
	} {
		var r Rate
		err := r.UnmarshalText([]byte(c.in))
		if (err != nil) != c.bad || r != c.want {
			t.Errorf("%q: got %+v, %v", c.in, r, err)
		}
		if !c.bad {
			var again Rate
			if err := again.UnmarshalText([]byte(r.String())); err != nil || again != r {
				t.Errorf("%q: written %q, read %+v, %v", c.in, r, again, err)
			}
		}
	}
}

func TestPrefix(t *testing.T) {
	for _, c := range []struct {
		in, want string
		bad      bool
	}{
		{"10.0.0.0/8", "10.0.0.0/8", false}, {"10.0.0.1", "10.0.0.1/32", false}, {"fd00::1", "fd00::1/128", false},
		{"::ffff:10.0.0.1", "10.0.0.1/32", false}, {"10.0.0.1/8", "", true}, {"fe80::1%eth0", "", true}, {"10.0.0.0/33", "", true}, {"x", "", true},
	} {
		var p Prefix
		err := p.UnmarshalText([]byte(c.in))
		if (err != nil) != c.bad || (!c.bad && p.String() != c.want) {
			t.Errorf("%q: got %v, %v", c.in, p, err)
		}
	}
}

func TestPortRange(t *testing.T) {
	for _, c := range []struct {
		in   any
		want PortRange
		bad  bool
	}{
		{int64(80), PortRange{80, 80}, false}, {"8000-8099", PortRange{8000, 8099}, false}, {"443", PortRange{443, 443}, false},
		{int64(0), PortRange{}, true}, {int64(65536), PortRange{}, true}, {"9-8", PortRange{}, true}, {"0-5", PortRange{}, true}, {"http", PortRange{}, true}, {true, PortRange{}, true},
	} {
		var r PortRange
		err := r.UnmarshalTOML(c.in)
		if (err != nil) != c.bad || r != c.want {
			t.Errorf("%v: got %+v, %v", c.in, r, err)
		}
	}
	if r := (PortRange{10, 20}); !r.Contains(10) || !r.Contains(20) || r.Contains(9) || r.Contains(21) {
		t.Error("Contains is wrong at an end")
	}
}
