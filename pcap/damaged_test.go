package pcap_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"runtime"
	"strings"
	"testing"

	"penstock/pcap"
)

// file builds capture files by hand, right ones and wrong ones.
type file struct {
	order binary.AppendByteOrder
	b     []byte
}

func little() *file { return &file{order: binary.LittleEndian} }

func (f *file) u16(v ...uint16) *file {
	for _, v := range v {
		f.b = f.order.AppendUint16(f.b, v)
	}
	return f
}

func (f *file) u32(v ...uint32) *file {
	for _, v := range v {
		f.b = f.order.AppendUint32(f.b, v)
	}
	return f
}

func (f *file) raw(b ...byte) *file { f.b = append(f.b, b...); return f }

// pcap appends a classic header for Ethernet.
func (f *file) pcap() *file { return f.u32(0xa1b2c3d4).u16(2, 4).u32(0, 0, 65535, 1) }

// record appends a classic record with its data.
func (f *file) record(data string) *file {
	return f.u32(1, 2, uint32(len(data)), uint32(len(data))).raw([]byte(data)...)
}

// block appends a pcapng block; the body is padded.
func (f *file) block(kind uint32, body *file) *file {
	for len(body.b)%4 != 0 {
		body.b = append(body.b, 0)
	}
	n := uint32(len(body.b) + 12)
	return f.u32(kind, n).raw(body.b...).u32(n)
}

func (f *file) body() *file { return &file{order: f.order} }

func (f *file) section() *file {
	return f.block(0x0a0d0d0a, f.body().u32(0x1a2b3c4d).u16(1, 0).u32(math.MaxUint32, math.MaxUint32))
}

// iface appends an Ethernet interface with raw options.
func (f *file) iface(options ...byte) *file {
	return f.block(1, f.body().u16(1, 0).u32(0).raw(options...))
}

func (f *file) packet(iface uint32, ts uint64, data string) *file {
	n := uint32(len(data))
	return f.block(6, f.body().u32(iface, uint32(ts>>32), uint32(ts), n, n).raw([]byte(data)...))
}

