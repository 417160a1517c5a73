package control

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// Audit is one request for a change, and what became of it: an "audit" event.
type Audit struct {
	Caller
	Action  string  `json:"action"`          // "reload", "drain", "handover", "evict", "deny_add", ...
	What    string  `json:"what,omitempty"`  // of the request, in short
	Result  string  `json:"result"`          // "done", "refused" or "failed"
	Error   string  `json:"error,omitempty"` // why it was not done
	Seconds float64 `json:"seconds"`
}

// Caller is who asked.
type Caller struct {
	Via string `json:"via"` // "unix", "tls" or "signal"
	// UID, GID and PID are those of the process that connected, as the kernel
	// vouches for them (SO_PEERCRED).
	UID *uint32 `json:"uid,omitempty"`
	GID *uint32 `json:"gid,omitempty"`
	PID int32   `json:"pid,omitempty"` // 0: of another PID namespace
	// Subject and Serial are of the client's certificate.
	Subject string `json:"subject,omitempty"`
	Serial  string `json:"serial,omitempty"`
	From    string `json:"from,omitempty"`   // "addr:port"
	Signal  string `json:"signal,omitempty"` // that had the same effect as a request
}

// Signal is who sends a signal: the kernel does not say more to a Go program.
func Signal(name string) Caller { return Caller{Via: "signal", Signal: name} }

// String names the caller in a line of a log.
func (c Caller) String() string {
	switch c.Via {
	case "unix":
		if c.UID == nil {
			return "a local process"
		}
		return fmt.Sprintf("uid %d, pid %d", *c.UID, c.PID)
	case "tls":
		return fmt.Sprintf("%q from %s", c.Subject, c.From)
	}
	return c.Signal
}

// peerKey is the key of a unix connection's credentials in its context.
type peerKey struct{}

// withPeer keeps who connected, at the moment of the connection.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil || err != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, cred)
}

func callerOf(r *http.Request) Caller {
	if r.TLS != nil {
		return tlsCaller(r.TLS, r.RemoteAddr)
	}
	c := Caller{Via: "unix"}
	if cred, ok := r.Context().Value(peerKey{}).(*unix.Ucred); ok {
		c.UID, c.GID, c.PID = &cred.Uid, &cred.Gid, cred.Pid
	}
	return c
}

func tlsCaller(s *tls.ConnectionState, from string) Caller {
	c := Caller{Via: "tls", From: from}
	if len(s.PeerCertificates) > 0 {
		c.Subject, c.Serial = s.PeerCertificates[0].Subject.String(), s.PeerCertificates[0].SerialNumber.String()
	}
	return c
}

// changes reports whether a request is one for a change.
func changes(request any) bool {
	r, ok := request.(ReloadAsk)
	return !ok || !r.DryRun
}

// mostNamed is how many things of a request are named in its audit, maxText how
// long a foreign text may be there, in bytes.
const (
	mostNamed = 8
	maxText   = 512
)

// what is a request in short.
func what(request any) string {
	switch r := request.(type) {
	case DenyAdd:
		text := named(r.Prefixes, netip.Prefix.String)
		if r.ForSeconds > 0 {
			text += fmt.Sprintf(", for %g s", r.ForSeconds)
		}
		if r.Why != "" {
			text += ": " + r.Why[:min(len(r.Why), maxText)]
		}
		return text
	case DenyDel:
		return named(r.Prefixes, netip.Prefix.String)
	case []Flow:
		return named(r, func(f Flow) string {
			text := f.Proto + " " + f.Client + " to " + f.Server
			return text[:min(len(text), maxText)]
		})
	case CaptureAsk:
		return fmt.Sprintf("at %q, filter %q", r.At[:min(len(r.At), maxText)], r.Filter[:min(len(r.Filter), maxText)])
	case captureStop:
		return fmt.Sprintf("capture %d", r.ID)
	case DrainAsk:
		text := "all chains"
		if r.Chain != "" {
			text = "chain " + r.Chain[:min(len(r.Chain), maxText)]
		}
		if r.Undo {
			text += ", undone"
		}
		return text
	}
	return ""
}

func named[T any](list []T, name func(T) string) string {
	words := make([]string, 0, mostNamed+1)
	for _, v := range list[:min(len(list), mostNamed)] {
		words = append(words, name(v))
	}
	if n := len(list) - mostNamed; n > 0 {
		words = append(words, fmt.Sprintf("and %d more", n))
	}
	return strings.Join(words, ", ")
}

// outcome says what became of a request.
func outcome(answer any, err error) (result, why string) {
	if err != nil {
		if p := problemOf(err); p.Status < http.StatusInternalServerError {
			return "refused", p.Error()
		}
		return "failed", err.Error()
	}
	if r, ok := answer.(Reload); ok {
		switch {
		case len(r.Problems) > 0:
			return "refused", named(r.Problems, func(s string) string { return s })
		case r.Refused != "":
			return "refused", r.Refused
		}
	}
	return "done", ""
}

// AuditOfReload is a reload that nobody asked for over the control API.
func AuditOfReload(c Caller, r Reload, err error) Audit {
	a := Audit{Caller: c, Action: "reload", Seconds: r.Seconds}
	a.Result, a.Error = outcome(r, err)
	return a
}
