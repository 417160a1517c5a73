package control

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// authority issues certificates.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string // file
	last int64
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	der := a.issue(name, nil, true)
	var err error
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pem = filepath.Join(a.dir, name+".crt")
	return a
}

// issue writes NAME.crt and NAME.key.
func (a *authority) issue(name string, addr net.IP, isCA bool) (der []byte) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	a.last++
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(a.last), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: isCA, BasicConstraintsValid: true, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	if addr != nil {
		tmpl.IPAddresses = []net.IP{addr}
	}
	parent, signer := a.cert, a.key
	if isCA {
		parent, signer, a.key = tmpl, key, key
	}
	if der, err = x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer); err != nil {
		a.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for suffix, b := range map[string]*pem.Block{".crt": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(filepath.Join(a.dir, name+suffix), pem.EncodeToMemory(b), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return der
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// client asks with the certificate of name, or with none.
func (a *authority) client(server *authority, name string, c *tls.Config) *http.Client {
	a.t.Helper()
	c.RootCAs = x509.NewCertPool()
	c.RootCAs.AddCert(server.cert)
	if name != "" {
		a.issue(name, nil, false)
		pair, err := tls.LoadX509KeyPair(a.file(name+".crt"), a.file(name+".key"))
		if err != nil {
			a.t.Fatal(err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: c, DisableKeepAlives: true, ForceAttemptHTTP2: true}}
}

type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// TestRemote: over TCP the API answers who has a certificate of the authority,
// with TLS 1.3, and nobody else; what is changed is audited with the name in the
// certificate.
func TestRemote(t *testing.T) {
	ours, foreign := newAuthority(t, "ours"), newAuthority(t, "foreign")
	ours.issue("server", net.IPv4(127, 0, 0, 1), false)
	src := example()
	_, s := serve(t, src)
	log := &lockedLog{}
	r := Remote{Listen: "127.0.0.1:0", Cert: ours.file("server.crt"), Key: ours.file("server.key"), ClientCA: ours.pem}
	if err := s.ServeTLS(r, slog.New(slog.NewTextHandler(log, nil))); err != nil {
		t.Fatal(err)
	}
	url := "https://" + s.RemoteAddr().String()
	operator := ours.client(ours, "operator", &tls.Config{})
	resp, err := operator.Get(url + "/v1/status")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(b), `"name":"test"`) || resp.TLS.Version != tls.VersionTLS13 {
		t.Errorf("%s, %v, %s", resp.Status, err, b)
	}
	resp, err = operator.Post(url+"/v1/drain", "application/json", strings.NewReader(`{"chain":"web"}`))
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
	if len(src.audited) != 1 || src.audited[0].Via != "tls" || src.audited[0].Subject != "CN=operator" || src.audited[0].UID != nil ||
		!strings.HasPrefix(src.audited[0].From, "127.0.0.1:") || src.audited[0].Serial == "" {
		t.Errorf("audited %+v", src.audited)
	}

	for name, c := range map[string]*http.Client{
		"no certificate":        ours.client(ours, "", &tls.Config{}),
		"of another authority":  foreign.client(ours, "stranger", &tls.Config{}),
		"TLS 1.2":               ours.client(ours, "old", &tls.Config{MaxVersion: tls.VersionTLS12}),
		"without TLS":           http.DefaultClient,
		"with a foreign server": ours.client(foreign, "wary", &tls.Config{}),
	} {
		at := url
		if name == "without TLS" {
			at = strings.Replace(url, "https", "http", 1)
		}
		resp, err := c.Post(at+"/v1/drain", "application/json", nil)
		if err == nil {
			resp.Body.Close()
			if name == "without TLS" && resp.StatusCode == http.StatusBadRequest {
				continue // told by the TLS server in clear
			}
			t.Errorf("%s: %s", name, resp.Status)
		}
	}
	if len(src.audited) != 1 || len(src.drains) != 1 {
		t.Errorf("somebody without a certificate got in: %+v", src.audited)
	}

	// A page of another site, in the browser of somebody who has a certificate.
	req, err := http.NewRequest(http.MethodPost, url+"/v1/handover", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Sec-Fetch-Site", "cross-site")
	if resp, err = operator.Do(req); err != nil || resp.StatusCode != http.StatusForbidden || resp.Header.Get("Content-Type") != problemType || src.handovers != 0 {
		t.Errorf("%v, %v", resp, err)
	}
	resp.Body.Close()

	// The authority changes while it runs; a file that is broken leaves the old.
	later := time.Now().Add(time.Minute)
	replace := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(ours.pem, b, 0o600); err != nil {
			t.Fatal(err)
		}
		later = later.Add(time.Minute)
		if err := os.Chtimes(ours.pem, later, later); err != nil {
			t.Fatal(err)
		}
	}
	replace([]byte("not PEM"))
	if resp, err := operator.Get(url + "/v1/status"); err != nil {
		t.Error(err)
	} else {
		resp.Body.Close()
	}
	b, err = os.ReadFile(foreign.pem)
	if err != nil {
		t.Fatal(err)
	}
	replace(b)
	if _, err := operator.Get(url + "/v1/status"); err == nil {
		t.Error("the former authority is still good")
	}
	if resp, err := foreign.client(ours, "newcomer", &tls.Config{}).Get(url + "/v1/status"); err != nil {
		t.Error(err)
	} else {
		resp.Body.Close()
	}
	log.mu.Lock()
	defer log.mu.Unlock()
	for _, want := range []string{"client didn't provide a certificate", "are not renewed", "are renewed"} {
		if !strings.Contains(log.b.String(), want) {
			t.Errorf("the log has no %q:\n%s", want, log.b.String())
		}
	}
}

func TestRemoteFiles(t *testing.T) {
	a := newAuthority(t, "ours")
	a.issue("server", net.IPv4(127, 0, 0, 1), false)
	good := Remote{Listen: "127.0.0.1:0", Cert: a.file("server.crt"), Key: a.file("server.key"), ClientCA: a.pem}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for want, change := range map[string]func(*Remote){
		"files in PEM that belong together": func(r *Remote) { r.Key = a.file("ours.key") },
		"no such file":                      func(r *Remote) { r.Cert = "/no/such" },
		"found none":                        func(r *Remote) { r.ClientCA = a.file("server.key") },
		"client_ca in [appliance.api]":      func(r *Remote) { r.ClientCA = "/no/such" },
		"set listen in [appliance.api]":     func(r *Remote) { r.Listen = taken.Addr().String() },
	} {
		_, s := serve(t, example())
		r := good
		change(&r)
		if err := s.ServeTLS(r, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}
