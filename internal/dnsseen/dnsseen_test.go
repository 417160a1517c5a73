package dnsseen

import (
	"fmt"
	"net/netip"
	"reflect"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

var one, two = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::2")

func TestTable(t *testing.T) {
	var tab Table
	const now = int64(1e18)
	ask := func(n string, a netip.Addr, at int64, want Answer) {
		t.Helper()
		if got := tab.Ask(n, a, at); got != want {
			t.Errorf("%s at %v: got %v, want %v", n, a, got, want)
		}
	}
	ask("a.example", one, now, Unknown)
	tab.Learn("a.example", one, now+10, now)
	tab.Learn("b.example", one, now+20, now)
	tab.Learn("a.example", two, now+10, now)
	ask("a.example", one, now, Seen)
	ask("b.example", one, now, Seen)
	ask("c.example", one, now, Other)
	ask("a.example", netip.MustParseAddr("::ffff:192.0.2.1"), now, Seen)
	ask("b.example", two, now, Other)
	ask("a.example", one, now+10, Other) // b still is there
	ask("a.example", one, now+20, Unknown)
	tab.Learn("a.example", one, now+5, now+1) // an earlier end does not shorten
	ask("a.example", one, now+9, Seen)
	for i := range MaxNames + 1 {
		tab.Learn(fmt.Sprint(i, ".example"), two, now+100, now)
	}
	ask("0.example", two, now, Unknown)
	ask("nobody.example", two, now, Unknown)
	if n := testing.AllocsPerRun(100, func() { tab.Ask("a.example", one, now) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestTableFills: it is bounded, and what it has lost is unknown, never another's.
func TestTableFills(t *testing.T) {
	var tab Table
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }
	var wg sync.WaitGroup
	const n = 2 * MaxAddrs
	for w := range 4 {
		wg.Go(func() {
			for i := range n {
				tab.Learn(fmt.Sprint(w, ".example"), addr(i), 1000, 1)
			}
		})
	}
	wg.Wait()
	known := 0
	for i := range n {
		switch tab.Ask("0.example", addr(i), 2) {
		case Seen:
			known++
		case Other:
			if tab.Ask("1.example", addr(i), 2)+tab.Ask("2.example", addr(i), 2)+tab.Ask("3.example", addr(i), 2) == 3*Other {
				t.Fatalf("%v has names that nobody learnt", addr(i))
			}
		}
	}
	if known == 0 || known > MaxAddrs || tab.Evicted() == 0 {
		t.Errorf("%d known, %d evicted", known, tab.Evicted())
	}
}

// TestLearnTogether: nobody's name is lost when all learn of one address.
func TestLearnTogether(t *testing.T) {
	var tab Table
	var wg sync.WaitGroup
	for w := range MaxNames {
		wg.Go(func() { tab.Learn(fmt.Sprint(w), one, 1000, 1) })
	}
	wg.Wait()
	for w := range MaxNames {
		if got := tab.Ask(fmt.Sprint(w), one, 2); got != Seen {
			t.Errorf("name %d: got %v", w, got)
		}
	}
}

func message(h dnsmessage.Header, name string, answers ...dnsmessage.Resource) []byte {
	m := dnsmessage.Message{Header: h, Answers: answers, Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

func rr(name string, ttl uint32, body dnsmessage.ResourceBody) dnsmessage.Resource {
	return dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET, TTL: ttl}, Body: body}
}

func a(name string, ttl uint32, last byte) dnsmessage.Resource {
	return rr(name, ttl, &dnsmessage.AResource{A: [4]byte{192, 0, 2, last}})
}

func cname(name string, ttl uint32, to string) dnsmessage.Resource {
	return rr(name, ttl, &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(to)})
}

func TestParse(t *testing.T) {
	ok := dnsmessage.Header{ID: 7, Response: true}
	addrs := func(list ...Addr) []Addr { return list }
	at := func(last byte, ttl uint32) Addr { return Addr{netip.AddrFrom4([4]byte{192, 0, 2, last}), ttl} }
	var loop []dnsmessage.Resource
	for i := range 40 {
		loop = append(loop, cname(fmt.Sprint("n", i, "."), 1, fmt.Sprint("n", i+1, ".")))
	}
	for _, row := range []struct {
		name string
		b    []byte
		want []Addr
	}{
		{"one", message(ok, "www.example.", a("www.example.", 60, 1)), addrs(at(1, 60))},
		{"several", message(ok, "www.example.", a("www.example.", 60, 1), a("WWW.example.", 30, 2)), addrs(at(1, 60), at(2, 30))},
		{"chain", message(ok, "www.example.", cname("www.example.", 20, "x.cdn.example."), cname("x.cdn.example.", 90, "y.cdn.example."), a("y.cdn.example.", 50, 3)), addrs(at(3, 20))},
		{"chain in another order", message(ok, "www.example.", a("x.cdn.example.", 50, 3), cname("www.example.", 60, "x.cdn.example.")), addrs(at(3, 50))},
		{"another's address", message(ok, "www.example.", a("bank.example.", 60, 1)), nil},
		{"loop", message(ok, "www.example.", cname("www.example.", 1, "www.example.")), nil},
		{"too many hops", message(ok, "n0.", append(loop, a("n40.", 1, 1))...), nil},
		{"none", message(ok, "www.example."), nil},
		{"error", message(dnsmessage.Header{Response: true, RCode: dnsmessage.RCodeNameError}, "www.example.", a("www.example.", 1, 1)), nil},
		{"truncated", message(dnsmessage.Header{Response: true, Truncated: true}, "www.example.", a("www.example.", 1, 1)), nil},
		{"question", message(dnsmessage.Header{ID: 7}, "www.example."), nil},
	} {
		m, ok := Parse(row.b)
		var got []Addr
		if m.Useful {
			got, _ = m.Addrs()
		}
		if !ok || !reflect.DeepEqual(got, row.want) {
			t.Errorf("%s: got %v, %v, want %v", row.name, got, ok, row.want)
		}
		for i := range row.b {
			if m, ok := Parse(row.b[:i]); ok && m.Useful {
				if _, ok := m.Addrs(); ok {
					t.Errorf("%s: %d of %d bytes are a message", row.name, i, len(row.b))
				}
			}
		}
	}
	if _, ok := Parse([]byte{0, 1, 2}); ok {
		t.Error("three bytes are a message")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(message(dnsmessage.Header{ID: 7, Response: true}, "www.example.", cname("www.example.", 20, "x."), a("x.", 60, 1)))
	f.Add(message(dnsmessage.Header{ID: 7}, "www.example."))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, ok := Parse(b)
		if !ok || !m.Useful {
			return
		}
		if addrs, ok := m.Addrs(); len(addrs) > maxRecords || len(addrs) > 0 && (!ok || !m.Response) {
			t.Fatalf("%+v, %v", addrs, ok)
		}
	})
}
