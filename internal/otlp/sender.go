package otlp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
)

// sender posts messages of one kind.
type sender struct {
	kind, what string
	endpoint   string
	url        string
	header     http.Header
	client     *http.Client
	log        *slog.Logger
	o          *Options

	accepted, sent, skipped, drops, failed atomic.Uint64
	left                                   uint64 // were not sent at the end; after Close
	down                                   atomic.Bool
	lastErr                                atomic.Pointer[string]
}

func (e *Exporter) newSender(kind, path, what string) *sender {
	s := &sender{
		kind: kind, what: what, endpoint: e.spec.Endpoint, url: strings.TrimSuffix(e.spec.Endpoint, "/") + path, header: http.Header{},
		log: e.log, o: &e.o,
	}
	for _, h := range e.spec.Headers {
		name, value, _ := strings.Cut(h, ":")
		s.header.Add(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	s.header.Set("Content-Type", "application/x-protobuf")
	s.client = &http.Client{
		Timeout: e.spec.Timeout,
		// What asks for a login or has moved is not a collector.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext: (&net.Dialer{Timeout: e.spec.Timeout}).DialContext, TLSHandshakeTimeout: e.spec.Timeout,
			MaxConnsPerHost: 1, IdleConnTimeout: 90 * time.Second, MaxResponseHeaderBytes: 64 << 10,
		},
	}
	return s
}

func (s *sender) stats() Stats {
	// What has ended is read before what was accepted: Queued is never below zero.
	st := Stats{Kind: s.kind, To: s.endpoint, Sent: s.sent.Load(), Skipped: s.skipped.Load(), Failed: s.failed.Load(), Up: !s.down.Load()}
	st.Queued = s.accepted.Load() - st.Sent - st.Skipped - st.Failed
	st.Dropped = s.drops.Load()
	if e := s.lastErr.Load(); e != nil {
		st.Error = *e
	}
	return st
}

// outcome is what became of a message.
type outcome struct {
	rejected int64 // items that the collector has not taken of a message that it has
	err      error // it was not taken
}

// send posts a message until it is taken, refused for good, or too old; answer
// reads how many items were rejected. It ends early when end does, and makes no
// further attempt once quit is done.
func (s *sender) send(end, quit context.Context, m proto.Message, answer func([]byte) (rejected int64, why string)) outcome {
	body, err := proto.Marshal(m)
	if err != nil {
		return outcome{err: fmt.Errorf("encode %s: %w", s.what, err)}
	}
	deadline := time.Now().Add(s.o.GiveUp)
	for pause := s.o.Retry; ; pause = min(2*pause, 30*time.Second) {
		rejected, again, after, err := s.post(end, body, answer)
		if err == nil {
			if s.down.Swap(false) {
				s.log.Info(s.what + " are exported again")
			}
			return outcome{rejected: rejected}
		}
		s.trouble(err)
		// Half of it at random: appliances that lost one collector do not come back at once.
		wait := max(after, pause/2+rand.N(pause/2+1))
		if !again || quit.Err() != nil || time.Now().Add(wait).After(deadline) {
			return outcome{err: err}
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-quit.Done(): // a last attempt
			t.Stop()
		}
	}
}

// post makes one attempt.
func (s *sender) post(ctx context.Context, body []byte, answer func([]byte) (int64, string)) (rejected int64, again bool, after time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(body))
	if err != nil {
		return 0, false, 0, err
	}
	req.Header = s.header.Clone()
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, true, 0, cause(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	switch {
	case resp.StatusCode/100 == 2 && err != nil:
		return 0, true, 0, cause(err)
	case resp.StatusCode/100 == 2:
		rejected, why := answer(text)
		if rejected > 0 {
			s.setErr(fmt.Sprintf("the collector has rejected %d %s: %q", rejected, s.what, why[:min(len(why), 200)]))
		}
		return rejected, false, 0, nil
	case resp.StatusCode == 429 || resp.StatusCode == 502 || resp.StatusCode == 503 || resp.StatusCode == 504:
		n, _ := strconv.Atoi(resp.Header.Get("Retry-After")) // a date counts as nothing
		after = time.Duration(min(max(n, 0), 3600)) * time.Second
		again = true
	}
	return 0, again, after, fmt.Errorf("the collector answers %s", resp.Status)
}

// cause takes the method and the URL out of an error whose reader knows them.
func cause(err error) error {
	type wrapper interface{ Unwrap() error }
	if u, ok := err.(wrapper); ok && u.Unwrap() != nil {
		return u.Unwrap()
	}
	return err
}

// trouble notes an error and logs the first of a row.
func (s *sender) trouble(err error) {
	if errors.Is(err, context.Canceled) {
		return // by our own end
	}
	s.setErr(err.Error())
	if !s.down.Swap(true) {
		s.log.Warn(s.what+" are not exported", "error", err)
	}
}

func (s *sender) setErr(text string) { s.lastErr.Store(&text) }