// TestDamaged says what is delivered of a broken capture, and which error
// follows.
func TestDamaged(t *testing.T) {
	rows := []struct {
		name    string
		file    *file
		packets int
		want    string // "" is a clean end
	}{
		{"empty", little(), 0, "read capture F: header: the file is empty"},
		{"three bytes", little().raw(0xd4, 0xc3, 0xb2), 0, "read capture F: header: cut short: 3 of 4 bytes: unexpected EOF"},
		{"not a capture", little().raw([]byte("GET / HTTP/1.1")...), 0, "read capture F: header: neither pcap nor pcapng: it begins with 47 45 54 20"},
		{"half a header", little().u32(0xa1b2c3d4).u16(2, 4), 0, "read capture F: header: cut short: 8 of 24 bytes: unexpected EOF"},
		{"version 3", little().u32(0xa1b2c3d4).u16(3, 0).u32(0, 0, 0, 1), 0, "read capture F: header: pcap version is 3.0, only 2.4 is known"},
		{"no packets", little().pcap(), 0, ""},
		{"cut record header", little().pcap().record("0123456789").u32(1, 2, 3), 1, "read capture F: packet 2 at byte 50: cut short: 12 of 16 bytes: unexpected EOF"},
		{"cut record", little().pcap().record("ab").u32(1, 2, 100, 100).raw(1, 2, 3), 1, "read capture F: packet 2 at byte 42: cut short: 19 of 116 bytes: unexpected EOF"},
		{"length 2^32-1", little().pcap().u32(1, 2, math.MaxUint32, math.MaxUint32), 0, "read capture F: packet 1 at byte 24: captured length is 4294967295, the limit is 262144"},
		{"original length below captured", little().pcap().u32(1, 2, 3, 1).raw(1, 2, 3), 1, ""},
		{"original length 2^32-1", little().pcap().u32(1, 2, 3, math.MaxUint32).raw(1, 2, 3), 1, ""},
		{"a packet without bytes", little().pcap().record("").record("x"), 2, ""},

		{"section only", little().section(), 0, ""},
		{"wrong byte order", little().block(0x0a0d0d0a, little().u32(0x01020304, 1, 0, 0)), 0, "read capture F: header: section header: byte-order magic is 04 03 02 01"},
		{"section too short", little().u32(0x0a0d0d0a, 24, 0x1a2b3c4d, 1, 0, 24), 0, "read capture F: header: block of type 168627466: length is 24, want a multiple of 4 and at least 28"},
		{"huge section header", little().u32(0x0a0d0d0a, 1<<30, 0x1a2b3c4d, 1, 0, 24), 0, "read capture F: header: block of type 168627466: length is 1073741824, the limit is 524288"},
		{"block length 0", little().section().iface().u32(6, 0, 0), 0, "read capture F: packet 1 at byte 48: block of type 6: length is 0, want a multiple of 4 and at least 12"},
		{"block length 13", little().section().iface().packet(0, 1, "ab").u32(99, 13, 0, 0), 1, "read capture F: packet 2 at byte 84: block of type 99: length is 13, want a multiple of 4 and at least 12"},
		{"trailer differs", little().section().u32(1, 20, 1, 0, 24), 0, "read capture F: packet 1 at byte 28: block of type 1: its length is 20 in front and 24 behind"},
		{"trailer of unknown block differs", little().section().iface().u32(99, 16, 1, 20), 0, "read capture F: packet 1 at byte 48: block of type 99: its length is 16 in front and 20 behind"},
		{"unknown block of 2 GiB", little().section().iface().u32(99, 1<<31, 1), 0, "read capture F: packet 1 at byte 48: block of type 99 and length 2147483648: cut short: unexpected EOF"},
		{"packet block of 2 GiB", little().section().iface().u32(6, 1<<31, 1), 0, "read capture F: packet 1 at byte 48: block of type 6: length is 2147483648, the limit is 524288"},
		{"no interface", little().section().packet(0, 1, "ab"), 0, "read capture F: packet 1 at byte 28: packet block: interface is 0, the section has 0"},
		{"interface 7", little().section().iface().packet(0, 1, "ab").packet(7, 1, "ab"), 1, "read capture F: packet 2 at byte 84: packet block: interface is 7, the section has 1"},
		{"interfaces end with their section", little().section().iface().section().packet(0, 1, "ab"), 0, "read capture F: packet 1 at byte 76: packet block: interface is 0, the section has 0"},
		{"captured length beyond the block", little().section().iface().block(6, little().u32(0, 0, 1, 9, 9, 0, 0)), 0, "read capture F: packet 1 at byte 48: packet block: captured length is 9, the block has room for 8"},
		{"captured length 2^32-1", little().section().iface().block(6, little().u32(0, 0, 1, math.MaxUint32, 9)), 0, "read capture F: packet 1 at byte 48: packet block: captured length is 4294967295, the limit is 262144"},
		{"packet block too short", little().section().iface().block(6, little().u32(0, 0, 1, 0)), 0, "read capture F: packet 1 at byte 48: packet block: 16 bytes, want 20"},
		{"interface block too short", little().section().block(1, little().u32(1)), 0, "read capture F: packet 1 at byte 28: interface description: 4 bytes, want 8"},
		{"option beyond the block", little().section().iface(9, 0, 200, 0), 0, "read capture F: packet 1 at byte 28: interface description: an option reaches beyond its block"},
		{"resolution of two bytes", little().section().iface(9, 0, 2, 0, 6, 6, 0, 0), 0, "read capture F: packet 1 at byte 28: interface description: option 9 has 2 bytes"},
		{"simple packet without interface", little().section().block(3, little().u32(2).raw(1, 2)), 0, "read capture F: packet 1 at byte 28: simple packet block: the section has no interface"},
		{"simple packet too long", little().section().iface().block(3, little().u32(9, 0)), 0, "read capture F: packet 1 at byte 48: simple packet block: captured length is 9, the block has room for 4"},
		{"simple packet of 4 GiB", little().section().iface().block(3, little().u32(math.MaxUint32, 0)), 0, "read capture F: packet 1 at byte 48: simple packet block: captured length is 4294967295, the limit is 262144"},
		{"garbage behind", little().section().iface().packet(0, 1, "ab").raw(1, 2, 3), 1, "read capture F: packet 2 at byte 84: cut short: 3 of 12 bytes: unexpected EOF"},
		{"only a section of the future", little().block(0x0a0d0d0a, little().u32(0x1a2b3c4d).u16(2, 0).u32(math.MaxUint32, math.MaxUint32)).packet(0, 1, "ab"), 0,
			"read capture F: packet 1 at byte 64: no section has a known version: found 2.0, known is 1.0"},
		{"a section of the future skipped by its length", little().block(0x0a0d0d0a, little().u32(0x1a2b3c4d).u16(2, 0).u32(5, 0)).raw(1, 2, 3, 4, 5).
			section().iface().packet(0, 1, "ab"), 1, ""},
		{"unknown blocks", little().section().block(0x0bad, little().u32(1)).iface().block(4, little().u32(0)).block(5, little().u32(0, 0, 0)).packet(0, 1, "ab").block(10, little().u32(1, 2)), 1, ""},
		{"sections of both byte orders", &file{order: binary.BigEndian, b: little().section().iface().packet(0, 1, "ab").b}, 1, ""},
	}
	last := &rows[len(rows)-1]
	last.file.section().iface().packet(0, 2, "cd")
	last.packets = 2
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			list, err := readAll("F", bytes.NewReader(r.file.b))
			if len(list) != r.packets {
				t.Errorf("%d packets, want %d", len(list), r.packets)
			}
			got := ""
			if err != io.EOF {
				got = err.Error()
				var re *pcap.ReadError
				if !errors.As(err, &re) {
					t.Errorf("%T is not a ReadError", err)
				}
			}
			if got != r.want {
				t.Errorf("\ngot  %s\nwant %s", got, r.want)
			}
			for _, rec := range list {
				if rec.Wire < len(rec.Data) {
					t.Errorf("%d bytes of %d", len(rec.Data), rec.Wire)
				}
			}
		})
	}
}

