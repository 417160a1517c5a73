package config

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"penstock/internal/ipfix"
	"penstock/internal/otlp"
	"penstock/internal/units"
)

// MaxCollectors is how many [[ipfix]] tables there may be.
const MaxCollectors = 8

// IPFIX is an [[ipfix]] table: a collector that is told of flows.
type IPFIX struct {
	ipfix.Spec
	Line int
}

type ipfixTable struct {
	To          string         `toml:"to" required:"" help:"the collector: udp:HOST:PORT or tcp:HOST:PORT"`
	Domain      int            `toml:"domain" min:"0" max:"4294967295" help:"observation domain: tells appliances apart that send from one address"`
	Templates   units.Duration `toml:"templates" min:"1s" max:"1h" help:"how often templates are sent again over UDP"`
	Active      units.Duration `toml:"active_timeout" min:"0s" max:"24h" help:"after what time a flow that goes on is told of, and again; 0s: only of its end"`
	MessageSize int            `toml:"message_size" min:"512" max:"65507" help:"bytes of a message at most; over UDP a path with a smaller MTU makes them smaller"`
}

func (t *ipfixTable) setDefaults() {
	*t = ipfixTable{Templates: units.Duration(time.Minute), Active: units.Duration(time.Minute), MessageSize: 1400}
}

func (c *checker) ipfix() {
	seen := map[string]string{}
	for i, t := range atMost(c, "ipfix", "[[ipfix]] tables", c.doc.IPFIX, MaxCollectors) {
		path := element("ipfix", i)
		if at := path + ".to"; !c.missing(path, "to", `"udp:HOST:PORT" or "tcp:HOST:PORT"`) && !c.isBad(at) {
			if err := ipfix.CheckTarget(t.To); err != nil {
				c.add(at, "%s", oneLine(err.Error()))
			} else {
				c.unique(seen, at, t.To, path)
			}
		}
		c.config.IPFIX = append(c.config.IPFIX, IPFIX{
			Spec: ipfix.Spec{To: t.To, Domain: uint32(t.Domain), Templates: time.Duration(t.Templates), ActiveTimeout: time.Duration(t.Active), MessageSize: t.MessageSize},
			Line: c.ix.line(path),
		})
	}
}

func ipfixLines(c *Config) (lines []string) {
	for _, x := range c.IPFIX {
		lines = append(lines, fmt.Sprintf("%s: domain %d, templates %v, active_timeout %v, message_size %d", x.To, x.Domain, x.Templates, x.ActiveTimeout, x.MessageSize))
	}
	return lines
}

// otlpTable is [otlp].
type otlpTable struct {
	Endpoint string         `toml:"endpoint" help:"the collector: http://HOST:PORT or https; \"\" sends nothing"`
	Headers  []string       `toml:"headers" help:"header fields of each request, such as \"authorization: Bearer ...\""`
	Send     []string       `toml:"send" help:"what is sent: metrics, traces"`
	Events   []string       `toml:"events" help:"records that become spans: http, llm, tls"`
	Sample   units.Share    `toml:"sample" help:"how many of the traces that begin here are sent; a request that says so itself is followed"`
	Interval units.Duration `toml:"interval" min:"1s" max:"1h" help:"how often metrics are sent"`
	Timeout  units.Duration `toml:"timeout" min:"100ms" max:"1m" help:"how long the collector may take to answer"`
}

func defaultOTLP() otlpTable {
	return otlpTable{
		Send: []string{"metrics", "traces"}, Events: []string{"http", "llm"}, Sample: 1,
		Interval: units.Duration(time.Minute), Timeout: units.Duration(10 * time.Second),
	}
}

func (c *checker) otlp() {
	t := &c.doc.OTLP
	c.choices("otlp.send", t.Send, []string{"metrics", "traces"})
	c.choices("otlp.events", t.Events, otlp.Events)
	for i, h := range t.Headers {
		if at := element("otlp.headers", i); !c.isBad(at) {
			if err := otlp.CheckHeader(h); err != nil {
				c.add(at, "%s", err)
			}
		}
	}
	if t.Endpoint == "" {
		if c.has("otlp", "endpoint") || c.root["otlp"] == nil {
			return
		}
		c.missing("otlp", "endpoint", `"http://HOST:PORT" or "https://HOST:PORT"`)
		return
	}
	if err := otlp.CheckEndpoint(t.Endpoint); err != nil {
		c.add("otlp.endpoint", "%s", oneLine(err.Error()))
	}
	s := &otlp.Spec{
		Endpoint: t.Endpoint, Headers: t.Headers, Sample: float64(t.Sample), Metrics: slices.Contains(t.Send, "metrics"),
		Interval: time.Duration(t.Interval), Timeout: time.Duration(t.Timeout),
	}
	if slices.Contains(t.Send, "traces") {
		s.Events = t.Events
	}
	c.config.OTLP = s
}

// choices checks a list of words of which each may be there once.
func (c *checker) choices(path string, words, of []string) {
	if c.isBad(path) {
		return
	}
	if len(words) == 0 {
		c.add(path, "the list is empty: want %s", choice(of))
	}
	for i, w := range words {
		at := element(path, i)
		switch {
		case c.isBad(at):
		case !slices.Contains(of, w):
			c.add(at, "want %s, got %q", choice(of), shorten(w))
		case slices.Index(words, w) < i:
			c.add(at, "%q is in the list already", w)
		}
	}
}

func (d *differ) otlp(old, next *otlp.Spec) {
	line := func(s *otlp.Spec) string {
		if s == nil {
			return ""
		}
		text := s.Endpoint + ":"
		if s.Metrics {
			text += fmt.Sprintf(" metrics every %v,", s.Interval)
		}
		if len(s.Events) > 0 {
			text += fmt.Sprintf(" traces of %s (%v),", strings.Join(s.Events, ", "), units.Share(s.Sample))
		}
		return text + fmt.Sprintf(" timeout %v", s.Timeout)
	}
	d.add("otlp", "", line(old), line(next), true)
	if old != nil && next != nil && !slices.Equal(old.Headers, next.Headers) {
		d.changes = append(d.changes, Change{What: "otlp", Key: "headers", Restart: true}) // their values may be secrets
	}
}
