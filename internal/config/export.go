package config

import (
	"fmt"
	"time"

	"penstock/internal/ipfix"
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
	MessageSize int            `toml:"message_size" min:"512" max:"65507" help:"bytes of a message at most; over UDP a path with a smaller MTU makes them smaller"`
}

func (t *ipfixTable) setDefaults() {
	*t = ipfixTable{Templates: units.Duration(time.Minute), MessageSize: 1400}
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
			Spec: ipfix.Spec{To: t.To, Domain: uint32(t.Domain), Templates: time.Duration(t.Templates), MessageSize: t.MessageSize},
			Line: c.ix.line(path),
		})
	}
}

func ipfixLines(c *Config) (lines []string) {
	for _, x := range c.IPFIX {
		lines = append(lines, fmt.Sprintf("%s: domain %d, templates %v, message_size %d", x.To, x.Domain, x.Templates, x.MessageSize))
	}
	return lines
}
