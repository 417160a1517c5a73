package record

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var epoch = time.Date(2026, 3, 4, 5, 6, 7, 891234567, time.FixedZone("CET", 3600))

func fixedNow() time.Time { return epoch }

// open opens one sink and fails the test if that fails.
func open(t *testing.T, o Options, specs ...Spec) *Recorder {
	t.Helper()
	r, err := OpenWith(specs, nil, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// lines returns the lines of a file.
func lines(t *testing.T, file string) []string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 0 && b[len(b)-1] != '\n' {
		t.Errorf("%s does not end with a line end: %q", file, b[max(0, len(b)-40):])
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

// eventually polls until ok, and fails the test after a while.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "events.json")
	if err := os.WriteFile(file, []byte("before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := open(t, Options{Now: fixedNow}, Spec{"file:" + file, []string{"flow", "http"}})
	r.Record("flow", map[string]any{"src_ip": "10.0.0.1", "src_port": 1234})
	r.Record("tls", map[string]any{"sni": "nobody wants this"})
	r.Record("http", struct {
		Host string `json:"hostname"`
		URL  string `json:"url"`
	}{"example.org", "/?a<b&c>d"})
	r.Record("flow", nil)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"before",
		`{"timestamp":"2026-03-04T04:06:07.891234Z","event_type":"flow","src_ip":"10.0.0.1","src_port":1234}`,
		`{"timestamp":"2026-03-04T04:06:07.891234Z","event_type":"http","hostname":"example.org","url":"/?a<b&c>d"}`,
		`{"timestamp":"2026-03-04T04:06:07.891234Z","event_type":"flow"}`,
	}
	got := lines(t, file)
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, l := range got[1:] {
		if !json.Valid([]byte(l)) {
			t.Errorf("not JSON: %s", l)
		}
	}
	if s := r.Stats()[0]; s.Written != 3 || s.Dropped+s.Failed+s.Queued != 0 || !s.Up {
		t.Errorf("stats are %+v", s)
	}
}
