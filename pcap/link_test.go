package pcap_test

import (
	"bytes"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"penstock/internal/wire"
	"penstock/pcap"
	"penstock/pipeline"
)

// TestEthernetHeader says what each link header becomes.
func TestEthernetHeader(t *testing.T) {
	const synthetic = "020000000002" + "020000000001"
	rows := []struct {
		name string
		link pcap.LinkType
		data string // hex
		want string // the Ethernet header, hex; "" where it stays as it is
		skip int
	}{
		{"Ethernet", pcap.LinkEthernet, "0102030405060708090a0b0c0800", "", 0},
		{"raw IPv4", pcap.LinkRaw, "4500", synthetic + "0800", 0},
		{"raw IPv6", pcap.LinkRaw, "6000", synthetic + "86dd", 0},
		{"raw IPv6, BSD", pcap.LinkRawBSD, "6000", synthetic + "86dd", 0},
		{"raw IPv4, BSD/OS", pcap.LinkRawBSDI, "45", synthetic + "0800", 0},
		{"raw, neither", pcap.LinkRaw, "ff00", synthetic + "0800", 0},
		{"raw, nothing", pcap.LinkRaw, "", synthetic + "0800", 0},
		{"IPv4", pcap.LinkIPv4, "60", synthetic + "0800", 0},
		{"IPv6", pcap.LinkIPv6, "45", synthetic + "86dd", 0},
		{"null, little-endian", pcap.LinkNull, "0200000045", synthetic + "0800", 4},
		{"null, big-endian", pcap.LinkNull, "0000000245", synthetic + "0800", 4},
		{"null, IPv6 of Linux", pcap.LinkNull, "0a00000060", synthetic + "86dd", 4},
		{"null, IPv6 of NetBSD", pcap.LinkNull, "1800000060", synthetic + "86dd", 4},
		{"null, IPv6 of FreeBSD", pcap.LinkNull, "1c00000060", synthetic + "86dd", 4},
		{"null, IPv6 of macOS", pcap.LinkNull, "1e00000060", synthetic + "86dd", 4},
		{"null, IPv6 of Windows", pcap.LinkNull, "1700000060", synthetic + "86dd", 4},
		{"null, AppleTalk", pcap.LinkNull, "1000000060", synthetic + "88b5", 4},
		{"null, cut", pcap.LinkNull, "020000", synthetic + "88b5", 0},
		{"loop", pcap.LinkLoop, "0000000245", synthetic + "0800", 4},
		{"loop, IPv6", pcap.LinkLoop, "0000001860", synthetic + "86dd", 4},
		{"cooked", pcap.LinkLinuxSLL, "0000" + "0001" + "0006" + "aabbccddeeff0000" + "0800" + "45", "020000000002" + "aabbccddeeff" + "0800", 16},
		{"cooked, no address", pcap.LinkLinuxSLL, "0004" + "0304" + "0000" + "aabbccddeeff0000" + "86dd" + "60", synthetic + "86dd", 16},
		{"cooked, 802.3 length", pcap.LinkLinuxSLL, "0000" + "0001" + "0006" + "aabbccddeeff0000" + "0004" + "424203", "020000000002" + "aabbccddeeff" + "0003", 16},
		{"cooked, another protocol of Linux", pcap.LinkLinuxSLL, "0000" + "0001" + "0000" + "aabbccddeeff0000" + "000c" + "00", synthetic + "88b5", 16},
		{"cooked, cut", pcap.LinkLinuxSLL, "0000000100", synthetic + "88b5", 0},
		{"cooked v2", pcap.LinkLinuxSLL2, "0806" + "0000" + "00000002" + "0001" + "00" + "06" + "aabbccddeeff0000" + "0001", "020000000002" + "aabbccddeeff" + "0806", 20},
		{"cooked v2, no address", pcap.LinkLinuxSLL2, "0800" + "0000" + "00000002" + "ffff" + "00" + "00" + "aabbccddeeff0000" + "45", synthetic + "0800", 20},
		{"cooked v2, cut", pcap.LinkLinuxSLL2, "0800", synthetic + "88b5", 0},
	}
	for _, r := range rows {
		data, err := hex.DecodeString(r.data)
		if err != nil {
			t.Fatal(r.name, err)
		}
		var header [wire.EthernetLen]byte
		skip, replace, err := r.link.EthernetHeader(data, &header)
		got := hex.EncodeToString(header[:])
		if !replace {
			got = ""
		}
		if err != nil || skip != r.skip || got != r.want || !r.link.Supported() {
			t.Errorf("%s: header %s, %d bytes skipped, %v; want %s, %d", r.name, got, skip, err, r.want, r.skip)
		}
	}
	for link, want := range map[pcap.LinkType]string{
		239: "link type 239 (NFLOG) is not supported", 105: "link type 105 (802.11) is not supported", 4000: "link type 4000 is not supported",
	} {
		var header [wire.EthernetLen]byte
		if _, _, err := link.EthernetHeader(nil, &header); err == nil || err.Error() != want || link.Supported() {
			t.Errorf("%v: %v, want %s", link, err, want)
		}
	}
}

