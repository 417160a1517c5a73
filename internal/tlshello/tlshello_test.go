package tlshello

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// run reads b in pieces of at most size bytes (0: whole) and says what came of it.
func run(b []byte, want byte, limit, maxRecords, size int) (log []string) {
	var r Reader
	r.Reset(want, limit, maxRecords, nil)
	for len(b) > 0 {
		piece := b
		if size > 0 {
			piece = b[:min(size, len(b))]
		}
		b = b[len(piece):]
		for len(piece) > 0 {
			n, e := r.Next(piece)
			piece = piece[n:]
			switch e {
			case Message:
				log = append(log, fmt.Sprintf("message %d", len(r.Message())))
			case Alert:
				level, description := r.Alert()
				log = append(log, fmt.Sprintf("alert %d %d", level, description))
			case ChangeCipher:
				log = append(log, "change")
			case Protected:
				log = append(log, "other")
			case Failed:
				return append(log, r.Fault().String())
			}
		}
	}
	if !r.Idle() {
		log = append(log, "under way")
	}
	return log
}

func TestReader(t *testing.T) {
	hello := message(TypeClientHello, clientHello([]uint16{0x1301}, sni("a.example")))
	body := len(hello) - messageHeader
	done := fmt.Sprintf("message %d", body)
	appData := record(typeApplicationData, make([]byte, 300)...)
	for _, row := range []struct {
		name string
		in   []byte
		want string
	}{
		{"one record", records(typeHandshake, hello, 1<<14), done},
		{"two records", records(typeHandshake, hello, 40), done},
		{"records of one byte", records(typeHandshake, hello, 1), done},
		{"two messages in one record", records(typeHandshake, cat(hello, hello), 1<<14), done + " " + done},
		{"a message that ends in the middle of a record", records(typeHandshake, cat(hello, hello), len(hello)+7), done + " " + done},
		{"early data", cat(records(typeHandshake, hello, 1<<14), record(typeChangeCipherSpec, 1), appData, appData, record(typeApplicationData)), done + " change other other other"},
		{"second hello", cat(records(typeHandshake, hello, 1<<14), appData, records(typeHandshake, hello, 50)), done + " other " + done},
		{"alert", record(typeAlert, 2, 40), "alert 2 40"},
		{"warning, then hello", cat(record(typeAlert, 1, 112), records(typeHandshake, hello, 1<<14)), "alert 1 112 " + done},
		{"protected alert", record(typeAlert, make([]byte, 26)...), "other"},
		{"part of a header", []byte{22, 3, 1}, "under way"},
		{"part of a hello", records(typeHandshake, hello[:20], 1<<14), "under way"},
		{"part of application data", cat(records(typeHandshake, hello, 1<<14), appData[:100]), done + " other"},

		{"http", []byte("GET / HTTP/1.1\r\n"), "not_tls"},
		{"ssh", []byte("SSH-2.0-x"), "not_tls"},
		{"socks", []byte{4, 1, 0, 80}, "not_tls"},
		{"zeros", make([]byte, 10), "not_tls"},
		{"wrong major version", []byte{22, 2, 0}, "not_tls"},
		{"application data first", appData, "not_tls"},
		{"heartbeat", cat(records(typeHandshake, hello, 1<<14), record(24, 1)), done + " bad_record"},
		{"another major version later", cat(records(typeHandshake, hello, 1<<14), []byte{23, 4}), done + " bad_record"},
		{"sslv2 hello", []byte{0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0}, "sslv2"},
		{"sslv2 hello of sslv2", []byte{0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0}, "sslv2"},
		{"sslv2 but no hello", []byte{0x80, 0x2e, 4, 0, 2}, "not_tls"},
		{"sslv2 of an unknown version", []byte{0x80, 0x2e, 1, 0, 3}, "not_tls"},
		{"high bit", []byte{0xff, 0xff, 0xff}, "not_tls"},
		{"empty fragment", record(typeHandshake), "bad_record"},
		{"empty fragment inside", cat(records(typeHandshake, hello[:10], 10), record(typeHandshake)), "bad_record"},
		{"record too long", []byte{22, 3, 1, 0x40, 1}, "bad_record"},
		{"application data too long", cat(records(typeHandshake, hello, 1<<14), []byte{23, 3, 3, 0x48, 1}), done + " bad_record"},
		{"alert inside a message", cat(records(typeHandshake, hello[:10], 10), record(typeAlert, 1, 0)), "bad_record"},
		{"change of ciphers inside a message", cat(records(typeHandshake, hello[:10], 10), record(typeChangeCipherSpec, 1)), "bad_record"},
		{"another message", records(typeHandshake, message(11, nil), 1<<14), "bad_message"},
		{"too large", records(typeHandshake, message(TypeClientHello, make([]byte, 1997)), 1<<14), "too_large"},
		{"as large as may be", records(typeHandshake, message(TypeClientHello, make([]byte, 1996)), 1<<14), "message 1996"},
		{"too many records", records(typeHandshake, message(TypeClientHello, make([]byte, 500)), 2), "too_many_records"},
	} {
		t.Run(row.name, func(t *testing.T) {
			for _, size := range []int{0, 1, 2, 3, 5, 7, 64} {
				if got := strings.Join(run(row.in, TypeClientHello, 2000, 200, size), " "); got != row.want {
					t.Errorf("pieces of %d: got %q, want %q", size, got, row.want)
				}
			}
		})
	}
}

