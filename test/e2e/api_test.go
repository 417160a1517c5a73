package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"penstock/internal/control"
	"penstock/internal/lab"
)

// audited is a line of the record.
type audited struct {
	Timestamp string
	EventType string `json:"event_type"`
	Audit     control.Audit
}

// TestControlAPI: a running appliance with traffic answers as its own
// description says, over the socket and over TLS, and every change is recorded
// with who asked for it.
func TestControlAPI(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{})
	record := filepath.Join(r.dir, "audit.json")
	cert, key, identity := selfSigned(t, r.dir)
	r.config("closed", "", fmt.Sprintf("[appliance.api]\nlisten = \"127.0.0.1:9478\"\ncert = %q\nkey = %q\nclient_ca = %q\n", cert, key, cert)+
		fmt.Sprintf("[[record]]\nto = \"file:%s\"\nevents = [\"audit\"]\n", record)+
		"[gate]\nstate = \"\"\n[[steer]]\nproto = \"tcp\"\ndst_port = [80]\nto = \"web\"\n[[chain]]\nname = \"web\"\n[[chain.stage]]\nkind = \"tcp\"\n")
	a := r.start()
	r.origin(80)
	if _, err := r.try(r.Client, 10*time.Second, "curl", "-sS", "-m", "5", "http://"+r.addr(false, 80)+"/"); err != nil {
		t.Fatal(err)
	}

	local := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", r.control())
	}}}
	remote := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: r.Appliance.DialContext, TLSClientConfig: identity}}
	stranger := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: r.Appliance.DialContext, TLSClientConfig: &tls.Config{RootCAs: identity.RootCAs}}}
	holds(t, local, "http://penstock")
	holds(t, remote, "https://127.0.0.1:9478")
	if resp, err := stranger.Get("https://127.0.0.1:9478/v1/status"); err == nil {
		resp.Body.Close()
		t.Error("it answers who has no certificate")
	}

	// Changes: by a command, over TLS, by signal; done and refused.
	var pids []int
	penstock := func(want int, args ...string) {
		t.Helper()
		cmd := r.penstock(append(args, "--control", r.control())...)
		out, err := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Fatalf("penstock %v: status %d (%v): %s", args, got, err, out)
		}
		pids = append(pids, cmd.ProcessState.Pid())
	}
	penstock(0, "deny", "add", "192.0.2.0/24", "--for", "1h", "--why", "scan")
	penstock(1, "deny", "del", "198.51.100.0/24")
	penstock(1, "drain", "--chain", "nowhere")
	penstock(0, "reload", "--dry-run") // changes nothing
	penstock(0, "status")
	resp, err := remote.Post("https://127.0.0.1:9478/v1/flows/evict", "application/json", strings.NewReader(`[{"client":"no address"}]`))
	if err != nil {
		t.Fatal(err)
	}
	var p control.Problem
	err = json.NewDecoder(resp.Body).Decode(&p)
	resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusUnprocessableEntity || p.Code != "wrong_value" || p.Mend == "" {
		t.Errorf("%s, %v: %+v", resp.Status, err, p)
	}
	if err := a.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}

	uid, gid := uint32(0), uint32(0)
	local1 := func(pid int) control.Caller {
		return control.Caller{Via: "unix", UID: &uid, GID: &gid, PID: int32(pid)}
	}
	want := []control.Audit{
		{Caller: local1(pids[0]), Action: "deny_add", What: "192.0.2.0/24, for 3600 s: scan", Result: "done"},
		{Caller: local1(pids[1]), Action: "deny_del", What: "198.51.100.0/24", Result: "refused", Error: "198.51.100.0/24 is not denied"},
		{Caller: local1(pids[2]), Action: "drain", What: "chain nowhere", Result: "refused", Error: `there are "web"`},
		{Caller: control.Caller{Via: "tls", Subject: "CN=operator", Serial: "1"}, Action: "evict", What: " no address to ", Result: "refused", Error: "name flows as /v1/flows does"},
		{Caller: control.Signal("SIGHUP"), Action: "reload", Result: "done"},
	}
	var got []audited
	r.eventually("the changes are recorded", func() error {
		b, err := os.ReadFile(record)
		got = nil
		for line := range bytes.Lines(b) {
			var e audited
			if jerr := json.Unmarshal(line, &e); jerr != nil {
				return jerr
			}
			got = append(got, e)
		}
		if len(got) < len(want) {
			return fmt.Errorf("%d of %d events, %w", len(got), len(want), err)
		}
		return err
	})
	if len(got) != len(want) {
		t.Fatalf("%d events: %+v", len(got), got)
	}
	for i, w := range want {
		g := got[i]
		if g.EventType != "audit" || g.Timestamp == "" || g.Audit.Via == "tls" && !strings.HasPrefix(g.Audit.From, "127.0.0.1:") {
			t.Errorf("event %d: %+v", i, g)
		}
		g.Audit.From = ""
		if g.Audit.Caller.String() != w.Caller.String() || g.Audit.Action != w.Action || g.Audit.What != w.What || g.Audit.Result != w.Result ||
			!strings.Contains(g.Audit.Error, w.Error) || g.Audit.Serial != w.Serial {
			t.Errorf("event %d:\ngot  %+v\nwant %+v", i, g.Audit, w)
		}
		if said := fmt.Sprintf("action=%s", w.Action); !strings.Contains(a.log.String(), said) {
			t.Errorf("the log has no %q", said)
		}
	}
	a.stop()
}

// holds asks everything that changes nothing, and compares the answers with the
// schemas that the appliance describes them by.
func holds(t *testing.T, c *http.Client, base string) {
	t.Helper()
	get := func(url string) []byte {
		t.Helper()
		resp, err := c.Get(base + url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s, %v: %s", url, resp.Status, err, b)
		}
		return b
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(get("/v1/openapi.json")))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("openapi.json", doc); err != nil {
		t.Fatal(err)
	}
	asked := 0
	for url, methods := range doc.(map[string]any)["paths"].(map[string]any) {
		op, ok := methods.(map[string]any)["get"].(map[string]any)
		if !ok {
			continue
		}
		at := "openapi.json#/paths/" + strings.ReplaceAll(url, "/", "~1") + "/get/responses/200/content/application~1json/schema"
		if content := op["responses"].(map[string]any)["200"].(map[string]any)["content"].(map[string]any); content["application/json"] == nil {
			continue
		}
		s, err := compiler.Compile(at)
		if err != nil {
			t.Fatal(err)
		}
		b := get(url)
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
		if err == nil {
			err = s.Validate(v)
		}
		if err != nil {
			t.Errorf("%s: %v\n%s", url, err, b)
		}
		asked++
	}
	if asked < 5 {
		t.Errorf("%d paths are described", asked)
	}
}

// selfSigned writes a certificate that is its own authority, for both sides.
func selfSigned(t *testing.T, dir string) (cert, key string, client *tls.Config) {
	t.Helper()
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "operator"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &secret.PublicKey, secret)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "api.crt"), filepath.Join(dir, "api.key")
	for file, b := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(pair.Leaf)
	return cert, key, &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}
}
