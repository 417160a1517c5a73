package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
)

// TestAudit: each request for a change is kept, with who asked, what for, and
// what became of it; questions are not.
func TestAudit(t *testing.T) {
	prefixes := make([]netip.Prefix, 10)
	for i := range prefixes {
		prefixes[i] = netip.MustParsePrefix(fmt.Sprintf("192.0.2.%d/32", i))
	}
	flow := Flow{Client: "10.0.0.1:1", Server: "10.0.0.2:80", Proto: "tcp"}
	for name, c := range map[string]struct {
		ask  func(*Client) error
		err  error // of the appliance
		want Audit // of the fields that are not the caller's
	}{
		"status":  {func(c *Client) error { _, err := c.Status(); return err }, nil, Audit{}},
		"dry run": {func(c *Client) error { _, err := c.Reload(true); return err }, nil, Audit{}},
		"deny":    {func(c *Client) error { _, err := c.DenyList(); return err }, nil, Audit{}},
		"reload":  {func(c *Client) error { _, err := c.Reload(false); return err }, nil, Audit{Action: "reload", Result: "done"}},
		"deny add": {func(c *Client) error {
			_, err := c.DenyAdd(DenyAdd{Prefixes: prefixes[:2], ForSeconds: 60, Why: "scan"})
			return err
		}, nil, Audit{Action: "deny_add", What: "192.0.2.0/32, 192.0.2.1/32, for 60 s: scan", Result: "done"}},
		"deny del": {func(c *Client) error { return c.DenyDel(prefixes) }, nil, Audit{
			Action: "deny_del", What: "192.0.2.0/32, 192.0.2.1/32, 192.0.2.2/32, 192.0.2.3/32, 192.0.2.4/32, 192.0.2.5/32, 192.0.2.6/32, 192.0.2.7/32, and 2 more", Result: "done",
		}},
		"drain": {func(c *Client) error { _, err := c.Drain(DrainAsk{Chain: "web", Undo: true}); return err }, nil, Audit{Action: "drain", What: "chain web, undone", Result: "done"}},
		"drain all": {func(c *Client) error { _, err := c.Drain(DrainAsk{}); return err }, Refused(errors.New("not with midstream")), Audit{
			Action: "drain", What: "all chains", Result: "refused", Error: "not with midstream; see the log of the appliance",
		}},
		"handover": {func(c *Client) error { _, err := c.Handover(); return err }, errors.New("no pins"), Audit{Action: "handover", Result: "failed", Error: "no pins"}},
		"evict":    {func(c *Client) error { _, err := c.Evict([]Flow{flow}); return err }, nil, Audit{Action: "evict", What: "tcp 10.0.0.1:1 to 10.0.0.2:80", Result: "done"}},
		"deny nothing": {func(c *Client) error { _, err := c.DenyAdd(DenyAdd{}); return err }, nil, Audit{
			Action: "deny_add", Result: "refused", Error: "want at least one prefix, got none; name some in prefixes",
		}},
		"deny for less than nothing": {func(c *Client) error {
			_, err := c.DenyAdd(DenyAdd{Prefixes: prefixes[:1], ForSeconds: -1})
			return err
		}, nil, Audit{
			Action: "deny_add", What: "192.0.2.0/32", Result: "refused", Error: "want for_seconds from 0 to 3153600000, got -1; 0 is for good",
		}},
		"nonsense": {func(c *Client) error { return c.do(http.MethodPost, "/v1/drain", "nonsense", &struct{}{}) }, nil, Audit{
			Action: "drain", What: "all chains", Result: "refused",
			Error: "read request: json: cannot unmarshal string into Go value of type control.DrainAsk; see the schema of the request in /v1/openapi.json",
		}},
	} {
		src := example()
		src.err = c.err
		path, _ := serve(t, src)
		err := c.ask(NewClient(path))
		if refused := c.want.Result != "" && c.want.Result != "done"; (err != nil) != refused {
			t.Errorf("%s: %v", name, err)
		}
		if c.want.Action == "" {
			if len(src.audited) > 0 {
				t.Errorf("%s: %+v is no change", name, src.audited)
			}
			continue
		}
		if len(src.audited) != 1 {
			t.Fatalf("%s: audited %+v", name, src.audited)
		}
		got := src.audited[0]
		if got.Via != "unix" || got.UID == nil || int(*got.UID) != os.Getuid() || int(*got.GID) != os.Getgid() || int(got.PID) != os.Getpid() {
			t.Errorf("%s: caller %s", name, got.Caller)
		}
		if got.Seconds < 0 {
			t.Errorf("%s: it took %v", name, got.Seconds)
		}
		got.Caller, got.Seconds = Caller{}, 0
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", name, got, c.want)
		}
	}
}

// TestAuditIsBounded: a request cannot make a line longer than a sink takes.
func TestAuditIsBounded(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	flows := make([]Flow, 1000)
	for i := range flows {
		flows[i] = Flow{Client: long, Server: long, Proto: long}
	}
	for _, request := range []any{DrainAsk{Chain: long}, DenyAdd{Why: long}, flows} {
		a := Audit{What: what(request)}
		if b, err := json.Marshal(a); err != nil || len(b) > 8<<10 {
			t.Errorf("%T: %d bytes, %v", request, len(b), err)
		}
	}
}

func TestAuditOfReload(t *testing.T) {
	for want, r := range map[string]Reload{"done": {Applied: true}, "refused": {Problems: []string{"f:1:1: no"}}} {
		a := AuditOfReload(Signal("SIGHUP"), r, nil)
		if a.Result != want || a.Action != "reload" || a.Caller.String() != "SIGHUP" {
			t.Errorf("%+v", a)
		}
	}
	if a := AuditOfReload(Signal("SIGHUP"), Reload{}, errors.New("no memory")); a.Result != "failed" || a.Error != "no memory" {
		t.Errorf("%+v", a)
	}
}
