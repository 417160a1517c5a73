package dnsseen

import (
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// Message is what of a DNS message matters here.
type Message struct {
	ID       uint16
	Response bool
	Useful   bool            // a response that answers: no error, not truncated
	Name     dnsmessage.Name // that is asked, as it is written, with its final dot
	Type     uint16

	rest dnsmessage.Parser
}

// Addr is an address in an answer.
type Addr struct {
	Addr netip.Addr
	TTL  uint32 // seconds: the least on the way there
}

// Bounds of an answer.
const (
	maxRecords = 64
	maxHops    = 16
)

type record struct {
	owner, target string
	addr          netip.Addr
	ttl           uint32
}

// Parse reads a message about one name of class IN up to its answer. It reports
// false for all others, and for what is malformed. It allocates only for a few of
// those; m refers to b.
func Parse(b []byte) (m Message, ok bool) {
	if len(b) < 12+5 || b[4] != 0 || b[5] != 1 { // header, question; how many questions
		return m, false
	}
	p := &m.rest
	h, err := p.Start(b)
	if err != nil || h.OpCode != 0 {
		return m, false
	}
	q, err := p.Question()
	if err != nil || q.Class != dnsmessage.ClassINET {
		return m, false
	}
	if _, err = p.Question(); err != dnsmessage.ErrSectionDone {
		return m, false
	}
	m.ID, m.Response, m.Name, m.Type = h.ID, h.Response, q.Name, uint16(q.Type)
	m.Useful = h.Response && h.RCode == dnsmessage.RCodeSuccess && !h.Truncated
	return m, true
}

// Addrs returns the addresses that the name leads to by the answer of a message
// that is useful. It reports false if the answer is malformed.
func (m *Message) Addrs() (addrs []Addr, ok bool) {
	p := &m.rest
	var list []record
	for len(list) < maxRecords {
		rh, err := p.AnswerHeader()
		if err == dnsmessage.ErrSectionDone {
			break
		}
		if err != nil {
			return nil, false
		}
		r := record{owner: rh.Name.String(), ttl: rh.TTL}
		switch {
		case rh.Class != dnsmessage.ClassINET:
			err = p.SkipAnswer()
		case rh.Type == dnsmessage.TypeCNAME:
			var v dnsmessage.CNAMEResource
			v, err = p.CNAMEResource()
			r.target = v.CNAME.String()
		case rh.Type == dnsmessage.TypeA:
			var v dnsmessage.AResource
			v, err = p.AResource()
			r.addr = netip.AddrFrom4(v.A)
		case rh.Type == dnsmessage.TypeAAAA:
			var v dnsmessage.AAAAResource
			v, err = p.AAAAResource()
			r.addr = netip.AddrFrom16(v.AAAA).Unmap()
		default:
			err = p.SkipAnswer()
		}
		if err != nil {
			return nil, false
		}
		list = append(list, r)
	}
	return follow(m.Name.String(), list), true
}

// follow goes from the name along CNAME records to addresses.
func follow(at string, list []record) (addrs []Addr) {
	ttl := ^uint32(0)
	for range maxHops {
		next := ""
		for i := range list {
			r := &list[i]
			switch {
			case !strings.EqualFold(r.owner, at):
			case r.addr.IsValid():
				addrs = append(addrs, Addr{r.addr, min(ttl, r.ttl)})
			case r.target != "" && next == "":
				next = r.target
				ttl = min(ttl, r.ttl)
			}
		}
		if next == "" || len(addrs) > 0 {
			return addrs
		}
		at = next
	}
	return nil
}
