package tls

import (
	"penstock/internal/tlshello"
	"penstock/pipeline"
)

// event is a record "tls"; names are those of Suricata's EVE where it has the
// field.
type event struct {
	FlowID   uint64     `json:"flow_id"`
	SrcIP    string     `json:"src_ip"`
	SrcPort  uint16     `json:"src_port"`
	DestIP   string     `json:"dest_ip"`
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
	JA4         string       `json:"ja4,omitempty"`

	// EVE has no field for these.
	ClientVersion string `json:"client_version,omitempty"` // the highest that the client offers
	CipherSuite   string `json:"cipher_suite,omitempty"`   // what the server chose, as in IANA's registry: "0x1301"
	ECH           bool   `json:"ech,omitempty"`
	ESNI          bool   `json:"esni,omitempty"`
	DNS           string `json:"sni_in_dns,omitempty"` // "seen", "other" or "unknown", where require_dns asks
	HelloRetry    bool   `json:"hello_retry,omitempty"`
	Alert         *uint8 `json:"alert,omitempty"` // the server refused: the description of its alert
}

type fingerprint struct {
	Hash   string `json:"hash"`
	String string `json:"string"`
}

// describe begins the record of a connection.
func (c *stream) describe(h *tlshello.ClientHello, name string, ja4 []byte) *tlsRecord {
	s := c.s
	s.ja3 = h.AppendJA3(s.ja3[:0])
	r := &tlsRecord{
		SNI: name, JA3: newFingerprint(s.ja3), JA4: string(ja4), ClientVersion: tlshello.VersionName(h.MaxVersion), ECH: h.ECH, ESNI: h.ESNI,
	}
	for p := range h.ALPN() {
		r.ClientALPNs = append(r.ClientALPNs, string(p))
	}
	return r
}

// answer adds what the server said. text is scratch.
func (r *tlsRecord) answer(h *tlshello.ServerHello, text *[]byte) {
	*text = h.AppendJA3S((*text)[:0])
	r.JA3S = newFingerprint(*text)
	r.Version = tlshello.VersionName(h.Selected)
	r.CipherSuite = tlshello.Hex(h.Cipher)
	if h.ALPN != nil {
		r.ServerALPNs = []string{string(h.ALPN)}
	}
}

func newFingerprint(text []byte) *fingerprint {
	return &fingerprint{Hash: string(tlshello.AppendMD5(nil, text)), String: string(text)}
}

// log writes the record, once. A connection of which nothing is known is
// recorded only if it is refused.
func (c *stream) log(why pipeline.Reason) {
	if c.record == nil {
		return
	}
	conn := c.conn
	ev := event{
		FlowID: conn.ID, SrcIP: conn.Client.Addr().String(), SrcPort: conn.Client.Port(),
		DestIP: conn.Server.Addr().String(), DestPort: conn.Server.Port(), Proto: "TCP", Chain: c.s.env.Chain, Action: "allowed", Rules: c.applied, TLS: c.record,
	}
	if why != pipeline.ReasonNone {
		ev.Action, ev.Reason = "denied", why.String()
	}
	c.record = nil
	c.s.env.Recorder.Record("tls", ev)
}