func TestParseClientHello(t *testing.T) {
	one := []uint16{0x1301}
	good := clientHello(one, sni("a.example"), alpn("h2"))
	many := make([]uint16, MaxCiphers+1)
	var extensions [][]byte
	for i := range MaxExtensions + 1 {
		extensions = append(extensions, ext(uint16(i+0x1000)))
	}
	for _, row := range []struct {
		name string
		in   []byte
		want Fault
	}{
		{"plain", good, FaultNone},
		{"no extensions at all", clientHello(one), FaultNone},
		{"an empty list of extensions", append(clientHello(one), 0, 0), FaultNone},
		{"unknown extension", clientHello(one, ext(0xabcd, 1, 2, 3)), FaultNone},
		{"GREASE", clientHello([]uint16{0x0a0a, 0x1301}, ext(0x1a1a), ext(0x2a2a, 0)), FaultNone},
		{"empty", nil, BadHello},
		{"trailing byte", append(slices.Clone(good), 0), BadHello},
		{"odd ciphers", cat(u16s(VersionTLS12), make([]byte, 32), vec8(), vec16(1, 2, 3), vec8(0)), BadHello},
		{"no ciphers", clientHello(nil), BadHello},
		{"no compression", cat(u16s(VersionTLS12), make([]byte, 32), vec8(), vec16(1, 2), vec8()), BadHello},
		{"session too long", cat(u16s(VersionTLS12), make([]byte, 32), vec8(make([]byte, 33)...), vec16(1, 2), vec8(0)), BadHello},
		{"extension twice", clientHello(one, sni("a.example"), sni("b.example")), BadHello},
		{"GREASE twice", clientHello(one, ext(0x1a1a), ext(0x1a1a)), BadHello},
		{"two names", clientHello(one, ext(extServerName, vec16(0, 0, 1, 'a', 0, 0, 1, 'b')...)), BadHello},
		{"another type of name", clientHello(one, ext(extServerName, vec16(1, 0, 1, 'a')...)), BadHello},
		{"no name", clientHello(one, ext(extServerName)), BadHello},
		{"empty list of names", clientHello(one, ext(extServerName, 0, 0)), BadHello},
		{"empty name", clientHello(one, sni("")), BadHello},
		{"name longer than its list", clientHello(one, ext(extServerName, 0, 4, 0, 0, 2, 'a')), BadHello},
		{"list of names longer than the extension", clientHello(one, ext(extServerName, 0, 9, 0, 0, 1, 'a')), BadHello},
		{"bytes behind the names", clientHello(one, ext(extServerName, 0, 4, 0, 0, 1, 'a', 0)), BadHello},
		{"empty protocol", clientHello(one, alpn("h2", "")), BadHello},
		{"no protocols", clientHello(one, alpn()), BadHello},
		{"odd versions", clientHello(one, ext(extSupportedVersions, 3, 3, 4, 3)), BadHello},
		{"no versions", clientHello(one, ext(extSupportedVersions, 0)), BadHello},
		{"odd groups", clientHello(one, ext(extGroups, 0, 1, 0)), BadHello},
		{"odd signatures", clientHello(one, ext(extSignatureAlgs, 0, 1, 0)), BadHello},
		{"point formats too long", clientHello(one, ext(extPointFormats, 2, 0)), BadHello},
		{"too many ciphers", clientHello(many), TooLarge},
		{"as many ciphers as may be", clientHello(many[1:]), FaultNone},
		{"too many extensions", clientHello(one, extensions...), TooLarge},
		{"as many extensions as may be", clientHello(one, extensions[1:]...), FaultNone},
	} {
		var h ClientHello
		if got := ParseClientHello(row.in, &h); got != row.want {
			t.Errorf("%s: got %v, want %v", row.name, got, row.want)
		}
	}
	// Every beginning but the one without extensions is malformed.
	for n := range good {
		var h ClientHello
		if f := ParseClientHello(good[:n], &h); f == FaultNone && n != len(clientHello(one)) {
			t.Errorf("the first %d bytes of %d are a hello", n, len(good))
		}
	}
}

