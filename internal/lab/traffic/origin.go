package traffic

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

const (
	// MaxBytes bounds one response or stream.
	MaxBytes = 64 << 30
	maxDelay = time.Minute
	// SumHeader carries a body's SHA-256 in hexadecimal, as a header where the body
	// is known beforehand, else as a trailer.
	SumHeader = "X-Sha256"
	// Seed is the seed of all patterns that the servers send.
	Seed = 1
)

// Whoami is what the origin's /whoami says of a request.
type Whoami struct {
	Peer   string `json:"peer"`  // "address:port" that the origin saw the connection come from
	Local  string `json:"local"` // "address:port" where it arrived
	Method string `json:"method"`
	Host   string `json:"host"`
	Path   string `json:"path"`
}

// Received is what the origin's /sum says of a request's body.
type Received struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// Origin is an HTTP server's handler:
//
//	GET  /whoami             a Whoami as JSON
//	GET  /bytes/N            N pattern bytes, SumHeader as a header; ?chunked=1: as a trailer
//	POST /echo               the body while it comes, SumHeader as a trailer
//	POST /sum                a Received as JSON
//	GET  /slow               ?first=DURATION&every=DURATION&count=N: N lines, one at a time
//	GET  /cut/N              promises N bytes, sends half of them and resets the connection
//	GET  /status/CODE        an empty response with that status
func Origin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /whoami", func(w http.ResponseWriter, r *http.Request) {
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		who := Whoami{Peer: r.RemoteAddr, Method: r.Method, Host: r.Host, Path: r.URL.RequestURI()}
		if local != nil {
			who.Local = local.String()
		}
		writeJSON(w, who)
	})
	mux.HandleFunc("GET /bytes/{n}", serveBytes)
	mux.HandleFunc("POST /echo", serveEcho)
	mux.HandleFunc("POST /sum", func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n, err := io.Copy(h, r.Body)
		if err != nil {
			return // the client is gone
		}
		writeJSON(w, Received{Bytes: n, SHA256: hex.EncodeToString(h.Sum(nil))})
	})
	mux.HandleFunc("GET /slow", serveSlow)
	mux.HandleFunc("GET /cut/{n}", serveCut)
	mux.HandleFunc("GET /status/{code}", func(w http.ResponseWriter, r *http.Request) {
		code, err := strconv.Atoi(r.PathValue("code"))
		if err != nil || code < 200 || code > 599 {
			badRequest(w, "status %q: want 200 to 599", r.PathValue("code"))
			return
		}
		w.WriteHeader(code)
	})
	return mux
}

func serveBytes(w http.ResponseWriter, r *http.Request) {
	n, ok := size(w, r)
	if !ok {
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if r.FormValue("chunked") == "" {
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		w.Header().Set(SumHeader, Sum(Seed, n))
		io.CopyN(w, NewPattern(Seed), n) // an error means that the client is gone
		return
	}
	w.Header().Set("Trailer", SumHeader)
	w.WriteHeader(http.StatusOK)
	http.NewResponseController(w).Flush() // chunked even if the body is short
	if _, err := io.CopyN(w, NewPattern(Seed), n); err == nil {
		w.Header().Set(SumHeader, Sum(Seed, n))
	}
}

func serveEcho(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	if err := rc.EnableFullDuplex(); err != nil { // HTTP/1 would read all of a body first
		badRequest(w, "echo needs HTTP/1: %v", err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Trailer", SumHeader)
	w.WriteHeader(http.StatusOK)
	rc.Flush() // an error shows at the next write
	h := sha256.New()
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Body.Read(buf)
		h.Write(buf[:n])
		if _, werr := w.Write(buf[:n]); werr != nil {
			return // the client is gone
		}
		rc.Flush()
		if err == io.EOF {
			w.Header().Set(SumHeader, hex.EncodeToString(h.Sum(nil)))
			return
		}
		if err != nil {
			return
		}
	}
}

func serveSlow(w http.ResponseWriter, r *http.Request) {
	first, every, count := 100*time.Millisecond, 100*time.Millisecond, 1
	for name, d := range map[string]*time.Duration{"first": &first, "every": &every} {
		if v := r.FormValue(name); v != "" {
			var err error
			if *d, err = time.ParseDuration(v); err != nil || *d < 0 {
				badRequest(w, "%s=%q: want a duration such as 100ms", name, v)
				return
			}
		}
	}
	if v := r.FormValue("count"); v != "" {
		var err error
		if count, err = strconv.Atoi(v); err != nil || count < 1 || count > 1000 {
			badRequest(w, "count=%q: want 1 to 1000", v)
			return
		}
	}
	if first > maxDelay || every > maxDelay/time.Duration(count) {
		badRequest(w, "%v and %d times %v: want less than %v", first, count, every, maxDelay)
		return
	}
	for i := range count {
		wait := every
		if i == 0 {
			wait = first
		}
		select {
		case <-time.After(wait):
		case <-r.Context().Done():
			return
		}
		fmt.Fprintf(w, "line %d of %d\n", i+1, count)
		http.NewResponseController(w).Flush()
	}
}

func serveCut(w http.ResponseWriter, r *http.Request) {
	n, ok := size(w, r)
	if !ok {
		return
	}
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		badRequest(w, "cut needs HTTP/1: %v", err)
		return
	}
	defer conn.Close()
	fmt.Fprintf(buf, "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n", n)
	io.CopyN(buf, NewPattern(Seed), n/2)
	buf.Flush()
	reset(conn)
}

// size returns the request's {n}, or answers that it is none.
func size(w http.ResponseWriter, r *http.Request) (int64, bool) {
	n, err := strconv.ParseInt(r.PathValue("n"), 10, 64)
	if err != nil || n < 0 || n > MaxBytes {
		badRequest(w, "size %q: want 0 to %d", r.PathValue("n"), int64(MaxBytes))
		return 0, false
	}
	return n, true
}

func badRequest(w http.ResponseWriter, format string, args ...any) {
	http.Error(w, fmt.Sprintf(format, args...), http.StatusBadRequest)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v) // an error means that the client is gone
}

// ServeHTTP serves Origin on ln until ctx ends; then it closes ln and all
// connections and returns nil.
func ServeHTTP(ctx context.Context, ln net.Listener) error {
	s := &http.Server{
		Handler:           Origin(),
		ReadHeaderTimeout: idleLimit,
		IdleTimeout:       idleLimit,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve http on %s: %w", ln.Addr(), err)
	}
	return nil
}