// TestLinkTypesInCaptures looks at what captures of each link type become: the
// bytes of the IP packet are untouched.
func TestLinkTypesInCaptures(t *testing.T) {
	rows := []struct {
		file string
		want []string // what tcpdump, zeek or tshark say of the packets, in our words
	}{
		{"tcpdump-tcp-handshake-nano.pcap", []string{
			"IP 131.155.215.69.46656 > 137.116.81.94.80: Flags [S], seq 797190859,", "IP 137.116.81.94.80 > 131.155.215.69.46656: Flags [S.],",
			"IP 131.155.215.69.46656 > 137.116.81.94.80: Flags [.],"}},
		{"tcpdump-LINKTYPE_RAW_ipv4.pcap", []string{"IP 192.168.1.100.12345 > 9.9.9.9.53: UDP, length 29"}},
		{"tcpdump-LINKTYPE_RAW_ipv6.pcap", []string{"IP6 2001:db8::1.12345 > 2620:fe::9.53: UDP, length 29"}},
		{"tls-alpn-h2.pcap", []string{
			"IP6 2001:4998:ef83:14:8000::100d.64034 > 2606:4700::6811:d209.443: Flags [S]", "IP6 2606:4700::6811:d209.443 > 2001:4998:ef83:14:8000::100d.64034: Flags [S.]"}},
		{"suricata-http-multiple-cl.pcap", []string{"IP 127.0.0.1.52448 > 127.0.0.1.8000: Flags [S]", "IP 127.0.0.1.8000 > 127.0.0.1.52448: Flags [S.]"}},
		{"zeek-variant-03-cl_negative.pcap", []string{"IP 192.168.1.100.40003 > 192.168.1.200.80: Flags [S]", "IP 192.168.1.200.80 > 192.168.1.100.40003: Flags [S.]"}},
		{"zeek-linux_dlt_sll2.pcap", []string{
			"IP 192.0.2.1 > 192.0.2.1: ICMP echo request, id 8, seq 1,", "IP 192.0.2.1 > 192.0.2.1: ICMP echo reply, id 8, seq 1,",
			"IP6 fe80::8c36:6ff:fe44:acaf > fe80::8c36:6ff:fe44:acaf: ICMP6, echo request, id 9, seq 1", "IP6 fe80::8c36:6ff:fe44:acaf > fe80::8c36:6ff:fe44:acaf: ICMP6, echo reply, id 9, seq 1",
			"ARP, Request who-has 192.0.2.2"}},
	}
	for _, r := range rows {
		b, err := os.ReadFile("testdata/captures/" + r.file)
		if err != nil {
			t.Fatal(err)
		}
		raw, _ := readAll(r.file, bytes.NewReader(b))
		i := 0
		feed(t, b, func(p *pipeline.Packet) {
			got := wire.Summary(p.Bytes())
			if i < len(r.want) && !strings.HasPrefix(got, r.want[i]) {
				t.Errorf("%s: packet %d is %s, want %s", r.file, i+1, got, r.want[i])
			}
			if !bytes.HasSuffix(raw[i].Data, p.Bytes()[wire.EthernetLen:]) || p.Len() < 20 {
				t.Errorf("%s: packet %d: the bytes behind the link header have changed", r.file, i+1)
			}
			i++
		})
		if i != len(raw) {
			t.Errorf("%s: %d of %d packets", r.file, i, len(raw))
		}
	}
}

// feed runs a capture through a port and shows each packet.
func feed(t testing.TB, capture []byte, each func(p *pipeline.Packet)) {
	t.Helper()
	r, err := pcap.NewReader("F", bytes.NewReader(capture))
	if err != nil {
		t.Fatal(err)
	}
	arena, err := pcap.NewArena(1, 32)
	if err != nil {
		t.Fatal(err)
	}
	port := pcap.NewFeed(pcap.FeedOptions{Reader: r, Pool: arena.Pool(0)}).Ports(0)[0]
	batch := pipeline.NewBatch(16)
	for {
		batch.Reset()
		if _, err := port.Receive(batch); err != nil {
			break
		}
		for _, p := range batch.All() {
			each(p)
			arena.Pool(0).Put(p)
		}
	}
}
