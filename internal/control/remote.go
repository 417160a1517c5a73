package control

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// Remote is where and how the API is served over TCP. All of its fields are set.
type Remote struct {
	Listen   string // "addr:port"
	Cert     string // files in PEM
	Key      string
	ClientCA string // who has issued the certificates of those who may ask
}

// ServeTLS serves the API over TCP too: TLS 1.3, and only to clients with a
// certificate of the authority. The files are read again when they have changed,
// so that certificates can be renewed while it runs.
func (s *Server) ServeTLS(r Remote, log *slog.Logger) (err error) {
	files := &identity{remote: r, log: log}
	if files.config, err = r.load(); err != nil {
		return err
	}
	files.stamp = r.stamp()
	l, err := net.Listen("tcp", r.Listen)
	if err != nil {
		return fmt.Errorf("listen for the control API: %w; set listen in [appliance.api] to another address, or to \"\" to turn it off", err)
	}
	s.remote = l
	// A browser that has the certificate must not be led here by another site.
	guard := http.NewCrossOriginProtection()
	guard.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		reply(w, nil, problemf(http.StatusForbidden, "cross_origin", "ask from a program, or from a page of this address",
			"%s %s: a page of another site may not change anything", req.Method, req.URL.Path))
	}))
	srv := s.server(guard.Handler(apiHandler(s.src)))
	srv.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: files.current}
	srv.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelWarn) // who is refused, and why
	go func() { _ = srv.ServeTLS(l, "", "") }()                     // ends with Close
	return nil
}

// RemoteAddr is where the API is served over TCP, or nil.
func (s *Server) RemoteAddr() net.Addr {
	if s.remote == nil {
		return nil
	}
	return s.remote.Addr()
}

// identity is the certificates as the files have them.
type identity struct {
	remote Remote
	log    *slog.Logger

	mu     sync.Mutex
	config *tls.Config
	stamp  [3]fileStamp
}

type fileStamp struct {
	size int64
	at   time.Time
}

// current returns the configuration of a handshake. Files that cannot be read
// leave what there was.
func (i *identity) current(*tls.ClientHelloInfo) (*tls.Config, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if now := i.remote.stamp(); now != i.stamp {
		i.stamp = now
		if c, err := i.remote.load(); err != nil {
			i.log.Warn("certificates of the control API are not renewed", "err", err)
		} else {
			i.config = c
			i.log.Info("certificates of the control API are renewed")
		}
	}
	return i.config, nil
}

func (r *Remote) stamp() (s [3]fileStamp) {
	for n, name := range []string{r.Cert, r.Key, r.ClientCA} {
		if fi, err := os.Stat(name); err == nil {
			s[n] = fileStamp{fi.Size(), fi.ModTime()}
		}
	}
	return s
}

func (r *Remote) load() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(r.Cert, r.Key)
	if err != nil {
		return nil, fmt.Errorf("read certificate of the control API: %w; cert and key in [appliance.api] are files in PEM that belong together", err)
	}
	authority, err := os.ReadFile(r.ClientCA)
	pool := x509.NewCertPool()
	if err == nil && !pool.AppendCertsFromPEM(authority) {
		err = errors.New("want certificates in PEM, found none")
	}
	if err != nil {
		return nil, fmt.Errorf("read client_ca %s: %w; client_ca in [appliance.api] is the file of the authority that issues the clients' certificates", r.ClientCA, err)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2", "http/1.1"},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
	}, nil
}