// endless is a stream that never ends.
type endless struct{ n int64 }

func (e *endless) Read(p []byte) (int, error) {
	clear(p)
	e.n += int64(len(p))
	return len(p), nil
}

// TestMemoryIsBounded feeds lengths that nobody should believe, followed by as
// many bytes as anyone reads.
func TestMemoryIsBounded(t *testing.T) {
	names := little().section().iface()
	for range 20000 { // name resolution blocks, which a reader might keep
		names.block(4, little().u16(1, 100).raw(make([]byte, 100)...).u16(0, 0))
	}
	rows := map[string]*file{
		"pcap record of 1 GiB":       little().pcap().u32(1, 2, 1<<30, 1<<30),
		"packet block of 1 GiB":      little().section().iface().u32(6, 1<<30+32, 0, 0, 0, 1<<30, 1<<30),
		"interface block of 1 GiB":   little().section().u32(1, 1<<30, 1, 0),
		"unknown block of 64 MiB":    little().section().iface().u32(99, 1<<26, 1, 0),
		"names without end":          names,
		"interfaces without end":     little().section(),
		"a section header of 16 MiB": little().u32(0x0a0d0d0a, 1<<24, 0x1a2b3c4d, 1),
	}
	for range 100_000 {
		rows["interfaces without end"].iface()
	}
	for name, f := range rows {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			_, err := readAll("F", io.MultiReader(bytes.NewReader(f.b), &endless{}))
			runtime.ReadMemStats(&after)
			if err == nil || err == io.EOF {
				t.Error("a stream of zeros ended well")
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
				t.Errorf("%d bytes were allocated (%v)", n, err)
			}
		})
	}
}

