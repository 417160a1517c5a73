package record

import (
	"encoding/json"
	"math/rand/v2"
	"testing"
	"time"
)

type written struct{ name string }

func (w written) AppendMembers(m *Members) {
	m.String("name", w.name)
	m.Open("in")
	m.Uint("n", 1)
	m.Seconds("s", -1_000_000_001)
	m.Seconds("t", 12e9)
	m.Strings("l", []string{"a", "\n"})
	m.Close()
	m.Bool("b", true)
	m.Int("i", -5)
}

func TestAppender(t *testing.T) {
	got, err := newEncoder().appendLine(nil, entry{epoch, "flow", written{`"x"`}})
	want := `{"timestamp":"2026-03-04T04:06:07.891234Z","event_type":"flow","name":"\"x\"","in":{"n":1,"s":-1.000000001,"t":12,"l":["a","\n"]},"b":true,"i":-5}` + "\n"
	if err != nil || string(got) != want {
		t.Errorf("got %s (%v), want %s", got, err, want)
	}
}

// TestTimestamps: that only the fraction of a second changes mostly makes no
// difference.
func TestTimestamps(t *testing.T) {
	e := newEncoder()
	r := rand.New(rand.NewPCG(3, 4))
	at := time.Unix(253402300700, 0) // a hundred seconds before the year 10000
	for range 2000 {
		want, _ := json.Marshal(Timestamp(at))
		if got := e.timestamp(at); string(got) != string(want) {
			t.Fatalf("got %s, want %s", got, want)
		}
		at = at.Add(time.Duration(r.Int64N(int64(300 * time.Millisecond))))
	}
}
