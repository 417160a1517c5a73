package ratelimit

import (
	"fmt"
	"strings"
	"testing"

	"penstock/internal/units"
)

func TestProblems(t *testing.T) {
	for _, c := range []struct{ keys, want string }{
		{``, `rate: is missing: want a rate such as "2000pkt/s"`},
		{`rate = "-5pkt/s"`, `rate: want a rate above zero`},
		{`rate = "100bit/s"`, `rate: must be at least 1000bit/s, got 100bit/s`},
		{`rate = "200GB/s"`, `rate: must be above zero and at most`},
		{`rate = "10pkt/s"` + "\n" + `burst = "1MiB"`, `burst: must be a number of packets, as the rate is one of packets, got "1MiB"`},
		{`rate = "10Mbit/s"` + "\n" + `burst = "10pkt"`, `burst: must be a size, as the rate is one of bytes, got "10pkt"`},
		{`rate = "10Mbit/s"` + "\n" + `burst = 1000`, `burst: want a number of packets such as "200pkt" or a size such as "64KiB", above zero, got "1000"`},
		{`rate = "1pkt/s"` + "\n" + `burst = "3601pkt"`, `burst: must let a burst of 3601pkt be there again within an hour; at 1pkt/s it takes 1h0m1s`},
		{`rate = "0.001pkt/s"`, `rate: must let a burst of 10pkt be there again within an hour`},
		{"rate = \"1pkt/s\"\nby = \"host\"\nv4_prefix = 0\nv6_prefix = 129\nmax_entries = 0\non_full = \"block\"\nmatch = [{ src = [\"x\"] }, { src_port = [1], proto = \"icmp\" }]",
			`by: must be|v4_prefix: must be|v6_prefix: must be|max_entries: must be|on_full: must be|match[0].src[0]: want an address|match[1].proto: must be`},
	} {
		_, err := parse(stageOf(c.keys))
		got := fmt.Sprint(err)
		for _, w := range strings.Split(c.want, "|") {
			if !strings.Contains(got, w) {
				t.Errorf("%s\ngot  %s\nwant %s", c.keys, got, w)
			}
		}
		if n := strings.Count(got, "\n"); n != strings.Count(c.want, "|") {
			t.Errorf("%s\nwant %d problems, got\n%s", c.keys, strings.Count(c.want, "|")+1, got)
		}
	}
}

func TestDefaultBurst(t *testing.T) {
	for _, c := range []struct {
		rate units.Rate
		want int64
	}{
		{units.Rate{PerSecond: 2000, Packets: true}, 200},
		{units.Rate{PerSecond: 5, Packets: true}, 10},
		{units.Rate{PerSecond: 1.25e6}, 125000},
		{units.Rate{PerSecond: 125}, 15000},
	} {
		if got := (&Config{Rate: c.rate}).burst(); got != c.want {
			t.Errorf("%v: %d, want %d", c.rate, got, c.want)
		}
	}
}
