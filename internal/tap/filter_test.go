package tap

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"penstock/internal/wire"
	"penstock/pcap"
)

// compile skips where there is no compiler.
func compile(t testing.TB, expression string) *Filter {
	t.Helper()
	if _, err := exec.LookPath("tcpdump"); err != nil {
		if os.Getenv("REQUIRE_PRIV") == "1" {
			t.Fatal("REQUIRE_PRIV=1, but tcpdump is not installed")
		}
		t.Skip("SKIPPED, NOT PASSED: tcpdump is not installed")
	}
	program, tagged, err := Compile(context.Background(), expression)
	if err != nil {
		t.Fatal(err)
	}
	f, err := NewFilter(program, tagged)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// frames reads the small captures of this repository.
func frames(t testing.TB) (all [][]byte) {
	t.Helper()
	files, err := filepath.Glob("../../pcap/testdata/captures/*.pcap*")
	if err != nil || len(files) == 0 {
		t.Fatalf("no captures: %v", err)
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		r, err := pcap.NewReader(name, f)
		if err != nil {
			f.Close()
			continue
		}
		var rec pcap.Record
		for r.Next(&rec) == nil {
			if rec.Link == pcap.LinkEthernet && rec.Wire == len(rec.Data) {
				all = append(all, append([]byte(nil), rec.Data...))
			}
		}
		f.Close()
	}
	return all
}

var expressions = []string{
	"tcp", "udp", "ip6", "arp", "icmp or icmp6", "host 10.0.0.1", "not port 80", "tcp port 80", "src port 80", "dst portrange 1-1023",
	"net 192.168.0.0/16", "ip6 and tcp", "src net 10.0.0.0/8 or dst net 10.0.0.0/8", "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0", "greater 200",
	"ip proto 17 and not port 53", "(tcp or udp) and not (port 80 or port 443)", "ip[6] & 0x40 != 0", "tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420",
	"vlan", "vlan and tcp", "vlan 10 or ip",
}

// tags returns a frame with n VLAN tags more.
func tags(frame []byte, n int) []byte {
	for range n {
		tagged := append([]byte(nil), frame[:12]...)
		tagged = append(tagged, 0x81, 0, 0, 10)
		frame = append(tagged, frame[12:]...)
	}
	return frame
}

// TestFilterEqualsTcpdump: what tcpdump would print of a capture matches, and nothing else; and where an expression has no
// vlan, the same in tags.
func TestFilterEqualsTcpdump(t *testing.T) {
	all := frames(t)
	matched := 0
	for _, e := range expressions {
		f := compile(t, e)
		var file strings.Builder
		w, err := pcap.NewWriter(&file, pcap.WriterOptions{Interfaces: []pcap.Interface{{Name: "x"}}})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		var h wire.Headers
		for i, b := range all {
			h.Parse(b)
			if h.VLANs > 0 && !f.tagged {
				continue // tcpdump would not look behind the tags
			}
			if err := w.WritePacket(0, int64(i)*1e9, len(b), b, nil); err != nil {
				t.Fatal(err)
			}
			if f.Match(b, int(h.VLANs)) {
				got += fmt.Sprintf("%d ", i)
				matched++
			}
			for n := 1; n <= 2 && !f.tagged && !strings.Contains(e, "greater"); n++ {
				if f.Match(tags(b, n), n) != f.Match(b, 0) {
					t.Errorf("%s: packet %d: another answer in %d tags", e, i, n)
				}
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("tcpdump", "-r", "-", "-n", "-tt", "-q", "--", e)
		cmd.Stdin = strings.NewReader(file.String())
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", e, err)
		}
		want := ""
		for line := range strings.Lines(string(out)) {
			var i int
			if n, _ := fmt.Sscanf(line, "%d.000000 ", &i); n == 1 && line[0] != ' ' && line[0] != '\t' {
				want += fmt.Sprintf("%d ", i)
			}
		}
		if got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", e, got, want)
		}
	}
	if matched < 100 {
		t.Errorf("%d packets matched, which tests nothing", matched)
	}
}

// TestMayMatch: a flow of which some packet matches may match; and one that cannot does not.
func TestMayMatch(t *testing.T) {
	all := frames(t)
	yes, no := 0, 0
	for _, e := range expressions {
		f := compile(t, e)
		for i, b := range all {
			var h wire.Headers
			if h.Parse(b) != wire.FaultNone || h.L4-h.L3 != 20 && h.L4-h.L3 != 40 {
				continue // with options
			}
			k, ok := h.Flow(b)
			if !ok {
				continue
			}
			may := f.MayMatch(&k)
			if f.Match(b, int(h.VLANs)) && !may {
				t.Errorf("%s: packet %d, %v: matches, and its flow may not", e, i, k)
			}
			if may {
				yes++
			} else {
				no++
			}
		}
	}
	if yes < 100 || no < 100 {
		t.Errorf("%d may match, %d not, which tests nothing", yes, no)
	}
	flow := func(proto uint8, port uint16) wire.Flow {
		return wire.Flow{Src: [16]byte{10: 0xff, 11: 0xff, 12: 10, 15: 1}, Dst: [16]byte{10: 0xff, 11: 0xff, 12: 10, 15: 2}, SrcPort: 40000, DstPort: port, Proto: proto}
	}
	for _, c := range []struct {
		filter string
		flow   wire.Flow
		want   bool
	}{
		{"src port 443", flow(6, 443), true}, // a reply does
		{"port 443", flow(6, 80), false},
		{"host 10.0.0.1 and port 443", flow(6, 443), true},
		{"host 10.0.0.3 and port 443", flow(6, 443), false},
		{"tcp[tcpflags] & tcp-syn != 0", flow(6, 443), true},
		{"tcp[tcpflags] & tcp-syn != 0", flow(17, 443), false},
		{"greater 1000 and udp", flow(17, 443), true},
		{"ip[6:2] & 0x1fff != 0", flow(17, 443), false},
		{"ip6", flow(6, 443), false},
		{"vlan 5", flow(6, 443), false},
		{"ether host 02:00:00:00:00:01", flow(6, 443), true},
	} {
		f := compile(t, c.filter)
		if got := f.MayMatch(&c.flow); got != c.want {
			t.Errorf("%s: %v may match: %v", c.filter, c.flow, got)
		}
		if n := testing.AllocsPerRun(100, func() { f.MayMatch(&c.flow) }); n > 0 {
			t.Errorf("%s: %v allocations", c.filter, n)
		}
	}
}

func TestBadFilters(t *testing.T) {
	for _, c := range []struct {
		name    string
		program []Instruction
	}{
		{"empty", nil},
		{"too long", make([]Instruction, MaxProgram+1)},
		{"no return", []Instruction{{Op: 0x28, K: 12}}},
		{"jump out", []Instruction{{Op: 0x15, Jt: 9, Jf: 9}, {Op: 6}}},
		{"unknown", []Instruction{{Op: 0xffff}, {Op: 6}}},
		{"division by zero", []Instruction{{Op: 0x34}, {Op: 6}}},
		{"scratch", []Instruction{{Op: 0x60, K: 99}, {Op: 6}}},
	} {
		if _, err := NewFilter(c.program, false); err == nil {
			t.Errorf("%s: no error", c.name)
		} else if !strings.HasPrefix(err.Error(), "load filter: ") {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// FuzzFilter: no program takes a worker down, or more than its time.
func FuzzFilter(f *testing.F) {
	f.Add([]byte{0x28, 0, 0, 12, 0x15, 0, 1, 8, 6, 0, 0, 1, 6, 0, 0, 0}, []byte("abcdefghijklmnopqrstuvwxyz"))
	f.Add([]byte{0xb1, 0, 0, 14, 0x48, 0, 0, 16, 0x45, 0, 1, 2, 6, 0, 0, 1, 0x16, 0, 0, 0}, make([]byte, 64))
	f.Fuzz(func(t *testing.T, code, frame []byte) {
		var program []Instruction
		for len(code) >= 4 {
			program = append(program, Instruction{Op: uint16(code[0]), Jt: code[1], Jf: code[2], K: uint32(code[3])})
			code = code[4:]
		}
		for _, tagged := range []bool{false, true} {
			filter, err := NewFilter(program, tagged)
			if err != nil {
				return
			}
			for n := range 3 {
				filter.Match(frame, n)
			}
			var k wire.Flow
			if len(frame) > 8 {
				k = wire.Flow{Src: [16]byte{15: frame[0]}, SrcPort: uint16(frame[1]), Proto: frame[2] % 18, V6: frame[3]%2 == 0, VLAN: [2]uint16{uint16(frame[4]), 0}}
			}
			filter.MayMatch(&k)
		}
	})
}

func BenchmarkFilter(b *testing.B) {
	f := compile(b, "host 10.0.0.1 and port 443")
	r := rand.New(rand.NewPCG(1, 1))
	frame := make([]byte, 100)
	for i := range frame {
		frame[i] = byte(r.Uint32())
	}
	copy(frame[12:], []byte{8, 0, 0x45})
	frame[23] = 6
	copy(frame[26:], []byte{10, 0, 0, 1})
	b.Run("match", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			f.Match(frame, 0)
		}
	})
	b.Run("may_match", func(b *testing.B) {
		b.ReportAllocs()
		var h wire.Headers
		h.Parse(frame)
		k, _ := h.Flow(frame)
		for b.Loop() {
			f.MayMatch(&k)
		}
	})
}
