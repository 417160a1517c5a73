package pcap_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"penstock/internal/wire"
	"penstock/pcap"
)

// TestReplayChecksums counts wrong checksums and drops or takes the packets.
// The numbers are tshark's.
func TestReplayChecksums(t *testing.T) {
	rows := []struct {
		file    string
		bad     uint64
		dropped map[string]uint64
	}{
		{"zeek-ip4-bad-chksum.pcap", 1, map[string]uint64{"bad_ip_checksum": 1}},
		{"zeek-ip4-tcp-bad-chksum.pcap", 1, map[string]uint64{"bad_l4_checksum": 1}},
		{"zeek-ip6-tcp-bad-chksum.pcap", 1, map[string]uint64{"bad_l4_checksum": 1}},
		{"zeek-ip4-tcp-good-chksum.pcap", 0, map[string]uint64{}},
		{"suricata-http-multiple-cl.pcap", 14, map[string]uint64{"bad_ip_checksum": 14}},
		{"zeek-ipv6-http-atomic-frag.pcap", 4, map[string]uint64{"bad_l4_checksum": 4}},
	}
	for _, r := range rows {
		name := "testdata/captures/" + r.file
		res, _, err := replay(t, pcap.ReplayOptions{Name: name})
		if err != nil || res.BadChecksums != r.bad || !maps.Equal(res.Dropped, r.dropped) {
			t.Errorf("%s: %+v, %v; want %d, %v", r.file, res, err, r.bad, r.dropped)
		}
		res, _, err = replay(t, pcap.ReplayOptions{Name: name, AcceptBadChecksums: true})
		if err != nil || res.BadChecksums != r.bad || res.Forwarded != res.Packets {
			t.Errorf("%s, accepted: %+v, %v; want %d", r.file, res, err, r.bad)
		}
	}
}

// TestReplayFlows compares flows with the streams that tshark counts.
func TestReplayFlows(t *testing.T) {
	for file, want := range map[string]uint64{
		"curl-enabled-tls13.pcap":            2, // 1 TCP, 1 UDP
		"tls-alpn-h2.pcap":                   1,
		"zeek-http-qinq-0.pcap":              1,
		"zeek-pcapng-multi-interface.pcapng": 3, // UDP
		"zeek-handshake-reorder.pcap":        1,
		"suricata-split-handshake-4whs.pcap": 1,
		"zeek-variant-03-cl_negative.pcap":   1,
		"bigendian.pcap":                     2, // echo requests of two identifiers
	} {
		res, _, err := replay(t, pcap.ReplayOptions{Name: "testdata/captures/" + file, AcceptBadChecksums: true})
		if err != nil || res.Flows != want {
			t.Errorf("%s: %d flows (%v), want %d", file, res.Flows, err, want)
		}
	}
}

// TestReplayCaptures replays all captures without stages: nothing disappears,
// the output holds the packets that were forwarded, byte for byte, and tshark
// and capinfos read it.
func TestReplayCaptures(t *testing.T) {
	oracle := tshark(t)
	dir := t.TempDir()
	forwarded := map[string]int{} // by output file
	for _, name := range captures(t) {
		base := filepath.Base(name)
		t.Run(base, func(t *testing.T) {
			res, out, err := replay(t, pcap.ReplayOptions{Name: name, AcceptBadChecksums: true, Ports: [2]string{"lan", "wan"}})
			if base == "nflog.pcap" {
				want := "read capture testdata/captures/nflog.pcap: packet 1 at byte 24: link type 239 (NFLOG) is not supported"
				if err == nil || err.Error() != want || res.Error != want || res.Packets != 0 {
					t.Errorf("%+v, %v; want %s", res, err, want)
				}
				return
			}
			want := oracle[base]
			if base == "gopacket-le-test901.pcapng" { // see ORIGIN.md
				want = append(want, tsharkLine{wire: 314})
			}
			bytesWant, short := 0, 0
			for _, l := range want {
				bytesWant += l.wire
				if l.captured > 0 && l.captured < l.wire {
					short++
				}
			}
			if err != nil || int(res.Packets) != len(want) || int(res.Bytes) != bytesWant || int(res.CapturedShort) != short {
				t.Errorf("%+v, %v; tshark says %d packets, %d bytes, %d cut", res, err, len(want), bytesWant, short)
			}
			checkOutput(t, name, out, int(res.Forwarded))
			file := filepath.Join(dir, base+".out.pcapng")
			if err := os.WriteFile(file, out, 0o600); err != nil {
				t.Fatal(err)
			}
			forwarded[file] = int(res.Forwarded)
		})
	}
	checkWithWireshark(t, forwarded)
}

