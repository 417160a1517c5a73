package control

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// capturing is what a source knows of captures.
type capturing struct {
	ask     CaptureAsk
	refuse  error // before it begins
	fail    error // in the middle
	stopped int
	ended   chan struct{} // closed when the reader has gone, if not nil
}

func (s *source) Capture(ctx context.Context, a CaptureAsk, begun func(Capture) io.Writer) (Capture, error) {
	c := &s.capturing
	if c.ask = a; c.refuse != nil || s.err != nil {
		return Capture{}, errors.Join(c.refuse, s.err)
	}
	w := begun(Capture{ID: 7, At: []string{"lan:rx"}, PulledFlows: 2})
	for range 3 {
		if _, err := io.WriteString(w, "part "); err != nil {
			return Capture{}, err
		}
	}
	if c.ended != nil {
		<-ctx.Done()
		close(c.ended)
	}
	return Capture{ID: 7, Packets: 3, Dropped: 1, End: "done"}, c.fail
}

func (s *source) Captures() ([]Capture, error) {
	return []Capture{{ID: 7, At: []string{"lan:rx"}}}, s.err
}

func (s *source) StopCapture(id int) error {
	s.capturing.stopped = id
	return s.err
}

func TestCaptureStream(t *testing.T) {
	src := &source{}
	path := filepath.Join(t.TempDir(), "s")
	srv, err := Serve(path, "", src)
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	c := NewClient(path)
	var out bytes.Buffer
	var begin Capture
	began := func(b Capture) (io.Writer, error) { begin = b; return &out, nil }
	ask := CaptureAsk{Filter: "ip", Program: [][]uint32{{6, 0, 0, 1}}, At: "lan:rx", Limit: 1 << 20, Count: 9, ForSeconds: 1.5, SnapLen: 64}
	end, err := c.Capture(t.Context(), ask, began)
	if err != nil || out.String() != "part part part " || begin.ID != 7 || begin.PulledFlows != 2 || end.Packets != 3 || end.Dropped != 1 || end.End != "done" {
		t.Errorf("%q, began %+v, ended %+v, %v", out.String(), begin, end, err)
	}
	if !reflect.DeepEqual(src.capturing.ask, ask) {
		t.Errorf("asked %+v", src.capturing.ask)
	}
	if l, err := c.Captures(); err != nil || len(l) != 1 || l[0].ID != 7 {
		t.Errorf("%+v, %v", l, err)
	}
	if err := c.StopCapture(7); err != nil || src.capturing.stopped != 7 {
		t.Errorf("stopped %d, %v", src.capturing.stopped, err)
	}

	src.capturing.refuse = errors.New("begin capture: 4 run")
	if _, err := c.Capture(t.Context(), ask, began); err == nil || !strings.Contains(err.Error(), "begin capture: 4 run") {
		t.Errorf("refused: %v", err)
	}
	src.capturing.refuse, src.capturing.fail = nil, errors.New("no room")
	if _, err := c.Capture(t.Context(), ask, began); err == nil || !strings.Contains(err.Error(), "in the middle") {
		t.Errorf("broken off: %v", err)
	}
	src.capturing.fail = nil

	// The source hears that its reader has gone.
	src.capturing.ended = make(chan struct{})
	if _, err := c.Capture(t.Context(), ask, func(Capture) (io.Writer, error) { return nil, errors.New("disk full") }); err == nil || err.Error() != "disk full" {
		t.Errorf("%v", err)
	}
	select {
	case <-src.capturing.ended:
	case <-time.After(10 * time.Second):
		t.Error("the capture goes on without a reader")
	}
}

// TestCaptureIsLocal: packets are for who may open the control socket here, whatever else the interface listens on.
func TestCaptureIsLocal(t *testing.T) {
	srv := httptest.NewServer(apiHandler(&source{}))
	defer srv.Close()
	resp, err := http.Post(srv.URL+"/v1/capture", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	if resp.StatusCode == http.StatusOK || !strings.Contains(string(text), "only by the control socket") {
		t.Errorf("%s: %s", resp.Status, text)
	}
}