func TestClientHelloFields(t *testing.T) {
	var h ClientHello
	in := clientHello([]uint16{0x1301}, sni("Www.Example"), alpn("h2", "http/1.1"), ext(extSupportedVersions, 6, 0xfa, 0xfa, 3, 3, 3, 4), ext(extECH, 0))
	if f := ParseClientHello(in, &h); f != FaultNone {
		t.Fatal(f)
	}
	var protocols []string
	for p := range h.ALPN() {
		protocols = append(protocols, string(p))
	}
	if string(h.ServerName) != "Www.Example" || h.Version != VersionTLS12 || h.MaxVersion != VersionTLS13 || !h.ECH || h.ESNI ||
		!slices.Equal(protocols, []string{"h2", "http/1.1"}) {
		t.Errorf("got %+v, protocols %q", h, protocols)
	}
	for range h.ALPN() {
		break // the iterator stops when it is told to
	}
	// The next hello has nothing of the last one.
	if f := ParseClientHello(clientHello([]uint16{1}), &h); f != FaultNone || h.ServerName != nil || h.ECH || h.alpn != nil || h.MaxVersion != VersionTLS12 {
		t.Errorf("got %v, %+v", f, h)
	}
}

func TestParseServerHello(t *testing.T) {
	random := make([]byte, 32)
	for _, row := range []struct {
		name     string
		in       []byte
		want     Fault
		selected uint16
		alpn     string
		retry    bool
		ja3s     string
	}{
		{"1.3", serverHello(VersionTLS12, 0x1301, random, ext(51, 1), ext(extSupportedVersions, 3, 4)), FaultNone, VersionTLS13, "", false, "771,4865,51-43"},
		{"1.2", serverHello(VersionTLS12, 0xc02f, random, alpn("h2")), FaultNone, VersionTLS12, "h2", false, "771,49199,16"},
		{"no extensions", serverHello(VersionTLS10, 5, random), FaultNone, VersionTLS10, "", false, "769,5,"},
		{"retry", serverHello(VersionTLS12, 0x1301, retryRandom, ext(extSupportedVersions, 3, 4)), FaultNone, VersionTLS13, "", true, "771,4865,43"},
		{"empty", nil, BadHello, 0, "", false, ""},
		{"trailing byte", append(serverHello(VersionTLS10, 5, random, alpn("h2")), 0), BadHello, 0, "", false, ""},
		{"two protocols", serverHello(VersionTLS12, 5, random, alpn("h2", "x")), BadHello, 0, "", false, ""},
		{"no protocol", serverHello(VersionTLS12, 5, random, alpn("")), BadHello, 0, "", false, ""},
		{"two versions", serverHello(VersionTLS12, 5, random, ext(extSupportedVersions, 3, 4, 3, 3)), BadHello, 0, "", false, ""},
		{"extension twice", serverHello(VersionTLS12, 5, random, ext(1), ext(1)), BadHello, 0, "", false, ""},
	} {
		var h ServerHello
		f := ParseServerHello(row.in, &h)
		if f != row.want {
			t.Errorf("%s: got %v, want %v", row.name, f, row.want)
			continue
		}
		if f == FaultNone && (h.Selected != row.selected || string(h.ALPN) != row.alpn || h.Retry != row.retry || string(h.AppendJA3S(nil)) != row.ja3s) {
			t.Errorf("%s: got %+v, ja3s %s", row.name, h, h.AppendJA3S(nil))
		}
	}
}

