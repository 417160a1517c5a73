package wire_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"penstock/internal/wire"
)

// walk renders what the iterator shows.
func walk(opts []byte) string {
	var b strings.Builder
	it := wire.IterTCPOptions(opts)
	for it.Next() {
		fmt.Fprintf(&b, "%d@%d", it.Kind, it.Offset)
		if mss, ok := it.MSS(); ok {
			fmt.Fprintf(&b, "=mss%d", mss)
		}
		if shift, ok := it.WindowScale(); ok {
			fmt.Fprintf(&b, "=ws%d", shift)
		}
		if v, e, ok := it.Timestamps(); ok {
			fmt.Fprintf(&b, "=ts%d,%d", v, e)
		}
		for i := range it.SACKBlocks() {
			l, r := it.SACKBlock(i)
			fmt.Fprintf(&b, "=%d:%d", l, r)
		}
		b.WriteByte(' ')
	}
	if it.Malformed {
		b.WriteString("malformed")
	}
	if it.Next() {
		b.WriteString(" and Next again")
	}
	return strings.TrimSpace(b.String())
}

func TestTCPOptions(t *testing.T) {
	for _, r := range []struct {
		name string
		opts []byte
		want string
	}{
		{"none", nil, ""},
		{"linux syn", []byte{2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 1, 0, 0, 0, 0, 0, 1, 3, 3, 7}, "2@0=mss1460 4@4 8@6=ts256,0 3@17=ws7"},
		{"linux ack", []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}, "8@2=ts1,2"},
		{"sack", []byte{1, 1, 5, 18, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4}, "5@2=1:2=3:4"},
		{"window scale over 14", []byte{3, 3, 255, 0}, "3@0=ws14"},
		{"end hides the rest", []byte{0, 2, 4, 5}, ""},
		{"nops only", []byte{1, 1, 1, 1}, ""},
		{"unknown", []byte{254, 4, 9, 9}, "254@0"},
		{"length 0", []byte{2, 0, 5, 0xb4}, "malformed"},
		{"length 1", []byte{2, 1, 5, 0xb4}, "malformed"},
		{"length over the end", []byte{4, 2, 2, 4}, "4@0 malformed"},
		{"length 255", []byte{8, 255, 0, 0}, "malformed"},
		{"no length", []byte{1, 1, 1, 2}, "malformed"},
		{"kind 2 without a value", []byte{2, 2, 1, 1}, "2@0"},
		{"mss of 3 bytes", []byte{2, 5, 1, 2, 3, 0, 0, 0}, "2@0"},
		{"window scale of 2 bytes", []byte{3, 4, 1, 2}, "3@0"},
		{"timestamps of 4 bytes", []byte{8, 6, 1, 2, 3, 4, 0, 0}, "8@0"},
		{"sack of 7 bytes", []byte{5, 9, 1, 2, 3, 4, 5, 6, 7, 1, 1, 1}, "5@0"},
		{"sack of one block and a half", []byte{5, 14, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0}, "5@0"},
		{"sack of no block", []byte{5, 2, 0, 0}, "5@0"},
	} {
		if got := walk(r.opts); got != r.want {
			t.Errorf("%s: %q, want %q", r.name, got, r.want)
		}
	}
}

// FuzzTCPOptions: every option lies inside the bytes and behind the one before; what the walk shows covers the bytes
// up to the first NOP, end mark or malformed length.
func FuzzTCPOptions(f *testing.F) {
	f.Add([]byte{2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 1, 0, 0, 0, 0, 0, 1, 3, 3, 7})
	f.Add([]byte{1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2})
	f.Add([]byte{2, 0})
	f.Add([]byte{8, 255, 1})
	f.Fuzz(func(t *testing.T, opts []byte) {
		before := bytes.Clone(opts)
		it := wire.IterTCPOptions(opts[:len(opts):len(opts)])
		end := 0
		for it.Next() {
			if it.Kind == wire.OptEnd || it.Kind == wire.OptNop || it.Offset < end || it.Offset+2+len(it.Value) > len(opts) {
				t.Fatalf("kind %d at %d with %d bytes, the one before ends at %d, all at %d", it.Kind, it.Offset, len(it.Value), end, len(opts))
			}
			for _, b := range opts[end:it.Offset] {
				if b != wire.OptNop {
					t.Fatalf("skipped %d before %d", b, it.Offset)
				}
			}
			if opts[it.Offset] != it.Kind || int(opts[it.Offset+1]) != 2+len(it.Value) || !bytes.Equal(it.Value, opts[it.Offset+2:it.Offset+2+len(it.Value)]) {
				t.Fatalf("option at %d is not what the bytes say", it.Offset)
			}
			end = it.Offset + 2 + len(it.Value)
			for i := range it.SACKBlocks() {
				it.SACKBlock(i)
			}
		}
		rest := bytes.TrimLeft(opts[end:], "\x01")
		switch {
		case len(rest) == 0 || rest[0] == wire.OptEnd:
			if it.Malformed {
				t.Fatalf("malformed, but the rest is % x", rest)
			}
		default:
			if !it.Malformed || len(rest) >= 2 && int(rest[1]) >= 2 && int(rest[1]) <= len(rest) {
				t.Fatalf("stopped before % x, malformed = %v", rest, it.Malformed)
			}
		}
		if it.Next() || !bytes.Equal(before, opts) {
			t.Fatal("Next after the end, or the bytes changed")
		}
	})
}
