package tls

import (
	"net/netip"
	"slices"

	"penstock/internal/record"
	"penstock/internal/tlshello"
	"penstock/pipeline"
)

// event is a record "tls"; names are those of Suricata's EVE where it has the
// field.
type event struct {
	FlowID   uint64     `json:"flow_id"`
	SrcIP    netip.Addr `json:"src_ip"`
	SrcPort  uint16     `json:"src_port"`
	DestIP   netip.Addr `json:"dest_ip"`
	DestPort uint16     `json:"dest_port"`
	Proto    string     `json:"proto"`
	Chain    string     `json:"chain"`
	Action   string     `json:"action"` // "allowed" or "denied"
	Reason   string     `json:"reason,omitempty"`
	Rules    []string   `json:"rules,omitempty"` // that applied
	TLS      *tlsRecord `json:"tls"`
}

type tlsRecord struct {
	SNI         string       `json:"sni,omitempty"`
	Version     string       `json:"version,omitempty"` // absent: no ServerHello came, or it was not read
	ClientALPNs []string     `json:"client_alpns,omitempty"`
	ServerALPNs []string     `json:"server_alpns,omitempty"` // absent in TLS 1.3, which encrypts it
	JA3         *fingerprint `json:"ja3,omitempty"`
	JA3S        *fingerprint `json:"ja3s,omitempty"`
	JA4         record.Text  `json:"ja4,omitempty"`

	// EVE has no field for these.
	ClientVersion string      `json:"client_version,omitempty"` // the highest that the client offers
	CipherSuite   record.Text `json:"cipher_suite,omitempty"`   // what the server chose, as in IANA's registry: "0x1301"
	ECH           bool        `json:"ech,omitempty"`
	ESNI          bool        `json:"esni,omitempty"`
	DNS           string      `json:"sni_in_dns,omitempty"` // "seen", "other" or "unknown", where require_dns asks
	HelloRetry    bool        `json:"hello_retry,omitempty"`
	Alert         *uint8      `json:"alert,omitempty"` // the server refused: the description of its alert
}

type fingerprint struct {
	Hash   record.Text `json:"hash"`
	String record.Text `json:"string"`
}

// notes are what a stream has for its record. Their memory is used again for the next
// connection.
type notes struct {
	tlsRecord
	begun     bool // there is something to record
	ja3, ja3s fingerprint
	alert     uint8
}

// keptNotes bounds the memory that is used again, for each of its pieces: nearly all
// clients need less.
const keptNotes = 1 << 10

// reset begins the notes of another connection.
func (n *notes) reset() {
	kept := *n
	*n = notes{}
	for _, t := range []struct{ to, from *record.Text }{
		{&n.JA4, &kept.JA4}, {&n.CipherSuite, &kept.CipherSuite}, {&n.ja3.Hash, &kept.ja3.Hash}, {&n.ja3.String, &kept.ja3.String},
		{&n.ja3s.Hash, &kept.ja3s.Hash}, {&n.ja3s.String, &kept.ja3s.String},
	} {
		if cap(*t.from) <= keptNotes {
			*t.to = (*t.from)[:0]
		}
	}
	for _, l := range []struct{ to, from *[]string }{{&n.ClientALPNs, &kept.ClientALPNs}, {&n.ServerALPNs, &kept.ServerALPNs}} {
		if cap(*l.from) <= 16 {
			clear(*l.from)
			*l.to = (*l.from)[:0]
		}
	}
}

// describe begins the record of a connection.
func (n *notes) describe(h *tlshello.ClientHello, name string, ja4 []byte) {
	n.begun = true
	n.SNI, n.ClientVersion, n.ECH, n.ESNI = name, tlshello.VersionName(h.MaxVersion), h.ECH, h.ESNI
	n.JA4 = append(n.JA4[:0], ja4...)
	n.ja3.String = h.AppendJA3(n.ja3.String[:0])
	n.JA3 = n.ja3.hash()
	for p := range h.ALPN() {
		n.ClientALPNs = append(n.ClientALPNs, protocolName(p))
	}
}

