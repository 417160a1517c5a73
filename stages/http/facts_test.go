package http_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"penstock/internal/config"
	"penstock/pcap"
	"penstock/pipeline"
	"penstock/stages"
)

// exceptions are where a record differs from what another project says of the
// same capture; the README has the reasons.
var exceptions = map[string]string{
	"arkime-http2-nghttp2 49570 method":            "GET | GET PRI",
	"arkime-single-packets 49749 status":           " | 403",
	"arkime-tcp-reassembly-synthetic 40010 method": " | GET",
	"arkime-tcp-reassembly-synthetic 40010 host":   " | t",
	"arkime-tcp-reassembly-synthetic 40010 path":   " | /wrap",
}

// agreed notes that the two differ, and agrees with it if the table does.
func agreed(t *testing.T, where, ours, theirs string, used map[string]bool) {
	t.Helper()
	if ours == theirs {
		return
	}
	used[where] = true
	if want, ok := exceptions[where]; !ok || want != ours+" | "+theirs {
		t.Errorf("%q: %q,", where, ours+" | "+theirs)
	}
}

type fact struct {
	SrcPort int `json:"src_port"`
	Reason  string
	HTTP    struct {
		Hostname, URL, Status string
		Agent                 string `json:"http_user_agent"`
		Method                string `json:"http_method"`
	}
}

// facts replays a capture and returns what is recorded.
type factRecorder struct{ list *[]fact }

func (factRecorder) Enabled(string) bool { return true }

func (r factRecorder) Record(_ string, fields any) {
	text, err := json.Marshal(fields.(pipeline.Borrowed).Keep())
	if err != nil {
		panic(err)
	}
	var f fact
	var e struct{ HTTP struct{ Status int } }
	if err := json.Unmarshal([]byte(strings.Replace(string(text), `"status":`, `"Status_":`, 1)), &f); err != nil {
		panic(err)
	}
	if err := json.Unmarshal(text, &e); err != nil {
		panic(err)
	}
	f.HTTP.Status = fmt.Sprint(e.HTTP.Status)
	*r.list = append(*r.list, f)
}

func facts(t *testing.T, file, onBad string) (list []fact) {
	t.Helper()
	text := chain + fmt.Sprintf("  on_bad = %q\n", onBad)
	cfg, problems := config.Parse("test.toml", []byte(text), stages.Builtin())
	for _, p := range problems {
		t.Fatal(p)
	}
	if _, err := pcap.Replay(context.Background(), pcap.ReplayOptions{Name: file, Chain: &cfg.Chains[0].Spec, AcceptBadChecksums: true, Recorder: factRecorder{&list}}); err != nil {
		t.Fatal(err)
	}
	return list
}

// arkimeSession is what is looked at of Arkime's output.
type arkimeSession struct {
	Source struct{ Port int }
	HTTP   struct {
		Method, Host, Path, UserAgent []string
		StatusCode                    []int
	}
}

// TestArkime: methods, hosts, paths, user agents and status of every connection.
func TestArkime(t *testing.T) {
	files, err := filepath.Glob("testdata/expected/arkime-*.json")
	if err != nil || len(files) < 8 {
		t.Fatalf("%q, %v", files, err)
	}
	used := map[string]bool{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var sessions struct {
			List []struct{ Body arkimeSession } `json:"sessions3"`
		}
		if err := json.Unmarshal(b, &sessions); err != nil || len(sessions.List) == 0 {
			t.Fatalf("%s: %d sessions, %v", file, len(sessions.List), err)
		}
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		capture := "testdata/captures/" + name + ".pcap"
		if name == "arkime-http2-nghttp2" {
			capture = "../../internal/h2/testdata/http2-nghttp2.pcap"
		}
		// Of each client's port; Arkime begins a session anew where a port is used again.
		ours, theirs := map[int]map[string]map[string]bool{}, map[int]map[string]map[string]bool{}
		add := func(m map[int]map[string]map[string]bool, port int, what, value string) {
			if m[port] == nil {
				m[port] = map[string]map[string]bool{}
			}
			if m[port][what] == nil {
				m[port][what] = map[string]bool{}
			}
			if value != "" && value != "0" {
				m[port][what][value] = true
			}
		}
		for _, f := range facts(t, capture, "pass") {
			path, _, _ := strings.Cut(f.HTTP.URL, "?")
			for what, value := range map[string]string{"method": f.HTTP.Method, "host": f.HTTP.Hostname, "path": path, "agent": f.HTTP.Agent, "status": f.HTTP.Status} {
				add(ours, f.SrcPort, what, value)
			}
		}
		for _, s := range sessions.List {
			h := s.Body.HTTP
			for what, values := range map[string][]string{"method": h.Method, "host": h.Host, "path": h.Path, "agent": h.UserAgent, "status": strings.Fields(strings.Trim(fmt.Sprint(h.StatusCode), "[]"))} {
				for _, v := range values {
					if host, _, err := net.SplitHostPort(v); what == "host" && err == nil {
						v = host
					}
					add(theirs, s.Body.Source.Port, what, v)
				}
			}
		}
		for port := range theirs {
			for _, what := range []string{"method", "host", "path", "agent", "status"} {
				agreed(t, fmt.Sprintf("%s %d %s", name, port, what), list(ours[port][what]), list(theirs[port][what]), used)
			}
		}
	}
	unused(t, "arkime-", used)
}