// TestJA4 takes the specification's own examples, and its corners.
func TestJA4(t *testing.T) {
	spec := []uint16{0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013, 0xc014, 0x009c, 0x009d, 0x002f, 0x0035}
	signatures := ext(extSignatureAlgs, vec16(u16s(0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601)...)...)
	order := []uint16{0x001b, 0, 0x0033, 0x0010, 0x4469, 0x0017, 0x002d, 0x000d, 0x0005, 0x0023, 0x0012, 0x002b, 0xff01, 0x000b, 0x000a, 0x0015}
	chrome := func(signatures []byte) (list [][]byte) {
		for _, typ := range order {
			switch typ {
			case extServerName:
				list = append(list, sni("x.example"))
			case extALPN:
				list = append(list, alpn("h2", "http/1.1"))
			case extSignatureAlgs:
				list = append(list, signatures)
			case extSupportedVersions:
				list = append(list, ext(typ, vec8(u16s(0x3a3a, 0x0304, 0x0303)...)...))
			case extGroups:
				list = append(list, ext(typ, 0, 0))
			case extPointFormats:
				list = append(list, ext(typ, 0))
			default:
				list = append(list, ext(typ))
			}
		}
		return list
	}
	withALPN := func(name string) []byte { return clientHello([]uint16{1}, alpn(name)) }
	many := make([]uint16, 120)
	for _, row := range []struct {
		name, want string
		in         []byte
	}{
		{"the example", "t13d1516h2_8daaf6152771_e5627efa2ab1", clientHello(spec, chrome(signatures)...)},
		{"the example with GREASE", "t13d1516h2_8daaf6152771_e5627efa2ab1", clientHello(append([]uint16{0x2a2a}, spec...), append(chrome(signatures), ext(0xdada))...)},
		{"no signature algorithms", "t13d1516h2_8daaf6152771_6d807ffa2a79", clientHello(spec, chrome(ext(extSignatureAlgs, 0, 0))...)},
		{"no extensions", "t12i010000_*_000000000000", clientHello([]uint16{1})},
		{"only GREASE for a cipher", "t12i000000_000000000000_000000000000", clientHello([]uint16{0x0a0a})},
		{"99 and no more", "t12i990000_*", clientHello(many)},
		{"one character", "t12i0101aa_*", withALPN("a")},
		{"0xab", "t12i0101ab_*", withALPN("\xab")},
		{"0xab 0xcd", "t12i0101ad_*", withALPN("\xab\xcd")},
		{"0x30 0xab", "t12i01013b_*", withALPN("0\xab")},
		{"0x30 0x31 0xab 0xcd", "t12i01013d_*", withALPN("01\xab\xcd")},
		{"0x30 0xab 0xcd 0x31", "t12i010101_*", withALPN("0\xab\xcd1")},
		{"an unknown version", "t00i*", clientHello([]uint16{1}, ext(extSupportedVersions, 2, 0x7f, 0x1c))},
	} {
		var h ClientHello
		if f := ParseClientHello(row.in, &h); f != FaultNone {
			t.Errorf("%s: %v", row.name, f)
			continue
		}
		got := string(h.AppendJA4(nil))
		begin, _, wild := strings.Cut(row.want, "*")
		end := row.want[strings.LastIndexByte(row.want, '*')+1:]
		if len(got) != JA4Size || !wild && got != row.want || !strings.HasPrefix(got, begin) || wild && !strings.HasSuffix(got, end) {
			t.Errorf("%s: got %s, want %s", row.name, got, row.want)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	in := records(typeHandshake, message(TypeClientHello, benchHello()), 700)
	var r Reader
	var h ClientHello
	var text []byte
	buf := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() {
		r.Reset(TypeClientHello, 1<<15, 100, buf)
		if _, e := r.Next(in); e != Message || ParseClientHello(r.Message(), &h) != FaultNone {
			t.Fatal("no hello")
		}
		text = h.AppendJA4(text[:0])
		text = h.AppendJA3(text[:0])
	}); n != 0 {
		t.Errorf("%v allocations a hello, want 0", n)
	}
}

// benchHello is as large as that of a browser with a post-quantum key share.
func benchHello() []byte {
	rng := rand.New(rand.NewPCG(1, 2))
	share := make([]byte, 1263)
	for i := range share {
		share[i] = byte(rng.Uint32())
	}
	return clientHello(
		[]uint16{0x1a1a, 0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013, 0xc014, 0x009c, 0x009d, 0x002f, 0x0035},
		ext(0x4a4a), sni("www.example.com"), ext(0x17), ext(0xff01, 0), ext(extGroups, vec16(u16s(0x5a5a, 0x11ec, 0x1d, 0x17, 0x18)...)...),
		ext(extPointFormats, 1, 0), ext(0x23), alpn("h2", "http/1.1"), ext(5, 1, 0, 0, 0, 0),
		ext(extSignatureAlgs, vec16(u16s(0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601)...)...), ext(0x12), ext(0x33, share...),
		ext(0x2d, 1, 1), ext(extSupportedVersions, vec8(u16s(0x6a6a, 0x0304, 0x0303)...)...), ext(0x1b, 2, 0, 2), ext(0x4469, 0, 3, 2, 'h', '2'), ext(0x7a7a, 0))
}

func BenchmarkHello(b *testing.B) {
	in := records(typeHandshake, message(TypeClientHello, benchHello()), 1<<14)
	var r Reader
	var h ClientHello
	var text, hash []byte
	buf := make([]byte, 0, 4096)
	parse := func() {
		r.Reset(TypeClientHello, 1<<15, 100, buf)
		if _, e := r.Next(in); e != Message || ParseClientHello(r.Message(), &h) != FaultNone {
			b.Fatal("no hello")
		}
	}
	b.Run("read and parse", func(b *testing.B) {
		b.SetBytes(int64(len(in)))
		b.ReportAllocs()
		for b.Loop() {
			parse()
		}
	})
	parse()
	b.Run("ja4", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			text = h.AppendJA4(text[:0])
		}
	})
	b.Run("ja3", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			text = h.AppendJA3(text[:0])
			hash = AppendMD5(hash[:0], text)
		}
	})
}