// answer adds what the server said.
func (n *notes) answer(h *tlshello.ServerHello) {
	n.ja3s.String = h.AppendJA3S(n.ja3s.String[:0])
	n.JA3S = n.ja3s.hash()
	n.Version = tlshello.VersionName(h.Selected)
	n.CipherSuite = tlshello.AppendHexNumber(n.CipherSuite[:0], h.Cipher)
	if h.ALPN != nil {
		n.ServerALPNs = append(n.ServerALPNs[:0], protocolName(h.ALPN))
	}
}

func (f *fingerprint) hash() *fingerprint {
	f.Hash = tlshello.AppendMD5(f.Hash[:0], f.String)
	return f
}

// protocolName returns the name of a protocol: the usual ones without allocating.
func protocolName(p []byte) string {
	switch string(p) {
	case "h2":
		return "h2"
	case "http/1.1":
		return "http/1.1"
	}
	return string(p)
}

// log writes the record, once. A connection of which nothing is known is
// recorded only if it is refused.
func (c *stream) log(why pipeline.Reason) {
	if !c.notes.begun {
		return
	}
	c.notes.begun = false
	conn, ev := c.conn, &c.s.event
	*ev = event{
		FlowID: conn.ID, SrcIP: conn.Client.Addr(), SrcPort: conn.Client.Port(), DestIP: conn.Server.Addr(), DestPort: conn.Server.Port(),
		Proto: "TCP", Chain: c.s.env.Chain, Action: "allowed", Rules: c.applied, TLS: &c.notes.tlsRecord,
	}
	if why != pipeline.ReasonNone {
		ev.Action, ev.Reason = "denied", why.String()
	}
	c.s.env.Recorder.Record("tls", ev)
}

var (
	_ pipeline.Borrowed = (*event)(nil)
	_ record.Appender   = (*event)(nil)
)

// Keep implements pipeline.Borrowed: the stage has one event, which it fills again
// and again.
func (e *event) Keep() any {
	kept, r := *e, *e.TLS
	r.JA3, r.JA3S = r.JA3.clone(), r.JA3S.clone()
	r.JA4, r.CipherSuite = slices.Clone(r.JA4), slices.Clone(r.CipherSuite)
	r.ClientALPNs, r.ServerALPNs = slices.Clone(r.ClientALPNs), slices.Clone(r.ServerALPNs)
	if r.Alert != nil {
		alert := *r.Alert
		r.Alert = &alert
	}
	kept.TLS = &r
	return &kept
}

func (f *fingerprint) clone() *fingerprint {
	if f == nil {
		return nil
	}
	return &fingerprint{Hash: slices.Clone(f.Hash), String: slices.Clone(f.String)}
}

// AppendMembers implements record.Appender.
func (e *event) AppendMembers(m *record.Members) {
	m.Uint("flow_id", e.FlowID)
	m.Addr("src_ip", e.SrcIP)
	m.Uint("src_port", uint64(e.SrcPort))
	m.Addr("dest_ip", e.DestIP)
	m.Uint("dest_port", uint64(e.DestPort))
	m.String("proto", e.Proto)
	m.String("chain", e.Chain)
	m.String("action", e.Action)
	m.Some("reason", e.Reason)
	if len(e.Rules) > 0 {
		m.Strings("rules", e.Rules)
	}
	r := e.TLS
	m.Open("tls")
	m.Some("sni", r.SNI)
	m.Some("version", r.Version)
	if len(r.ClientALPNs) > 0 {
		m.Strings("client_alpns", r.ClientALPNs)
	}
	if len(r.ServerALPNs) > 0 {
		m.Strings("server_alpns", r.ServerALPNs)
	}
	r.JA3.append(m, "ja3")
	r.JA3S.append(m, "ja3s")
	m.Text("ja4", r.JA4)
	m.Some("client_version", r.ClientVersion)
	m.Text("cipher_suite", r.CipherSuite)
	some := func(key string, v bool) {
		if v {
			m.Bool(key, true)
		}
	}
	some("ech", r.ECH)
	some("esni", r.ESNI)
	m.Some("sni_in_dns", r.DNS)
	some("hello_retry", r.HelloRetry)
	if r.Alert != nil {
		m.Uint("alert", uint64(*r.Alert))
	}
	m.Close()
}

func (f *fingerprint) append(m *record.Members, key string) {
	if f == nil {
		return
	}
	m.Open(key)
	m.Text("hash", f.Hash)
	m.Text("string", f.String)
	m.Close()
}
