package match

import (
	"fmt"
	"strconv"
	"strings"

	"penstock/internal/wire"
)

// Proto is a protocol above IP: in TOML "tcp", "udp", "icmp", "icmpv6", "any" or a number from 0 to 255. The zero value
// is "any". For IPv6 it is the protocol behind the extension headers.
type Proto struct {
	Number uint8
	Set    bool // false: any
}

var protoNumbers = map[string]uint8{
	"tcp": wire.ProtoTCP, "udp": wire.ProtoUDP, "icmp": wire.ProtoICMP, "icmpv6": wire.ProtoICMPv6,
}

// UnmarshalTOML implements toml.Unmarshaler.
func (p *Proto) UnmarshalTOML(v any) error {
	switch v := v.(type) {
	case int64:
		if v >= 0 && v <= 255 {
			*p = Proto{Number: uint8(v), Set: true}
			return nil
		}
	case string:
		if n, ok := protoNumbers[v]; ok {
			*p = Proto{Number: n, Set: true}
			return nil
		}
		if v == "any" {
			*p = Proto{}
			return nil
		}
		return fmt.Errorf(`want "tcp", "udp", "icmp", "icmpv6", "any" or a number from 0 to 255, got %q`, v)
	}
	return fmt.Errorf(`want "tcp", "udp", "icmp", "icmpv6", "any" or a number from 0 to 255, got %v`, v)
}

// String writes the protocol as it is read.
func (p Proto) String() string {
	if !p.Set {
		return "any"
	}
	for name, n := range protoNumbers {
		if n == p.Number {
			return name
		}
	}
	return strconv.Itoa(int(p.Number))
}

// is reports whether p is any or the protocol n.
func (p Proto) is(n uint8) bool { return !p.Set || p.Number == n }

// Flags is a condition on the flags of a TCP header: in TOML a list in a string, "syn,!ack" for SYN set and ACK clear.
// Flags that are not named may have either value. "none" means that no flag at all is set.
type Flags struct {
	Set, Clear wire.TCPFlags
}

var flagNames = [...]string{"fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ae"} // from bit 0 on

const allFlags = wire.TCPFlags(1<<len(flagNames) - 1)

// UnmarshalText implements encoding.TextUnmarshaler.
func (f *Flags) UnmarshalText(b []byte) error {
	var v Flags
	if text := strings.TrimSpace(string(b)); text == "none" {
		*f = Flags{Clear: allFlags}
		return nil
	}
	for word := range strings.SplitSeq(string(b), ",") {
		name, negated := strings.CutPrefix(strings.TrimSpace(word), "!")
		bit := wire.TCPFlags(0)
		for i, n := range flagNames {
			if n == name {
				bit = 1 << i
			}
		}
		switch {
		case bit == 0:
			return fmt.Errorf(`want TCP flags such as "syn,!ack" out of %s, or "none", got %q`, strings.Join(flagNames[:], ", "), b)
		case negated:
			v.Clear |= bit
		default:
			v.Set |= bit
		}
	}
	if v.Set&v.Clear != 0 {
		return fmt.Errorf("a flag cannot be both set and clear, got %q", b)
	}
	*f = v
	return nil
}

// String writes the condition as it is read.
func (f Flags) String() string {
	if f.Set == 0 && f.Clear == allFlags {
		return "none"
	}
	var words []string
	for i, n := range flagNames {
		switch bit := wire.TCPFlags(1) << i; {
		case f.Set&bit != 0:
			words = append(words, n)
		case f.Clear&bit != 0:
			words = append(words, "!"+n)
		}
	}
	return strings.Join(words, ",")
}

// MarshalText implements encoding.TextMarshaler.
func (f Flags) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// any reports whether f asks for nothing.
func (f Flags) any() bool { return f.Set|f.Clear == 0 }

// met reports whether a header's flags are as f wants them.
func (f Flags) met(have wire.TCPFlags) bool { return have&(f.Set|f.Clear) == f.Set }

// VLANRange is a range of VLAN ids, both ends included: in TOML an integer (10) or a string ("100-199"). 0 is a packet
// without a tag, or with a priority tag only.
type VLANRange struct{ First, Last uint16 }

// maxVLAN is the highest id that IEEE 802.1Q lets a tag have.
const maxVLAN = 4094

// UnmarshalTOML implements toml.Unmarshaler.
func (r *VLANRange) UnmarshalTOML(v any) error {
	switch v := v.(type) {
	case int64:
		if v >= 0 && v <= maxVLAN {
			*r = VLANRange{uint16(v), uint16(v)}
			return nil
		}
	case string:
		first, last, isRange := strings.Cut(v, "-")
		if !isRange {
			last = first
		}
		a, err1 := strconv.ParseUint(strings.TrimSpace(first), 10, 16)
		b, err2 := strconv.ParseUint(strings.TrimSpace(last), 10, 16)
		if err1 == nil && err2 == nil && a <= maxVLAN && b <= maxVLAN {
			if a > b {
				return fmt.Errorf("VLAN range %q is empty: its first id is above its last", v)
			}
			*r = VLANRange{uint16(a), uint16(b)}
			return nil
		}
		return fmt.Errorf(`want a VLAN id from 0 to %d or a range such as "100-199", got %q`, maxVLAN, v)
	}
	return fmt.Errorf(`want a VLAN id from 0 to %d or a range such as "100-199", got %v`, maxVLAN, v)
}

// String writes the range as it is read.
func (r VLANRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}