func list(m map[string]bool) string { return strings.Join(slices.Sorted(maps.Keys(m)), " ") }

// TestZeek: method, host, URI and status of every request, in order.
func TestZeek(t *testing.T) {
	used := map[string]bool{}
	for _, name := range []string{"zeek-methods", "zeek-pipelined-requests", "zeek-smuggle-http-request"} {
		b, err := os.ReadFile("testdata/expected/" + name + ".log")
		if err != nil {
			t.Fatal(err)
		}
		column := map[string]int{}
		ours, theirs := map[string]string{}, map[string]string{}
		for line := range strings.Lines(string(b)) {
			cells := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
			if cells[0] == "#fields" {
				cells = cells[1:]
			}
			if cells[0] == "ts" {
				for i, c := range cells {
					column[c] = i
				}
				continue
			}
			if strings.HasPrefix(line, "#") {
				continue
			}
			get := func(c string) string {
				if v := cells[column[c]]; v != "-" && v != "(empty)" {
					return v
				}
				return ""
			}
			port := get("id.orig_p")
			theirs[port] += fmt.Sprintf("%s %s %s %s; ", get("method"), get("host"), get("uri"), get("status_code"))
		}
		for _, f := range facts(t, "testdata/captures/"+name+".pcap", "pass") {
			ours[fmt.Sprint(f.SrcPort)] += fmt.Sprintf("%s %s %s %s; ", f.HTTP.Method, f.HTTP.Hostname, f.HTTP.URL, f.HTTP.Status)
		}
		if len(theirs) == 0 {
			t.Fatalf("%s: nothing is expected", name)
		}
		if name == "zeek-methods" { // lines that end with a bare LF, some with no method: Zeek reads on, here they are refused
			refused := map[string]bool{}
			for _, f := range facts(t, "testdata/captures/"+name+".pcap", "deny") {
				refused[fmt.Sprint(f.SrcPort)] = f.Reason == "http_bad_line_end" || f.Reason == "http_not_http"
			}
			for port := range theirs {
				if !refused[port] {
					t.Errorf("%s %s: not refused", name, port)
				}
			}
			continue
		}
		for port := range theirs {
			agreed(t, name+" "+port, ours[port], theirs[port], used)
		}
	}
	unused(t, "zeek-", used)
}

// TestSuricata: method and host of the requests of its HTTP evasions.
func TestSuricata(t *testing.T) {
	files, err := filepath.Glob("testdata/expected/suricata-*.yaml")
	if err != nil || len(files) < 16 {
		t.Fatalf("%q, %v", files, err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		value := func(key string) string {
			_, after, _ := strings.Cut(string(b), key+": ")
			v, _, _ := strings.Cut(after, "\n")
			return v
		}
		method, host := value("http.http_method"), value("http.hostname")
		if method == "" || host == "" {
			t.Fatalf("%s says %q, %q", file, method, host)
		}
		list := facts(t, "testdata/captures/"+strings.TrimSuffix(filepath.Base(file), ".yaml")+".pcap", "deny")
		if len(list) != 1 || list[0].HTTP.Method != method || list[0].HTTP.Hostname != host || list[0].Reason != "" {
			t.Errorf("%s: %+v, want %s %s", file, list, method, host)
		}
	}
}

func unused(t *testing.T, prefix string, used map[string]bool) {
	t.Helper()
	for where := range exceptions {
		if strings.HasPrefix(where, prefix) && !used[where] {
			t.Errorf("exception %q is none any more", where)
		}
	}
}
