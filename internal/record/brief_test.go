package record

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// briefly returns an event n of a few fields.
func briefly() (v *Brief, set func(n int64)) {
	var who, what Members
	who.String("who", `a "name"`)
	what.Open("in")
	what.Uint("x", 5)
	v = &Brief{Form: NewForm("http", 1, "n", "some?", "took:seconds", "since:seconds?"), Before: [2]*Members{&who, &what}}
	return v, func(n int64) { v.Figures = [5]int64{n, n % 2, -n, n * 1e6 % 3e6} }
}

// TestBrief: whoever writes it, a brief event is the same line, of its own time.
func TestBrief(t *testing.T) {
	dir := t.TempDir()
	r := open(t, Options{Now: fixedNow}, Spec{"file:" + dir + "/a", []string{All}})
	at := int64(1000)
	l := r.TimedLane(func() int64 { return at })
	v, set := briefly()
	var want []string
	for n := range int64(50) {
		// The event was 2 us before now; the clock goes on, the system's stands.
		at, v.When = at+int64(time.Second), at+int64(time.Second)-2000
		set(n)
		l.Record("http", v)
		r.Record("http", v)
		kept, err := json.Marshal(v.Keep())
		if err != nil {
			t.Fatal(err)
		}
		m := Members("{")
		v.AppendMembers(&m)
		if string(m)+"}" != string(kept) {
			t.Errorf("writes itself as %s, and keeps itself as %s", m, kept)
		}
		want = append(want, string(kept[1:]))
	}
	if got := want[3]; got != `"who":"a \"name\"","in":{"x":5,"n":3,"some":1,"took":-0.000000003}}` {
		t.Errorf("got %s", got)
	}
	if got := want[2]; got != `"who":"a \"name\"","in":{"x":5,"n":2,"took":-0.000000002,"since":0.002}}` {
		t.Errorf("got %s", got)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	for _, line := range lines(t, dir+"/a") {
		head, rest, _ := strings.Cut(line, `,"event_type":"http",`)
		got[head] = append(got[head], rest)
	}
	for _, head := range []string{`{"timestamp":"2026-03-04T04:06:07.891234Z"`, `{"timestamp":"2026-03-04T04:06:07.891232Z"`} {
		if list := strings.Join(got[head], "\n"); list != strings.Join(want, "\n") {
			t.Errorf("at %s: got %s, want %s", head, list, strings.Join(want, "\n"))
		}
	}
}

// TestLaneTime: a lane's events are by its own clock, and a step of the system's is
// seen soon.
func TestLaneTime(t *testing.T) {
	dir := t.TempDir()
	system, own := epoch, int64(77)
	r := open(t, Options{Now: func() time.Time { return system }}, Spec{"file:" + dir + "/a", []string{All}})
	l := r.TimedLane(func() int64 { return own })
	v, _ := briefly()
	var want []string
	for i := range 100 {
		step := time.Duration(i) * 777 * time.Microsecond
		system, own = system.Add(step), own+int64(step)
		if i == 50 {
			system = system.Add(-time.Hour)
		}
		v.When = own
		l.Record("http", v)
		if i < 50 || i > 51 { // 777*51 us are more than askEvery
			want = append(want, Timestamp(system))
		} else {
			want = append(want, "")
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	for i, line := range lines(t, dir+"/a") {
		if want[i] != "" && !strings.HasPrefix(line, `{"timestamp":"`+want[i]+`"`) {
			t.Fatalf("event %d is %s, want it at %s", i, line, want[i])
		}
	}
}

// TestBriefPanics: one that cannot be written costs itself.
func TestBriefPanics(t *testing.T) {
	dir := t.TempDir()
	r := open(t, Options{}, Spec{"file:" + dir + "/a", []string{All}})
	l := r.Lane()
	v, set := briefly()
	good := v.Before
	for n := range int64(20) {
		v.Before = good
		set(n)
		l.Record("http", v)
		if n%5 == 4 {
			// The lane looks at how long it is; the sink at what it is.
			v.Form = &Form{event: "http", figures: make([]figure, 6)}
			l.Record("http", v)
			v.Form = NewForm("http", 1, "n")
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if s := r.Stats()[0]; s.Written != 20 || s.Failed != 4 || !strings.Contains(s.Error, `"http": panic`) {
		t.Errorf("stats are %+v", s)
	}
	if got := lines(t, dir+"/a"); len(got) != 20 {
		t.Errorf("%d lines: %q", len(got), got)
	}
}
