package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"time"
)

// CaptureAsk asks for packets to be captured.
type CaptureAsk struct {
	// Filter is the expression as it was given, for others to read; Program is what it means: instructions of classic
	// BPF for Ethernet frames, each as its four numbers (op, jt, jf, k). Empty: all packets.
	Filter  string     `json:"filter,omitempty"`
	Program [][]uint32 `json:"program,omitempty"`
	// Tagged says that the program looks at VLAN tags; else it is run on frames as they would be without.
	Tagged     bool    `json:"tagged,omitempty"`
	At         string  `json:"at,omitempty"`          // the points, separated by commas; "": every port, both ways
	Limit      int64   `json:"limit_bytes,omitempty"` // of the capture; 0: none
	Count      uint64  `json:"count,omitempty"`       // of packets; 0: no limit
	ForSeconds float64 `json:"for_seconds,omitempty"` // 0: until it is stopped
	SnapLen    int     `json:"snaplen,omitempty"`     // bytes that are kept of a packet; 0: all
}

// Capture is one that runs, or has run.
type Capture struct {
	ID      int      `json:"id"`
	At      []string `json:"at"`
	Filter  string   `json:"filter,omitempty"`
	Seconds float64  `json:"seconds"` // so far
	Packets uint64   `json:"packets"` // captured
	Bytes   uint64   `json:"bytes"`   // of the capture, as it is written
	// Dropped packets were to be captured, and there was no room.
	Dropped uint64 `json:"dropped"`
	// PulledFlows were offloaded, and came up when it began; HeldFlows is how many it keeps in user space, the same
	// number for each worker that sees them; LostFlows were too many to be kept.
	PulledFlows int    `json:"pulled_flows"`
	HeldFlows   uint64 `json:"held_flows"`
	LostFlows   uint64 `json:"lost_flows"`
	// SplicedFlows may match and are in XDP for good: they are not seen.
	SplicedFlows int    `json:"spliced_flows"`
	End          string `json:"end,omitempty"` // why it has ended
}

type captureStop struct {
	ID int `json:"id"`
}

const (
	captureType    = "application/x-pcapng"
	captureHeader  = "Penstock-Capture" // a Capture when it begins
	captureTrailer = "Penstock-Capture-End"
	// captureStall is how long a reader may take nothing.
	captureStall = 30 * time.Second
)

func captureRoutes(src Source) []route {
	return []route{
		{
			method: http.MethodPost, path: "/v1/capture", action: "capture", media: captureType, in: reflect.TypeFor[CaptureAsk](), out: reflect.TypeFor[Capture](),
			summary: "capture packets: a pcapng stream, over the socket only; header " + captureHeader + " and trailer " + captureTrailer + " have a Capture each",
			answer:  func(w http.ResponseWriter, r *http.Request) (any, error) { return nil, streamCapture(src, w, r) },
		},
		get("/v1/captures", "the captures that run", func() ([]Capture, error) { return list(src.Captures()) }),
		post(src, "/v1/capture/stop", "capture_stop", "end a capture in good order", func(a captureStop) (struct{}, error) {
			return struct{}{}, src.StopCapture(a.ID)
		}),
	}
}

// streamCapture sends a capture as it comes, and what became of it in a trailer.
// It is audited when it begins, or is refused.
func streamCapture(src Source, w http.ResponseWriter, r *http.Request) (err error) {
	start := time.Now()
	var a CaptureAsk
	begun := false
	audit := func(err error) {
		e := Audit{Caller: callerOf(r), Action: "capture", What: what(a), Seconds: time.Since(start).Seconds()}
		e.Result, e.Error = outcome(nil, err)
		src.Audited(e)
	}
	defer func() {
		if !begun {
			audit(err)
		}
	}()
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); !ok || local.Network() != "unix" {
		return Refused(errors.New("begin capture: packets leave only by the control socket; run penstock capture on the appliance"))
	}
	if err := body(w, r, &a); err != nil {
		return err
	}
	end, err := src.Capture(r.Context(), a, func(c Capture) io.Writer {
		begun = true
		audit(nil)
		text, _ := json.Marshal(c) // numbers and text
		h := w.Header()
		h.Set("Content-Type", captureType)
		h.Set(captureHeader, string(text))
		h.Set("Trailer", captureTrailer)
		w.WriteHeader(http.StatusOK)
		return &stream{w, http.NewResponseController(w)}
	})
	if !begun {
		return err
	}
	if err != nil {
		// Without the last chunk the reader knows that the capture is cut.
		panic(http.ErrAbortHandler)
	}
	text, _ := json.Marshal(end)
	w.Header().Set(captureTrailer, string(text))
	return nil
}

// stream passes on at once what is written.
type stream struct {
	io.Writer
	control *http.ResponseController
}

func (s *stream) Write(b []byte) (int, error) {
	if err := s.control.SetWriteDeadline(time.Now().Add(captureStall)); err != nil {
		return 0, err
	}
	n, err := s.Writer.Write(b)
	if err == nil {
		err = s.control.Flush()
	}
	return n, err
}

// Capture begins a capture. began is called when it runs, and returns where the pcapng stream goes. It returns when the capture
// has ended: by its limits, by StopCapture, or by ctx.
func (c *Client) Capture(ctx context.Context, a CaptureAsk, began func(Capture) (io.Writer, error)) (end Capture, err error) {
	text, err := json.Marshal(a)
	if err != nil {
		return end, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://penstock/v1/capture", bytes.NewReader(text))
	if err != nil {
		return end, err
	}
	patient := c.http
	patient.Timeout = 0
	resp, err := patient.Do(req)
	if err != nil {
		return end, c.unanswered(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		if err != nil {
			return end, fmt.Errorf("read answer of control socket: %w", err)
		}
		return end, c.refused(resp.Status, answer)
	}
	var begin Capture
	if err := json.Unmarshal([]byte(resp.Header.Get(captureHeader)), &begin); err != nil {
		return end, fmt.Errorf("read answer of control socket: %w", err)
	}
	out, err := began(begin)
	if err != nil {
		return end, err
	}
	if _, err := io.Copy(out, resp.Body); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = errors.New("the appliance has ended it in the middle; what was written so far can be read")
		}
		return end, fmt.Errorf("read capture: %w", err)
	}
	if err := json.Unmarshal([]byte(resp.Trailer.Get(captureTrailer)), &end); err != nil {
		return end, fmt.Errorf("read end of capture: %w", err)
	}
	return end, nil
}

// Captures asks for the captures that run.
func (c *Client) Captures() (l []Capture, err error) { return l, c.get("/v1/captures", &l) }

// StopCapture ends a capture: its reader gets what is left of it.
func (c *Client) StopCapture(id int) error {
	return c.do(http.MethodPost, "/v1/capture/stop", captureStop{id}, &struct{}{})
}
