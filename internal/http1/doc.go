// Package http1 reads HTTP/1.x messages (RFC 9112): heads, and where bodies end.
// It keeps nothing and allocates only the strings of a head, and with Strings not
// those that come again and again.
//
// Its one trap: whatever two parsers may read differently is a fault here, in
// requests more than in responses. A caller that lets such a request pass cannot
// tell where the next one begins.
package http1

// Fault says why a head is refused. The zero value is no fault.
type Fault uint8

// The faults.
const (
	FaultNone    Fault = iota
	BadStartLine       // a request line that no two parsers need agree on
	BadLine            // a line that ends with, or holds, a bare CR or LF
	BadField           // a field that is folded, has a space before its colon, or forbidden characters
	BadHost            // no Host, several, or one that is no name and no address
	BothLengths        // Content-Length and Transfer-Encoding
	ManyLengths        // several Content-Length, or several values in one
	BadLength          // a Content-Length that is not a number of at most 18 digits
	BadCoding          // a Transfer-Encoding other than chunked, repeated, or in HTTP/1.0
	UpgradeH2C         // an upgrade to cleartext HTTP/2, where Rules forbid it
	ManyFields         // more fields than Rules allow
	BadStatus          // a status line that is none
)

var faultNames = [...]string{"none", "bad_start_line", "bad_line_end", "bad_field", "bad_host", "length_and_chunked", "repeated_length",
	"bad_length", "bad_transfer_encoding", "h2c_upgrade", "too_many_fields", "bad_status_line"}

// String returns a short name in lower_snake.
func (f Fault) String() string {
	if int(f) < len(faultNames) {
		return faultNames[f]
	}
	return "unknown"
}

// Rules are what a caller adds to the protocol's.
type Rules struct {
	MaxFields int  // of a head; 0: any number
	RefuseH2C bool // an upgrade to cleartext HTTP/2 is a fault
	// Field, if set, is shown each field; its arguments are valid during the call.
	Field func(name, value []byte)
	// Strings, if set, is where the strings of heads come from.
	Strings *Strings
}

// strings returns r's, which may be nil.
func (r *Rules) strings() *Strings {
	if r == nil {
		return nil
	}
	return r.Strings
}
