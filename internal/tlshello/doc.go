// Package tlshello reads how a TLS connection begins: the ClientHello and the
// ServerHello, in whatever records and pieces they come, and the fingerprints
// JA3, JA3S and JA4 of them.
//
// A [Reader] puts the messages of one direction together, [ParseClientHello]
// and [ParseServerHello] read them. All of it is bounded, takes any bytes, and
// does not allocate once its buffers have grown.
//
// Its one trap: a parsed hello refers to the message that it was parsed from.
// Both are valid until the Reader's next call.
package tlshello

// Fault says why bytes are not the beginning of a TLS connection that can be
// read. The zero value is no fault.
type Fault uint8

// The faults.
const (
	FaultNone      Fault = iota
	NotTLS               // the first bytes are no TLS record
	SSLv2                // an SSLv2-compatible ClientHello (RFC 5246 E.2, forbidden by RFC 8446 D.5)
	BadRecord            // a record that TLS forbids: its length, its version, its type in this place
	TooManyRecords       // more records than the limit
	TooLarge             // a message that is larger than the limit, or has more elements than MaxCiphers or MaxExtensions
	BadMessage           // another handshake message than the one that is due
	BadHello             // a hello that is malformed, or that two readers may understand differently
)

var faultNames = [...]string{"none", "not_tls", "sslv2", "bad_record", "too_many_records", "too_large", "bad_message", "bad_hello"}

// String returns a short name in lower_snake.
func (f Fault) String() string {
	if int(f) < len(faultNames) {
		return faultNames[f]
	}
	return "unknown"
}

// Versions of the protocol, as they stand on the wire.
const (
	VersionSSL30 = 0x0300
	VersionTLS10 = 0x0301
	VersionTLS11 = 0x0302
	VersionTLS12 = 0x0303
	VersionTLS13 = 0x0304
)

// Bounds on the elements of a hello. The registry of IANA has some 350 cipher
// suites and 60 extensions.
const (
	MaxCiphers    = 1024
	MaxExtensions = 256
)

// grease reports whether v is reserved for nonsense (RFC 8701).
func grease(v uint16) bool { return v&0x0f0f == 0x0a0a && v>>8 == v&0xff }
