package tlshello

import (
	"bytes"
	"iter"
)

// Extensions that are read (IANA, TLS ExtensionType Values).
const (
	extServerName        = 0x0000
	extGroups            = 0x000a
	extPointFormats      = 0x000b
	extSignatureAlgs     = 0x000d
	extALPN              = 0x0010
	extSupportedVersions = 0x002b
	extECH               = 0xfe0d
	extESNI              = 0xffce // draft-ietf-tls-esni-02, what came before ECH
)

// ClientHello is a ClientHello (RFC 8446 4.1.2). Its slices refer to the
// message. It may be used for message after message.
type ClientHello struct {
	Version    uint16 // legacy_version
	MaxVersion uint16 // the highest that is offered, GREASE aside; 0: none

	// ServerName is the host name of the server_name extension as it was sent,
	// nil if there is none.
	ServerName []byte
	ECH, ESNI  bool // an encrypted hello, or an encrypted server name, or GREASE in the place of one

	sessionID    []byte
	ciphers      []byte // pairs
	extensions   []uint16
	groups       []byte // pairs
	pointFormats []byte
	signatures   []byte // pairs
	alpn         []byte // the list of names, each behind a byte with its length

	sorted []uint16 // scratch
	text   []byte   // scratch
}

// ALPN returns the names of the protocols, in the client's order.
func (h *ClientHello) ALPN() iter.Seq[[]byte] { return protocols(h.alpn) }

// ServerHello is a ServerHello (RFC 8446 4.1.3).
type ServerHello struct {
	Version  uint16 // legacy_version
	Selected uint16 // the version that is spoken from here on
	Cipher   uint16
	Retry    bool   // it is a HelloRetryRequest: another ClientHello follows
	ALPN     []byte // the protocol's name, nil if it is not said in clear

	extensions []uint16
}

// retryRandom makes a ServerHello a HelloRetryRequest (RFC 8446 4.1.3).
var retryRandom = []byte{
	0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
	0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
}

// cursor reads fields. After the first that is not there, everything is empty
// and bad is set.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if c.bad || n > len(c.b) {
		c.bad, c.b = true, nil
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) u8() int {
	if v := c.take(1); v != nil {
		return int(v[0])
	}
	return 0
}

func (c *cursor) u16() int {
	if v := c.take(2); v != nil {
		return int(v[0])<<8 | int(v[1])
	}
	return 0
}

func (c *cursor) vec8() []byte  { return c.take(c.u8()) }
func (c *cursor) vec16() []byte { return c.take(c.u16()) }

// end reports whether everything was there and nothing is left.
func (c *cursor) end() bool { return !c.bad && len(c.b) == 0 }

// ParseClientHello reads a message, as Reader.Message returns it, into h.
func ParseClientHello(msg []byte, h *ClientHello) Fault {
	*h = ClientHello{extensions: h.extensions[:0], sorted: h.sorted[:0], text: h.text[:0]}
	c := cursor{b: msg}
	h.Version = uint16(c.u16())
	c.take(32)
	h.sessionID = c.vec8()
	h.ciphers = c.vec16()
	compression := c.vec8()
	if c.bad || len(h.sessionID) > 32 || len(h.ciphers) < 2 || len(h.ciphers)%2 != 0 || len(compression) == 0 {
		return BadHello
	}
	if len(h.ciphers) > 2*MaxCiphers {
		return TooLarge
	}
	h.MaxVersion = h.Version
	if len(c.b) == 0 {
		return FaultNone // no extensions
	}
	list := cursor{b: c.vec16()}
	if !c.end() {
		return BadHello
	}
	for len(list.b) > 0 {
		typ := uint16(list.u16())
		body := list.vec16()
		if list.bad {
			return BadHello
		}
		var f Fault
		if h.extensions, f = addExtension(h.extensions, typ); f != FaultNone {
			return f
		}
		if !h.extension(typ, body) {
			return BadHello
		}
	}
	return FaultNone
}

// addExtension notes an extension: RFC 8446 4.2 allows each once.
func addExtension(list []uint16, typ uint16) ([]uint16, Fault) {
	if len(list) == MaxExtensions {
		return list, TooLarge
	}
	for _, other := range list {
		if other == typ {
			return list, BadHello
		}
	}
	return append(list, typ), FaultNone
}

// extension reads an extension of a client. It reports false if it is
// malformed.
func (h *ClientHello) extension(typ uint16, body []byte) bool {
	c := cursor{b: body}
	switch typ {
	case extServerName:
		// RFC 6066 3: one name of each type, and no other type was ever defined.
		names := cursor{b: c.vec16()}
		kind := names.u8()
		h.ServerName = names.vec16()
		return c.end() && names.end() && kind == 0 && len(h.ServerName) > 0
	case extGroups:
		h.groups = c.vec16()
		return c.end() && len(h.groups)%2 == 0
	case extPointFormats:
		h.pointFormats = c.vec8()
		return c.end()
	case extSignatureAlgs:
		h.signatures = c.vec16()
		return c.end() && len(h.signatures)%2 == 0
	case extALPN:
		h.alpn = c.vec16()
		return c.end() && validProtocols(h.alpn)
	case extSupportedVersions:
		versions := cursor{b: c.vec8()}
		if !c.end() || len(versions.b) == 0 || len(versions.b)%2 != 0 {
			return false
		}
		h.MaxVersion = 0
		for len(versions.b) > 0 {
			if v := uint16(versions.u16()); !grease(v) {
				h.MaxVersion = max(h.MaxVersion, v)
			}
		}
	case extECH:
		h.ECH = true
	case extESNI:
		h.ESNI = true
	}
	return true
}

// validProtocols judges a list of ALPN: names that are not empty (RFC 7301 3.1).
func validProtocols(list []byte) bool {
	c := cursor{b: list}
	for len(c.b) > 0 {
		if len(c.vec8()) == 0 {
			return false
		}
	}
	return len(list) > 0
}

func protocols(list []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for c := (cursor{b: list}); len(c.b) > 0; {
			if !yield(c.vec8()) {
				return
			}
		}
	}
}

// ParseServerHello reads a message, as Reader.Message returns it, into h.
func ParseServerHello(msg []byte, h *ServerHello) Fault {
	*h = ServerHello{extensions: h.extensions[:0]}
	c := cursor{b: msg}
	h.Version = uint16(c.u16())
	h.Retry = bytes.Equal(c.take(32), retryRandom)
	session := c.vec8()
	h.Cipher = uint16(c.u16())
	c.u8() // compression method
	if c.bad || len(session) > 32 {
		return BadHello
	}
	h.Selected = h.Version
	if len(c.b) == 0 {
		return FaultNone
	}
	list := cursor{b: c.vec16()}
	if !c.end() {
		return BadHello
	}
	for len(list.b) > 0 {
		typ := uint16(list.u16())
		body := cursor{b: list.vec16()}
		if list.bad {
			return BadHello
		}
		var f Fault
		if h.extensions, f = addExtension(h.extensions, typ); f != FaultNone {
			return f
		}
		switch typ {
		case extSupportedVersions:
			h.Selected = uint16(body.u16())
			if !body.end() {
				return BadHello
			}
		case extALPN:
			names := cursor{b: body.vec16()}
			h.ALPN = names.vec8()
			if !body.end() || !names.end() || len(h.ALPN) == 0 {
				return BadHello
			}
		}
	}
	return FaultNone
}
