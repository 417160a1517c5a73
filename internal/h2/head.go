package h2

import "strings"

// judge sorts the fields of a block into a head and applies RFC 9113 8: what is
// forbidden there is what another reader might understand differently.
func (r *Reader) judge(h *Head) Fault {
	fields := h.Fields
	authority, pseudo, status := "", 0, false
	for len(fields) > 0 && strings.HasPrefix(fields[0].Name, ":") {
		f := fields[0]
		var to *string
		switch f.Name {
		case ":method":
			to = &h.Method
		case ":scheme":
			to = &h.Scheme
		case ":path":
			to = &h.Path
		case ":authority":
			to = &authority
		case ":status":
			to, status = &h.Status, true
		default:
			return BadHead
		}
		// Twice, or a value that nobody may send.
		if *to != "" || f.Value == "" || !validValue(f.Value) || strings.ContainsRune(f.Value, ' ') {
			return BadHead
		}
		*to = f.Value
		pseudo++
		fields = fields[1:]
	}
	h.Fields = fields
	host, hosts := "", 0
	for _, f := range fields {
		if !validName(f.Name) || !validValue(f.Value) {
			return BadHead
		}
		switch f.Name {
		case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade":
			return BadHead // RFC 9113 8.2.2
		case "te":
			if f.Value != "trailers" {
				return BadHead
			}
		case "host":
			host = f.Value
			hosts++
		}
	}
	// RFC 9113 8.3.1: Host must not differ from :authority.
	if hosts > 1 || authority != "" && hosts == 1 && !strings.EqualFold(host, authority) {
		return BadHead
	}
	if h.Host = authority; authority == "" {
		h.Host = host
	}
	switch {
	case r.dir == FromServer && h.Promised == 0:
		return r.judgeResponse(h, pseudo)
	case status:
		return BadHead
	}
	return r.judgeRequest(h, pseudo, authority)
}

func (r *Reader) judgeRequest(h *Head, pseudo int, authority string) Fault {
	if h.Promised == 0 {
		// RFC 9113 5.1.1: a client opens odd streams in ascending order.
		if h.Stream%2 == 0 {
			return BadFrame
		}
		if h.Stream <= r.last { // it is open already: trailers
			h.Trailers = true
			if pseudo > 0 || !h.EndStream {
				return BadHead
			}
			return FaultNone
		}
		r.last = h.Stream
	}
	if h.Method == "CONNECT" {
		// RFC 9113 8.5; extended CONNECT (RFC 8441) has :protocol and fails above.
		if h.Scheme != "" || h.Path != "" || authority == "" {
			return BadHead
		}
		return FaultNone
	}
	if h.Method == "" || h.Scheme == "" || h.Path == "" || h.Path[0] != '/' && (h.Path != "*" || h.Method != "OPTIONS") || !token(h.Method) {
		return BadHead
	}
	return FaultNone
}

func (r *Reader) judgeResponse(h *Head, pseudo int) Fault {
	if pseudo == 0 {
		h.Trailers = true
		if !h.EndStream {
			return BadHead
		}
		return FaultNone
	}
	s := h.Status
	if pseudo > 1 || len(s) != 3 || s[0] < '1' || s[0] > '9' || s[1] < '0' || s[1] > '9' || s[2] < '0' || s[2] > '9' || s == "101" {
		return BadHead // RFC 9113 8.6: no 101
	}
	return FaultNone
}

// validName reports whether name is a token without capitals (RFC 9113 8.2.1).
func validName(name string) bool {
	return token(name) && strings.ToLower(name) == name
}

func token(s string) bool {
	for i := range len(s) {
		if !tokenChar[s[i]] {
			return false
		}
	}
	return s != ""
}

// tokenChar are the characters of a token (RFC 9110 5.6.2).
var tokenChar = func() (t [256]bool) {
	for c := range 256 {
		t[c] = c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c < 128 && strings.IndexByte("!#$%&'*+-.^_`|~", byte(c)) >= 0
	}
	t[0] = false
	return t
}()

// validValue reports whether v may be the value of a field (RFC 9113 8.2.1).
func validValue(v string) bool {
	for i := range len(v) {
		if c := v[i]; c == 0 || c == '\r' || c == '\n' {
			return false
		}
	}
	return v == "" || !blank(v[0]) && !blank(v[len(v)-1])
}

func blank(c byte) bool { return c == ' ' || c == '\t' }
