package pcap_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/pcapgo"

	"penstock/pcap"
)

// captures returns the files of testdata/captures.
func captures(t testing.TB) []string {
	t.Helper()
	names, err := filepath.Glob("testdata/captures/*")
	if err != nil || len(names) == 0 {
		t.Fatalf("no captures: %v", err)
	}
	return names
}

// tsharkLine is what tshark says of a packet.
type tsharkLine struct {
	time           int64 // ns; -1 where the packet has none
	wire, captured int
}

// tshark returns the oracle's opinion by file name.
func tshark(t testing.TB) map[string][]tsharkLine {
	t.Helper()
	f, err := os.Open("testdata/tshark.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all := map[string][]tsharkLine{}
	name := ""
	for s := bufio.NewScanner(f); s.Scan(); {
		line := s.Text()
		if n, ok := strings.CutPrefix(line, "# "); ok {
			name, all[n] = n, nil
			continue
		}
		cols := strings.Split(line, " ") // number, time, wire, captured
		if len(cols) != 4 {
			t.Fatalf("%s: %q", name, line)
		}
		l := tsharkLine{time: -1}
		if seconds, fraction, ok := strings.Cut(cols[1], "."); ok {
			s, err1 := strconv.ParseInt(seconds, 10, 64)
			f, err2 := strconv.ParseInt(fraction, 10, 64) // of ns; not always below a second
			if err1 != nil || err2 != nil {
				t.Fatalf("%s: %q", name, line)
			}
			l.time = s*1e9 + f
		}
		l.wire, _ = strconv.Atoi(cols[2])
		l.captured, _ = strconv.Atoi(cols[3])
		all[name] = append(all[name], l)
	}
	return all
}

// pcapgoReader reads the same capture with gopacket.
func pcapgoReader(t testing.TB, b []byte) gopacket.PacketDataSource {
	t.Helper()
	if bytes.HasPrefix(b, []byte{0x0a, 0x0d, 0x0d, 0x0a}) {
		r, err := pcapgo.NewNgReader(bytes.NewReader(b), pcapgo.NgReaderOptions{WantMixedLinkType: true, SkipUnknownVersion: true})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r, err := pcapgo.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestCaptures compares each capture with what tshark and gopacket read.
func TestCaptures(t *testing.T) {
	oracle := tshark(t)
	for _, name := range captures(t) {
		base := filepath.Base(name)
		t.Run(base, func(t *testing.T) {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			want, known := oracle[base]
			if !known {
				t.Fatal("tshark.txt does not have it")
			}
			other := pcapgoReader(t, b)
			r, err := pcap.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			var rec pcap.Record
			n := 0
			for ; ; n++ {
				err := r.Next(&rec)
				data, ci, otherErr := other.ReadPacketData()
				if err == io.EOF && otherErr == io.EOF {
					break
				}
				if err != nil || otherErr != nil {
					t.Fatalf("packet %d: %v, gopacket says %v", n+1, err, otherErr)
				}
				if !bytes.Equal(rec.Data, data) || rec.Wire != ci.Length || int(rec.Number) != n+1 {
					t.Fatalf("packet %d (%d): %d bytes of %d, gopacket reads %d of %d", n+1, rec.Number, len(rec.Data), rec.Wire, len(data), ci.Length)
				}
				if n >= len(want) {
					continue
				}
				w := want[n]
				if base == "tcpdump-timestamp_invalid_micro.pcap" && n == 2 {
					// tshark's multiplication overflows; tcpdump prints these microseconds.
					w.time = 1418145370e9 + 2147483648e3
				}
				if rec.Wire != w.wire || len(rec.Data) != w.captured || w.time >= 0 && rec.Time != w.time {
					t.Errorf("packet %d: %d bytes of %d at %d, tshark says %+v", n+1, len(rec.Data), rec.Wire, rec.Time, w)
				}
			}
			if base == "gopacket-le-test901.pcapng" { // see ORIGIN.md
				want = append(want, tsharkLine{})
			}
			if n != len(want) {
				t.Errorf("%d packets, want %d", n, len(want))
			}
			if r.Offset() != int64(len(b)) {
				t.Errorf("%d bytes read of %d", r.Offset(), len(b))
			}
		})
	}
}

// readAll returns the packets of a capture and the error that ended it.
func readAll(name string, src io.Reader) (list []pcap.Record, err error) {
	r, err := pcap.NewReader(name, src)
	for err == nil {
		var rec pcap.Record
		if err = r.Next(&rec); err == nil {
			rec.Data = bytes.Clone(rec.Data)
			list = append(list, rec)
		}
	}
	if r != nil {
		var rec pcap.Record
		if again := r.Next(&rec); again != err {
			err = fmt.Errorf("first %w, then %w", err, again)
		}
	}
	return list, err
}

// TestSniffing reads a pcapng file under the name of a pcap file, a gzipped
// one, and one that comes byte by byte.
func TestSniffing(t *testing.T) {
	b, err := os.ReadFile("testdata/captures/zeek-pcapng-multi-interface.pcapng")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	plain, zipped := filepath.Join(dir, "a.pcap"), filepath.Join(dir, "b.pcap")
	var z bytes.Buffer
	zw := gzip.NewWriter(&z)
	_, _ = zw.Write(b)
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{plain: b, zipped: z.Bytes()} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := pcap.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		var rec pcap.Record
		for err == nil {
			err = r.Next(&rec)
		}
		if err != io.EOF || rec.Number != 6 || r.Format() != "pcapng" {
			t.Errorf("%s: %d packets of a %s, %v", name, rec.Number, r.Format(), err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if list, err := readAll("slow", iotestOneByte{bytes.NewReader(b)}); len(list) != 6 || err != io.EOF {
		t.Errorf("byte by byte: %d packets, %v", len(list), err)
	}
	list, err := readAll("cut.gz", bytes.NewReader(z.Bytes()[:z.Len()/2]))
	var re *pcap.ReadError
	if !errors.As(err, &re) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut gzip: %d packets, %v", len(list), err)
	}
	if _, err := pcap.Open(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

type iotestOneByte struct{ r io.Reader }

func (r iotestOneByte) Read(p []byte) (int, error) { return r.r.Read(p[:min(1, len(p))]) }

// TestCutAnywhere cuts captures at every length: what is whole is delivered,
// and the error says where the rest begins.
func TestCutAnywhere(t *testing.T) {
	for _, name := range []string{"tcpdump-tcp-handshake-nano.pcap", "gopacket-be-test202.pcapng"} {
		b, err := os.ReadFile("testdata/captures/" + name)
		if err != nil {
			t.Fatal(err)
		}
		whole, err := readAll(name, bytes.NewReader(b))
		if err != io.EOF || len(whole) == 0 {
			t.Fatal(err)
		}
		clean := 0 // cuts that fall between two records
		for n := range len(b) {
			list, err := readAll(name, bytes.NewReader(b[:n]))
			for i, rec := range list {
				if !bytes.Equal(rec.Data, whole[i].Data) || rec.Time != whole[i].Time {
					t.Fatalf("%s cut to %d bytes: packet %d differs", name, n, i+1)
				}
			}
			if err == io.EOF {
				clean++
				continue
			}
			var re *pcap.ReadError
			if !errors.As(err, &re) {
				t.Fatalf("%s cut to %d bytes: %v", name, n, err)
			}
			if re.Packet == 0 && n < int(whole[0].Offset) {
				continue // inside the header
			}
			if re.Packet != uint64(len(list)+1) || re.Offset > int64(n) || !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s cut to %d bytes: after %d packets %v", name, n, len(list), err)
			}
			if len(list) < len(whole) && int64(n) >= whole[len(list)].Offset+int64(len(whole[len(list)].Data))+100 {
				t.Errorf("%s cut to %d bytes: only %d packets", name, n, len(list))
			}
		}
		if clean < len(whole) {
			t.Errorf("%s: %d cuts between records, there are %d packets", name, clean, len(whole))
		}
	}
}

// TestStandardInput reads a capture from a pipe.
func TestStandardInput(t *testing.T) {
	b, err := os.ReadFile("testdata/captures/bigendian.pcap")
	if err != nil {
		t.Fatal(err)
	}
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Write(b[:len(b)-1]); err != nil { // fits into the pipe
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	defer func(f *os.File) { os.Stdin = f }(os.Stdin)
	os.Stdin = in
	r, err := pcap.Open("-")
	if err != nil {
		t.Fatal(err)
	}
	var rec pcap.Record
	for err == nil {
		err = r.Next(&rec)
	}
	if want := "read capture standard input: packet 2 at byte 138: cut short: 113 of 114 bytes: unexpected EOF"; err.Error() != want || rec.Number != 1 {
		t.Errorf("%d packets, then %v, want %s", rec.Number, err, want)
	}
	if err := errors.Join(r.Close(), in.Close()); err != nil {
		t.Error(err)
	}
}
