package tls

import (
	"penstock/internal/dnsseen"
	"penstock/pipeline"
)

// askDNS holds the server name against the names that led to the destination. A
// hello without a name is not among them.
func (c *stream) askDNS(name string, now int64) pipeline.Reason {
	s := c.s
	if s.cfg.RequireDNS == "off" {
		return pipeline.ReasonNone
	}
	word := "seen"
	switch s.seen.Ask(name, c.conn.Server.Addr(), now) {
	case dnsseen.Seen:
	case dnsseen.Other:
		word = "other"
		s.dnsOther.Add(1)
	default:
		word = "unknown"
		s.dnsUnknown.Add(1)
	}
	c.notes.DNS = word
	if s.cfg.RequireDNS == "deny" && (word == "other" || word == "unknown" && s.cfg.DNSUnknown == "deny") {
		return reasonDNS
	}
	return pipeline.ReasonNone
}
