package gate

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// table is a Table that can refuse.
type table struct {
	t    *testing.T
	have map[Entry]time.Time
	fail error
}

func (f *table) Change(c Change) error {
	if f.fail != nil {
		return f.fail
	}
	if c.Commit != nil {
		if err := c.Commit(); err != nil {
			return err
		}
	}
	for _, e := range c.Add {
		until := e.Until
		e.Until = time.Time{}
		f.have[e] = until
	}
	for _, e := range c.Remove {
		if _, there := f.have[e]; !there {
			f.t.Errorf("removes %v, which is not there", e.Prefix)
		}
		delete(f.have, e)
	}
	return nil
}

func (f *table) Hits() (map[netip.Prefix]uint64, error) { return nil, nil }

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestLists(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	clock := func() time.Time { return now }
	path := filepath.Join(t.TempDir(), "new", "gate.jsonl")
	tab := &table{t: t, have: map[Entry]time.Time{}}
	open := func(deny, allow []netip.Prefix) *Gate {
		t.Helper()
		tab.have = map[Entry]time.Time{}
		g, err := Open(path, tab, deny, allow, clock)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	g := open(prefixes("10.0.0.0/8"), prefixes("10.1.0.0/16"))
	n, err := g.Add(prefixes("192.0.2.0/24", "192.0.2.0/24", "2001:db8::/32", "10.0.0.0/8"), time.Hour, "scan")
	if n != 3 || err != nil {
		t.Fatal(n, err)
	}
	_, err = g.Add(prefixes("198.51.100.7/32"), 0, "for good")
	must(err)

	// All or nothing: in the table, in the file, and in the list.
	tab.fail = errors.New("no")
	if _, err := g.Add(prefixes("203.0.113.0/24"), 0, ""); !errors.Is(err, tab.fail) {
		t.Error(err)
	}
	tab.fail = nil
	if err := g.Remove(prefixes("192.0.2.0/24", "203.0.113.0/24")); err == nil || !strings.Contains(err.Error(), "203.0.113.0/24 is not denied") {
		t.Error(err)
	}

	before, err := g.List()
	must(err)
	if len(before) != 4 {
		t.Fatalf("%+v", before)
	}
	must(g.Close())
	// A crash in the middle of a line.
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	must(err)
	_, err = f.WriteString(`{"add":["203.0.113.0/24"`)
	must(err)
	must(f.Close())
	g = open(prefixes("10.0.0.0/8"), nil)
	after, err := g.List()
	must(err)
	if !reflect.DeepEqual(after, before) {
		t.Errorf("after a restart\n%+v\nbefore it\n%+v", after, before)
	}
	if until := tab.have[Entry{Prefix: prefixes("192.0.2.0/24")[0]}]; !until.Equal(now.Add(time.Hour)) {
		t.Errorf("expires %v", until)
	}
	if until, there := tab.have[Entry{Prefix: prefixes("10.0.0.0/8")[0]}]; !there || !until.IsZero() {
		t.Error("what the configuration denies is for good")
	}

	// The configuration lets go of a prefix that is denied at run time too.
	must(g.Configure(nil, prefixes("10.2.0.0/16")))
	if until := tab.have[Entry{Prefix: prefixes("10.0.0.0/8")[0]}]; !until.Equal(now.Add(time.Hour)) {
		t.Errorf("expires %v", until)
	}
	must(g.Configure(prefixes("10.0.0.0/8"), nil))
	if err := g.Remove(prefixes("10.0.0.0/8")); err != nil {
		t.Error(err)
	}
	if err := g.Remove(prefixes("10.0.0.0/8")); err == nil || !strings.Contains(err.Error(), "by the configuration") {
		t.Error(err)
	}

	now = now.Add(time.Hour)
	must(g.Sweep())
	if len(tab.have) != 2 {
		t.Errorf("after the hour: %v", tab.have)
	}
	must(g.Remove(prefixes("198.51.100.7/32")))
	if _, err := os.Stat(path); err == nil {
		t.Error("nothing is denied at run time, and the file is there")
	}
	must(g.Close())
}

func TestDamagedState(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gate.jsonl")
	if err := os.WriteFile(path, []byte("{\"add\":[\"10.0.0.0/8\"]}\nnonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(path, &table{t: t, have: map[Entry]time.Time{}}, nil, nil, time.Now)
	if err == nil || !strings.Contains(err.Error(), path+":2: ") {
		t.Errorf("%v", err)
	}
}

func TestReadList(t *testing.T) {
	list, problems, err := ReadList(strings.NewReader("\ufeff# comment\r\n 192.0.2.0/24 ; SBL1\n\n2001:db8::1\n::ffff:10.0.0.0/104"))
	if err != nil || problems != nil || !reflect.DeepEqual(list, prefixes("192.0.2.0/24", "2001:db8::1/128", "10.0.0.0/8")) {
		t.Errorf("%v %v %v", list, problems, err)
	}
	list, problems, err = ReadList(strings.NewReader("10.0.0.0/8\n  10.0.0.1/8\nnonsense\n"))
	if err != nil || list != nil || len(problems) != 2 || problems[0].Line != 2 || problems[0].Col != 3 || problems[1].Line != 3 {
		t.Errorf("%v %v %v", list, problems, err)
	}
	if _, problems, _ := ReadList(strings.NewReader(strings.Repeat("x", maxLine+1))); len(problems) != 1 {
		t.Errorf("%v", problems)
	}
}

func FuzzReadList(f *testing.F) {
	f.Add("192.0.2.0/24 # a\n::1\n")
	f.Add("10.0.0.1/8\r\n;\n")
	f.Fuzz(func(t *testing.T, text string) {
		list, problems, err := ReadList(strings.NewReader(text))
		if err != nil || list != nil && problems != nil || len(problems) > maxProblems {
			t.Fatal(list, problems, err)
		}
		for _, p := range list {
			if p != p.Masked() || p.Addr().Is4In6() && p.Bits() >= 96 {
				t.Errorf("%v is not as the table wants it", p)
			}
		}
		for _, p := range problems {
			if p.Line < 1 || p.Col < 1 || p.Text == "" {
				t.Errorf("%+v", p)
			}
		}
	})
}
