package record

import (
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"strings"
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
	got, err := newEncoder().appendLine(nil, entry{time: epoch, event: "flow", fields: written{`"x"`}})
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
		if got := e.timestamp(unix(at)); string(got) != string(want) {
			t.Fatalf("got %s, want %s", got, want)
		}
		at = at.Add(time.Duration(r.Int64N(int64(300 * time.Millisecond))))
	}
}

// TestPlain: every byte, at every place, among others.
func TestPlain(t *testing.T) {
	for n := range 20 {
		for at := range n {
			for c := range 256 {
				b := []byte("abcdefghijklmnopqrst"[:n])
				b[at] = byte(c)
				want := c >= ' ' && c < 0x80 && c != '"' && c != '\\'
				if got := plain(b); got != want {
					t.Fatalf("%q: %v, want %v", b, got, want)
				}
				var back string
				out := appendString([]byte("x"), string(b))
				if err := json.Unmarshal(out[1:], &back); err != nil || c < 0x80 && back != string(b) {
					t.Fatalf("%q: got %s, %v", b, out, err)
				}
			}
		}
	}
}

func TestUint(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	numbers := []uint64{0, 1, 9, 10, 99, 100, 9999, 10000, 99999, 1e8 - 1, 1e8, 1e8 + 1, math.MaxUint64}
	for range 20000 {
		numbers = append(numbers, r.Uint64()>>r.IntN(64))
	}
	for _, n := range numbers {
		var m Members
		m.Uint("n", n)
		if want := fmt.Sprint(`"n":`, n); string(m) != want {
			t.Fatalf("got %s, want %s", m, want)
		}
	}
}

// TestSeconds: as the number would be written with all of its digits.
func TestSeconds(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	times := []int64{0, 1, -1, 10, 1e8, 1e9, -1e9, 1e9 + 1, 123456789, 1234567890123456789, math.MaxInt64, math.MinInt64, math.MinInt64 + 1}
	for range 5000 {
		times = append(times, r.Int64()>>r.IntN(63), -r.Int64()>>r.IntN(63))
	}
	for _, ns := range times {
		var m Members
		m.Seconds("s", ns)
		sign, abs := "", new(big.Int).SetInt64(ns)
		if ns < 0 {
			sign = "-"
			abs.Neg(abs)
		}
		whole, rest := new(big.Int).QuoRem(abs, big.NewInt(1e9), new(big.Int))
		want := `"s":` + sign + whole.String()
		if f := strings.TrimRight(fmt.Sprintf("%09d", rest), "0"); f != "" {
			want += "." + f
		}
		if string(m) != want {
			t.Fatalf("%d: got %s, want %s", ns, m, want)
		}
	}
}