// checkWithWireshark lets capinfos and tshark read the outputs: all at once,
// since starting them takes long.
func checkWithWireshark(t *testing.T, packets map[string]int) {
	t.Helper()
	_, err1 := exec.LookPath("tshark")
	_, err2 := exec.LookPath("capinfos")
	if err := errors.Join(err1, err2); err != nil {
		t.Logf("SKIPPED in part: the output is not shown to Wireshark's tools: %v", err)
		return
	}
	files := slices.Sorted(maps.Keys(packets))
	text, err := exec.Command("capinfos", append([]string{"-T", "-m", "-r", "-c"}, files...)...).CombinedOutput()
	if err != nil {
		t.Errorf("capinfos: %v\n%s", err, text)
	}
	total := 0
	for _, f := range files {
		if want := fmt.Sprintf("%s,%d\n", f, packets[f]); !strings.Contains(string(text), want) {
			t.Errorf("capinfos does not say %q", want)
		}
		total += packets[f]
	}
	text, err = exec.Command("capinfos", "-I", files[0]).CombinedOutput()
	if err != nil || !strings.Contains(string(text), "Name = lan") || !strings.Contains(string(text), "Name = wan") ||
		!strings.Contains(string(text), "Time precision = nanoseconds (9)") {
		t.Errorf("capinfos: %v, want interfaces lan and wan\n%s", err, text)
	}
	// pcapng files one after the other are one pcapng file.
	var all []byte
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	file := filepath.Join(t.TempDir(), "all.pcapng")
	if err := os.WriteFile(file, all, 0o600); err != nil {
		t.Fatal(err)
	}
	text, err = exec.Command("tshark", "-n", "-r", file, "-T", "fields", "-e", "frame.len").Output()
	if err != nil || bytes.Count(text, []byte("\n")) != total {
		t.Errorf("tshark: %v, %d packets, want %d", err, bytes.Count(text, []byte("\n")), total)
	}
	if list, err := readAll("all", bytes.NewReader(all)); err != io.EOF || len(list) != total {
		t.Errorf("our reader: %v, %d packets, want %d", err, len(list), total)
	}
}

// checkOutput compares a replay's output with its input.
func checkOutput(t *testing.T, name string, out []byte, forwarded int) {
	t.Helper()
	src, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	in, err := readAll(name, bytes.NewReader(src))
	if err != io.EOF {
		t.Fatal(err)
	}
	list, err := readAll("out", bytes.NewReader(out))
	if err != io.EOF || len(list) != forwarded {
		t.Fatalf("the output has %d packets (%v), %d were forwarded", len(list), err, forwarded)
	}
	at := 0
	for _, rec := range list {
		body := rec.Data[min(len(rec.Data), wire.EthernetLen):]
		for at < len(in) && (in[at].Time != rec.Time || !bytes.HasSuffix(in[at].Data, body)) {
			at++ // was dropped
		}
		if at == len(in) {
			t.Fatalf("packet %d of the output is not in the capture, or in another order", rec.Number)
		}
		if in[at].Link == pcap.LinkEthernet && (!bytes.Equal(in[at].Data, rec.Data) || in[at].Wire != rec.Wire) {
			t.Errorf("packet %d has changed", rec.Number)
		}
		at++
	}
}