// FuzzReader feeds arbitrary bytes in two ways of cutting them: the same events,
// and what is complete parses or is named.
func FuzzReader(f *testing.F) {
	hello := message(TypeClientHello, benchHello())
	f.Add(records(typeHandshake, hello, 1<<14), uint64(1))
	f.Add(records(typeHandshake, hello[:300], 1), uint64(2))
	f.Add(cat(records(typeHandshake, hello, 500), record(typeApplicationData, 1, 2), record(typeAlert, 2, 40)), uint64(3))
	f.Add([]byte{0x80, 0x2e, 1, 3, 1}, uint64(4))
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		for _, typ := range []byte{TypeClientHello, TypeServerHello} {
			whole := run(b, typ, 4096, 64, 0)
			pieces := run(b, typ, 4096, 64, 1+int(seed%97))
			if !slices.Equal(whole, pieces) {
				t.Fatalf("whole: %q\nin pieces: %q", whole, pieces)
			}
		}
	})
}

// FuzzParse reads arbitrary messages: no panic, fingerprints of the right form,
// nothing read beyond the message, and the same answer from a used ClientHello.
func FuzzParse(f *testing.F) {
	f.Add(benchHello())
	f.Add(clientHello([]uint16{1}))
	f.Add(serverHello(VersionTLS12, 0x1301, retryRandom, ext(extSupportedVersions, 3, 4), alpn("h2")))
	var used ClientHello
	f.Fuzz(func(t *testing.T, b []byte) {
		var h ClientHello
		first, second := ParseClientHello(b, &h), ParseClientHello(bytes.Clone(b), &used)
		if first != second {
			t.Fatalf("got %v, and %v from a hello that was used before", first, second)
		}
		if first == FaultNone {
			a, z := h.AppendJA4(nil), used.AppendJA4(nil)
			if len(a) != JA4Size || !bytes.Equal(a, z) || !bytes.Equal(h.AppendJA3(nil), used.AppendJA3(nil)) {
				t.Fatalf("ja4 %s, %s", a, z)
			}
			if strings.Count(string(h.AppendJA3(nil)), ",") != 4 {
				t.Fatalf("ja3 %s", h.AppendJA3(nil))
			}
			for p := range h.ALPN() {
				if len(p) == 0 {
					t.Fatal("an empty protocol")
				}
			}
		}
		var s ServerHello
		if ParseServerHello(b, &s) == FaultNone && strings.Count(string(s.AppendJA3S(nil)), ",") != 2 {
			t.Fatalf("ja3s %s", s.AppendJA3S(nil))
		}
	})
}
