package tls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	stdtls "crypto/tls"
	"crypto/x509"
	"encoding/json"
	"math/big"
	mathrand "math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"penstock/pipeline"
)

// recorder keeps events as JSON.
type recorder struct{ lines []string }

func (r *recorder) Enabled(e string) bool { return e == "tls" }
func (r *recorder) Record(_ string, fields any) {
	b, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	r.lines = append(r.lines, string(b))
}

// events decodes what was recorded.
func (r *recorder) events(t *testing.T) (list []event) {
	t.Helper()
	for _, line := range r.lines {
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		list = append(list, e)
	}
	return list
}

// rig is a stage whose records can be read.
type rig struct {
	*stage
	rec *recorder
}

func newRig(t testing.TB, change func(*Config)) *rig {
	c := defaults()
	if change != nil {
		change(&c)
	}
	issues := pipeline.Issues{Sets: officeSets()}
	validate(&c, &issues)
	for _, i := range issues.List {
		t.Fatalf("%s: %s", i.Path, i.Text)
	}
	rec := &recorder{}
	s, err := newStage(c, &pipeline.Env{Chain: "tls", Recorder: rec, Counters: &pipeline.CounterSet{}})
	if err != nil {
		t.Fatal(err)
	}
	return &rig{rec: rec, stage: s}
}

// conversation plays bytes through a stream the way the tcp stage does: what is
// held is shown again, with what has come since, on any news.
type conversation struct {
	s       pipeline.Stream
	held    [2][]byte
	passed  [2][]byte
	ended   bool // released or denied
	verdict pipeline.StreamVerdict
}

func (r *rig) open(server string) *conversation {
	return r.converse(&pipeline.Conn{
		ID: 7, Client: netip.MustParseAddrPort("10.0.0.1:40000"), Server: netip.MustParseAddrPort(server), Start: 1,
		Depth: pipeline.DepthTerminate,
	})
}

func (r *rig) converse(conn *pipeline.Conn) *conversation { return &conversation{s: r.Open(conn)} }

func (c *conversation) obey(v pipeline.StreamVerdict) {
	c.verdict = v
	if v.Action == pipeline.StreamRelease {
		c.ended = true
		for d := range c.held {
			c.passed[d] = append(c.passed[d], c.held[d]...)
			c.held[d] = nil
		}
	}
	c.ended = c.ended || v.Action == pipeline.StreamDeny
}

func (c *conversation) send(d pipeline.Direction, b string) {
	if c.verdict.Action == pipeline.StreamRelease {
		c.passed[d] = append(c.passed[d], b...)
	}
	if c.ended || len(b) == 0 {
		return
	}
	c.held[d] = append(c.held[d], b...)
	n, v := c.s.Data(d, c.held[d], 1)
	c.passed[d] = append(c.passed[d], c.held[d][:n]...)
	c.held[d] = c.held[d][n:]
	c.obey(v)
}

// finish says that direction d has ended.
func (c *conversation) finish(d pipeline.Direction) {
	if c.ended {
		return
	}
	c.obey(c.s.End(d, 1))
	if !c.ended {
		c.passed[d] = append(c.passed[d], c.held[d]...)
		c.held[d] = nil
	}
}

// reason is why the connection was denied, or "".
func (c *conversation) reason() string {
	if c.verdict.Action != pipeline.StreamDeny {
		return ""
	}
	return c.verdict.Reason.String()
}

// cut splits s into pieces: 0 whole, 1 byte by byte, else at random.
func cut(s string, seed uint64) (pieces []string) {
	rng := mathrand.New(mathrand.NewPCG(seed, 1))
	for len(s) > 0 {
		n := len(s)
		switch {
		case seed == 1:
			n = 1
		case seed > 1:
			n = 1 + rng.IntN(min(len(s), 200))
		}
		pieces = append(pieces, s[:n])
		s = s[n:]
	}
	return pieces
}

// newCertificate makes a certificate that nobody has signed.
func newCertificate() stdtls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"*.good.example"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return stdtls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