// TestTimes converts timestamps of clocks of every kind.
func TestTimes(t *testing.T) {
	const s = int64(1e9)
	const latest = int64(1) << 62
	offset := func(v int64) []byte {
		return append([]byte{14, 0, 8, 0}, binary.LittleEndian.AppendUint64(nil, uint64(v))...)
	}
	resolution := func(v byte) []byte { return []byte{9, 0, 1, 0, v, 0, 0, 0} }
	rows := []struct {
		name    string
		options []byte
		ts      uint64
		want    int64
	}{
		{"microseconds are the default", nil, 1_500_000, s + s/2},
		{"seconds", resolution(0), 100, 100 * s},
		{"milliseconds", resolution(3), 1001, s + s/1000},
		{"nanoseconds", resolution(9), 1_700_000_000_123_456_789, 1_700_000_000_123_456_789},
		{"picoseconds", resolution(12), 5_999_999_999_999, 5*s + 999_999_999},
		{"10^-19 s", resolution(19), 1<<64 - 1, 1_844_674_407},
		{"10^-28 s", resolution(28), 1<<64 - 1, 1},
		{"10^-29 s", resolution(29), 1<<64 - 1, 0},
		{"10^-127 s", resolution(127), 1<<64 - 1, 0},
		{"2^-0 s", resolution(0x80), 7, 7 * s},
		{"2^-10 s", resolution(0x8a), 100<<10 + 1023, 100*s + 999_023_437},
		{"2^-30 s", resolution(0x9e), 3<<30 + 1<<29, 3*s + s/2},
		{"2^-32 s", resolution(0xa0), 100<<32 + 1<<32 - 1, 100*s + 999_999_999},
		{"2^-63 s", resolution(0xbf), 1 << 63, s},
		{"2^-64 s", resolution(0xc0), 1 << 63, s / 2},
		{"2^-127 s", resolution(0xff), 1<<64 - 1, 0},
		{"offset", offset(1_000_000_000), 1_000_000, 1_000_000_001 * s},
		{"negative offset", offset(-2), 5_000_000, 3 * s},
		{"before the epoch", offset(-10), 5_000_000, 0},
		{"too late", resolution(0), 1 << 40, latest},
		{"too late by the offset", offset(math.MaxInt64), 1 << 60, latest},
		{"far too late", resolution(0), 1<<64 - 1, latest},
		{"far too early", offset(math.MinInt64), 1, 0},
	}
	for _, r := range rows {
		list, err := readAll("F", bytes.NewReader(little().section().iface(r.options...).packet(0, r.ts, "x").b))
		if err != io.EOF || len(list) != 1 || list[0].Time != r.want {
			t.Errorf("%s: %d is %+v (%v), want %d", r.name, r.ts, list, err, r.want)
		}
	}
}

// TestBlocks reads the three kinds of packets, comments, and interfaces with
// link types of their own.
func TestBlocks(t *testing.T) {
	f := little().section().iface()
	f.block(1, little().u16(101, 0).u32(4)) // raw IP, 4 bytes of a packet
	f.block(6, little().u32(0, 0, 7, 2, 3).raw('a', 'b', 0, 0).u16(2, 4).u32(0).u16(1, 5).raw([]byte("hello\x00\x00\x00")...).u16(0, 0))
	f.block(2, little().u16(1, 0xffff).u32(0, 8, 3, 3).raw('c', 'd', 'e'))
	f.block(3, little().u32(5).raw([]byte("fghij")...))
	list, err := readAll("F", bytes.NewReader(f.b))
	if err != io.EOF || len(list) != 3 {
		t.Fatal(len(list), err)
	}
	want := []pcap.Record{
		{Number: 1, Offset: 68, Time: 7000, Wire: 3, Link: pcap.LinkEthernet, Data: []byte("ab")},
		{Number: 2, Offset: 128, Time: 8000, Wire: 3, Link: pcap.LinkRaw, Interface: 1, Data: []byte("cde")},
		{Number: 3, Offset: 164, Time: 8000, Wire: 5, Link: pcap.LinkEthernet, Data: []byte("fghij")},
	}
	for i, w := range want {
		g := list[i]
		if g.Number != w.Number || g.Offset != w.Offset || g.Time != w.Time || g.Wire != w.Wire || g.Link != w.Link ||
			g.Interface != w.Interface || !bytes.Equal(g.Data, w.Data) {
			t.Errorf("packet %d is %+v, want %+v", i+1, g, w)
		}
	}
	r, err := pcap.NewReader("F", bytes.NewReader(f.b))
	if err != nil {
		t.Fatal(err)
	}
	var rec pcap.Record
	for i, want := range []string{"hello", "", ""} {
		if err := r.Next(&rec); err != nil || string(rec.Comment()) != want {
			t.Errorf("comment %d is %q (%v), want %q", i+1, rec.Comment(), err, want)
		}
	}
	if _, err := pcap.NewReader("F", strings.NewReader("")); err == nil {
		t.Error("an empty stream is a capture")
	}
}
