// Package units holds the value types of the configuration: durations, sizes,
// rates, prefixes and port ranges, each with the one spelling that TOML, the
// command line and the documentation share. Numbers without a unit are refused
// wherever a unit could be mistaken.
package units

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Duration is a time.Duration written "30s", "1m30s" or "250ms".
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf(`want a duration such as "30s" or "250ms", got %q`, b)
	}
	if v < 0 {
		return fmt.Errorf("want a duration that is not negative, got %q", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String writes the duration as it is read.
func (d Duration) String() string { return time.Duration(d).String() }

// Size is a number of bytes written "512B", "64KiB", "1.5MB" or "2GiB".
type Size int64

var sizeUnits = []struct {
	suffix string
	n      float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(b []byte) error {
	text := strings.TrimSpace(string(b))
	for _, u := range sizeUnits {
		if num, ok := strings.CutSuffix(text, u.suffix); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(num), 64)
			if err != nil || v < 0 || v*u.n >= 1<<62 || v != v {
				break
			}
			*s = Size(v * u.n)
			return nil
		}
	}
	return fmt.Errorf(`want a size such as "64KiB" or "100MB", got %q`, text)
}

// MarshalText implements encoding.TextMarshaler.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String writes the size with the largest binary unit that divides it.
func (s Size) String() string {
	for _, u := range []struct {
		suffix string
		n      Size
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if s >= u.n && s%u.n == 0 {
			return strconv.FormatInt(int64(s/u.n), 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B"
}

// Rate is packets or bytes a second, written "2000pkt/s", "10Mbit/s" or
// "5MB/s".
type Rate struct {
	PerSecond float64 // packets or bytes
	Packets   bool    // packets if true, else bytes
}

var rateUnits = []struct {
	suffix  string
	n       float64
	packets bool
}{
	{"kpkt/s", 1e3, true}, {"Mpkt/s", 1e6, true}, {"pkt/s", 1, true},
	{"kbit/s", 1e3 / 8, false}, {"Mbit/s", 1e6 / 8, false}, {"Gbit/s", 1e9 / 8, false}, {"bit/s", 1.0 / 8, false},
	{"kB/s", 1e3, false}, {"MB/s", 1e6, false}, {"GB/s", 1e9, false},
	{"KiB/s", 1 << 10, false}, {"MiB/s", 1 << 20, false}, {"GiB/s", 1 << 30, false}, {"B/s", 1, false},
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *Rate) UnmarshalText(b []byte) error {
	text := strings.TrimSpace(string(b))
	for _, u := range rateUnits {
		if num, ok := strings.CutSuffix(text, u.suffix); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(num), 64)
			if err != nil || !(v > 0) || v*u.n > 1e15 {
				break
			}
			*r = Rate{PerSecond: v * u.n, Packets: u.packets}
			return nil
		}
	}
	return fmt.Errorf(`want a rate above zero such as "2000pkt/s" or "10Mbit/s", got %q`, text)
}

// MarshalText implements encoding.TextMarshaler.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// String writes the rate in packets or bits a second.
func (r Rate) String() string {
	if r.Packets {
		return strconv.FormatFloat(r.PerSecond, 'g', -1, 64) + "pkt/s"
	}
	return strconv.FormatFloat(r.PerSecond*8, 'g', -1, 64) + "bit/s"
}

// Prefix is an IP prefix, or a single address as a prefix of full length.
type Prefix struct{ netip.Prefix }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Prefix) UnmarshalText(b []byte) error {
	text := string(b)
	if strings.Contains(text, "/") {
		v, err := netip.ParsePrefix(text)
		if err != nil {
			return fmt.Errorf(`want a prefix such as "10.0.0.0/8" or "fd00::/8", got %q`, text)
		}
		if v.Masked() != v {
			return fmt.Errorf("prefix %s has bits beyond its length: want %s", v, v.Masked())
		}
		p.Prefix = v
		return nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return fmt.Errorf(`want an address or a prefix such as "10.0.0.0/8", got %q`, text)
	}
	a = a.Unmap()
	p.Prefix = netip.PrefixFrom(a, a.BitLen())
	return nil
}

// PortRange is a range of TCP or UDP ports, both ends included: in TOML an
// integer (80), or a string ("8000-8099").
type PortRange struct{ First, Last uint16 }

// UnmarshalTOML implements toml.Unmarshaler.
func (r *PortRange) UnmarshalTOML(v any) error {
	switch v := v.(type) {
	case int64:
		if v < 1 || v > 65535 {
			return fmt.Errorf("want a port from 1 to 65535, got %d", v)
		}
		*r = PortRange{uint16(v), uint16(v)}
		return nil
	case string:
		first, last, isRange := strings.Cut(v, "-")
		if !isRange {
			last = first
		}
		a, err1 := strconv.ParseUint(strings.TrimSpace(first), 10, 16)
		b, err2 := strconv.ParseUint(strings.TrimSpace(last), 10, 16)
		if err1 != nil || err2 != nil || a == 0 {
			return fmt.Errorf(`want a port such as 80 or a range such as "8000-8099", got %q`, v)
		}
		if a > b {
			return fmt.Errorf("port range %q is empty: its first port is above its last", v)
		}
		*r = PortRange{uint16(a), uint16(b)}
		return nil
	}
	return fmt.Errorf(`want a port such as 80 or a range such as "8000-8099", got %v`, v)
}

// Contains reports whether port lies in the range.
func (r PortRange) Contains(port uint16) bool { return port >= r.First && port <= r.Last }

// String writes the range as it is read.
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}
