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
	"os"
	"path/filepath"
	"time"
)

// Server answers on the control socket and, if there is one, on the metrics
// address.
type Server struct {
	socket  net.Listener
	metrics net.Listener
	remote  net.Listener
	servers []*http.Server
	src     Source
}

// Serve listens on the unix socket at path and the TCP address metrics; "" of
// either turns it off. A socket that a dead process left is replaced; one that
// answers is an error.
func Serve(path, metrics string, src Source) (_ *Server, err error) {
	s := &Server{src: src}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if path != "" {
		if s.socket, err = listenUnix(path); err != nil {
			return nil, err
		}
		s.serve(s.socket, apiHandler(src))
	}
	if metrics != "" {
		if s.metrics, err = net.Listen("tcp", metrics); err != nil {
			return nil, fmt.Errorf("listen for metrics: %w; set metrics in [appliance] to another address, or to \"\" to turn them off", err)
		}
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", metricsHandler(src))
		pageHandlers(mux, src, time.Now)
		s.serve(s.metrics, mux)
	}
	return s, nil
}

// MetricsAddr is where the metrics are, or nil.
func (s *Server) MetricsAddr() net.Addr {
	if s.metrics == nil {
		return nil
	}
	return s.metrics.Addr()
}

func (s *Server) serve(l net.Listener, h http.Handler) {
	srv := s.server(h)
	go func() { _ = srv.Serve(l) }() // ends with Close
}

// server returns one that Close closes.
func (s *Server) server(h http.Handler) *http.Server {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ConnContext: withPeer}
	s.servers = append(s.servers, srv)
	return srv
}

// closeWait is how long Close lets answers that are under way finish: who asked
// an appliance to leave wants to hear that it does.
const closeWait = time.Second

// Close stops answering, after what is under way, and removes the socket.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeWait)
	defer cancel()
	var err error
	for _, srv := range s.servers {
		if serr := srv.Shutdown(ctx); serr != nil {
			err = errors.Join(err, srv.Close())
		}
	}
	// A server that has not begun to serve yet does not know its listener.
	for _, l := range []net.Listener{s.socket, s.metrics, s.remote} {
		if l != nil {
			if cerr := l.Close(); !errors.Is(cerr, net.ErrClosed) {
				err = errors.Join(err, cerr)
			}
		}
	}
	return err
}

func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make directory of the control socket: %w", err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("listen on control socket %s: another penstock answers there; stop it, or set control in [appliance] to another path", path)
	}
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("listen on control socket %s: there is a file that is no socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove stale control socket: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on control socket: %w", err)
	}
	// Who may ask is decided by the file's mode: the owner and its group.
	if err := os.Chmod(path, 0o660); err != nil {
		l.Close()
		return nil, fmt.Errorf("set mode of control socket: %w", err)
	}
	return l, nil
}

// Client asks a running appliance.
type Client struct {
	path string
	http http.Client
}

// NewClient returns a client of the socket at path.
func NewClient(path string) *Client {
	return &Client{path: path, http: http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}},
	}}
}

// Status asks for a snapshot.
func (c *Client) Status() (s Status, err error) { return s, c.get("/v1/status", &s) }

// Sample asks for a snapshot that costs little (Source.Sample).
func (c *Client) Sample() (s Status, err error) { return s, c.get("/v1/sample", &s) }

// Flows asks for the live flows.
func (c *Client) Flows() (f []Flow, err error) { return f, c.get("/v1/flows", &f) }

// Evict has flows forgotten, and returns how many there were.
func (c *Client) Evict(flows []Flow) (int, error) {
	var e evicted
	err := c.do(http.MethodPost, "/v1/flows/evict", flows, &e)
	return e.Evicted, err
}

func (c *Client) get(url string, v any) error { return c.do(http.MethodGet, url, nil, v) }

// do sends send as JSON, unless it is nil, and reads the answer into v.
func (c *Client) do(method, url string, send, v any) error {
	var body io.Reader
	if send != nil {
		b, err := json.Marshal(send)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, "http://penstock"+url, body)
	if err != nil {
		return err
	}
	if send != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.unanswered(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 256<<20))
	if err != nil {
		return fmt.Errorf("read answer of control socket: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return c.refused(resp.Status, answer)
	}
	if err := json.Unmarshal(answer, v); err != nil {
		return fmt.Errorf("read answer of control socket: %w", err)
	}
	return nil
}

// unanswered is the error of a request that got no answer.
func (c *Client) unanswered(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return fmt.Errorf("ask control socket %s: %w; is an appliance running, and is this the path in its [appliance] control?", c.path, op.Err)
	}
	return fmt.Errorf("ask control socket %s: %w", c.path, err)
}

// refused is the error that an answer tells of.
func (c *Client) refused(status string, answer []byte) error {
	p := new(Problem)
	if json.Unmarshal(answer, p) != nil || p.Detail == "" {
		p.Detail = status
	}
	return fmt.Errorf("ask control socket %s: %w", c.path, p)
}
