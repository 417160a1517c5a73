// Package dns is the packet stage that reads DNS answers as they go by, so that
// other stages know which names led to an address. It refuses and changes nothing.
//
// Its one trap: an answer is as good as the server that gave it. Without resolvers,
// a client can teach the appliance anything by asking a server of its own.
package dns

import (
	_ "embed"
	"hash/maphash"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"penstock/internal/dnsseen"
	"penstock/internal/wire"
	"penstock/pipeline"
)

//go:embed README.md
var readme string

// Descriptor describes the stage to the registry.
func Descriptor() pipeline.Descriptor[Config] {
	return pipeline.Descriptor[Config]{
		Kind:     "dns",
		Summary:  "reads DNS answers, so that tls knows which names led to an address",
		README:   readme,
		Affinity: true, // an answer must come to where its question was seen
		Default:  defaults,
		Validate: validate,
		New:      func(c Config, env *pipeline.Env) (pipeline.Stage, error) { return newStage(c, env), nil },
		Holds:    func(Config) string { return "looks at every DNS message" },
	}
}

// query is a question that waits for its answer.
type query struct {
	at    place
	kind  uint16
	name  dnsmessage.Name
	until int64
}

// place tells questions apart: a client may have several from one port.
type place struct {
	flow wire.Flow // of the question
	id   uint16
}

const (
	port         = 53
	maxQueries   = 4096 // of a worker
	queryTimeout = int64(30 * time.Second)
)

type stage struct {
	cfg     Config
	table   *dnsseen.Table
	settled bool // checksums have been looked at before
	seed    maphash.Seed
	queries [maxQueries]query

	asked, learnt, unasked, untrusted, useless, malformed, crowded *pipeline.Counter
}

func newStage(c Config, env *pipeline.Env) *stage {
	ctr := env.Counters.Counter
	return &stage{
		cfg: c, table: dnsseen.Appliance(), settled: env.ChecksumsSettled, seed: maphash.MakeSeed(),
		asked:     ctr("queries", "questions that were seen"),
		learnt:    ctr("answers", "answers that were believed"),
		unasked:   ctr("unasked", "answers to no question that was seen, by addresses, ports, id, name and type"),
		untrusted: ctr("untrusted", "answers of servers that are not in resolvers"),
		useless:   ctr("useless", "answers without an address, errors and truncated ones included"),
		malformed: ctr("malformed", "messages on port 53 that cannot be read, or ask no or several questions"),
		crowded:   ctr("crowded", "questions that made another one forgotten before its answer"),
	}
}

// Process implements pipeline.Stage.
func (s *stage) Process(b *pipeline.Batch) {
	for p := range b.Live() {
		if p.HasL4 && p.Proto == wire.ProtoUDP && p.Frag == wire.FragNone {
			s.look(p)
		}
		p.Continue()
	}
}

// look reads a datagram. Only an answer to a question that was seen allocates: what
// is remembered of it.
func (s *stage) look(p *pipeline.Packet) {
	frame := p.Bytes()
	var f wire.Flow
	if !p.ReadFlow(frame, &f) || f.SrcPort != port && f.DstPort != port {
		return
	}
	u := wire.UDP(frame[p.L4:])
	end := int(p.L4) + u.Len()
	if u.Len() < wire.UDPLen || end > len(frame) || !s.settled && !wire.VerifyL4(frame, &p.Headers) {
		s.malformed.Add(1) // the other end will not take it either
		return
	}
	m, ok := dnsseen.Parse(frame[int(p.L4)+wire.UDPLen : end])
	switch {
	case !ok:
		s.malformed.Add(1)
	case !m.Response && f.DstPort == port:
		s.asked.Add(1)
		at := place{f, m.ID}
		q := s.query(at)
		if q.until > p.Time && q.at != at {
			s.crowded.Add(1)
		}
		*q = query{at, m.Type, m.Name, p.Time + queryTimeout}
	case m.Response && f.SrcPort == port:
		s.answer(&m, f, p.Time)
	}
}

// query returns where a question is kept. Another one may be there.
func (s *stage) query(at place) *query {
	return &s.queries[maphash.Comparable(s.seed, at)%maxQueries]
}

func (s *stage) answer(m *dnsseen.Message, f wire.Flow, now int64) {
	f.Src, f.Dst, f.SrcPort, f.DstPort = f.Dst, f.Src, f.DstPort, f.SrcPort
	at := place{f, m.ID}
	q := s.query(at)
	if q.at != at || q.kind != m.Type || q.name.Length != m.Name.Length || q.name != m.Name || q.until <= now {
		s.unasked.Add(1)
		return
	}
	*q = query{} // the first answer counts, as it does for the client
	switch {
	case !s.trusts(netip.AddrFrom16(f.Dst).Unmap()):
		s.untrusted.Add(1)
		return
	case !m.Useful:
		s.useless.Add(1)
		return
	}
	addrs, ok := m.Addrs()
	switch {
	case !ok:
		s.malformed.Add(1)
		return
	case len(addrs) == 0:
		s.useless.Add(1)
		return
	}
	s.learnt.Add(1)
	name := strings.ToLower(strings.TrimSuffix(m.Name.String(), "."))
	for _, a := range addrs {
		keep := time.Duration(a.TTL)*time.Second + time.Duration(s.cfg.Grace)
		s.table.Learn(name, a.Addr, now+int64(min(keep, maxKeep)), now)
	}
}

func (s *stage) trusts(server netip.Addr) bool {
	if len(s.cfg.Resolvers) == 0 {
		return true
	}
	for _, p := range s.cfg.Resolvers {
		if p.Contains(server) {
			return true
		}
	}
	return false
}
