package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"penstock/internal/lab"
)

// TestHTTP2 sends requests of curl in HTTP/2 in clear through the appliance: a path
// that is denied is a 403 where the connection is terminated, else a reset, and
// the records have the streams.
func TestHTTP2(t *testing.T) {
	for _, deny := range []string{"reset", "403"} {
		t.Run(deny, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, lab.InlineOptions{})
			log := filepath.Join(r.dir, "events.json")
			r.config("closed", "", inspectChain+fmt.Sprintf("  deny_paths = [\"/admin/*\"]\n  deny = %q\n[[record]]\nto = \"file:%s\"\nevents = [\"http\"]\n", deny, log))
			ln, err := r.Server.Listen("tcp", r.addr(false, 80))
			if err != nil {
				t.Fatal(err)
			}
			origin := &http.Server{ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, tlsBody)
			})}
			origin.Protocols.SetUnencryptedHTTP2(true)
			done := make(chan error, 1)
			go func() { done <- origin.Serve(ln) }()
			t.Cleanup(func() {
				origin.Close()
				if err := <-done; !errors.Is(err, http.ErrServerClosed) {
					t.Errorf("origin: %v", err)
				}
			})
			a := r.start()
			// One request a connection: some curls cannot do two themselves.
			curl := func(path string) (string, error) {
				return r.try(r.Client, 20*time.Second, "curl", "-sS", "--http2-prior-knowledge", "-w", "%{http_code} %{size_download}", "-o", "/dev/null", "http://"+r.addr(false, 80)+path)
			}
			for _, path := range []string{"/a", "/b"} {
				if out, err := curl(path); err != nil || out != fmt.Sprintf("200 %d", len(tlsBody)) {
					t.Errorf("%s: %q, %v", path, out, err)
				}
			}
			out, err := curl("/admin/y")
			if deny == "403" && (err != nil || out != "403 0") || deny == "reset" && err == nil {
				t.Errorf("a denied path: %q, %v", out, err)
			}
			var lines []string
			r.eventually("the requests are recorded", func() error {
				if lines = records(t, log, "http"); len(lines) != 3 {
					return fmt.Errorf("%d records: %q", len(lines), lines)
				}
				return nil
			})
			text := strings.Join(lines, "\n")
			if strings.Count(text, `"stream_id"`) != 3 || strings.Count(text, `"protocol":"HTTP/2"`) != 3 || strings.Count(text, `"reason":"http_path_denied"`) != 1 {
				t.Errorf("records %s", text)
			}
			a.stop()
		})
	}
}
