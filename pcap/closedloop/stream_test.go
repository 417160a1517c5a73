package closedloop

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// TestStream: whatever the order of segments, the first copy of a byte wins.
func TestStream(t *testing.T) {
	for seed := range uint64(300) {
		streamAgainstModel(t, rand.New(rand.NewPCG(seed, 1)))
	}
}

func streamAgainstModel(t *testing.T, rng *rand.Rand) {
	t.Helper()
	s := stream{known: true, isn: 0xffffff00 + rng.Uint32N(200), high: 1}
	const size = 400
	model := map[int]byte{}
	stored := 0
	for n := rng.IntN(60); n > 0; n-- {
		at, length := rng.IntN(size)-3, rng.IntN(40)
		data := make([]byte, length)
		for i := range data {
			data[i] = byte(rng.Uint32())
			if _, have := model[at+i]; !have && at+i >= 1 {
				model[at+i] = data[i]
			}
		}
		p := s.position(s.isn + uint32(at))
		if p != int64(at) {
			t.Fatalf("position of %d is %d", at, p)
		}
		stored += s.add(p, data)
	}
	var want []byte
	for i := 1; ; i++ {
		b, ok := model[i]
		if !ok {
			break
		}
		want = append(want, b)
	}
	if !bytes.Equal(s.bytes, want) {
		t.Fatalf("got %d bytes, want %d", len(s.bytes), len(want))
	}
	if stored != len(model) {
		t.Fatalf("stored %d bytes, there are %d", stored, len(model))
	}
	if gap := s.gap(); (gap != 0) != (len(model) > len(want)) || gap != 0 && gap != uint64(len(want))+1 {
		t.Fatalf("gap at %d; %d bytes in order, %d in all", gap, len(want), len(model))
	}
}

// FuzzStream feeds the reassembly with anything.
func FuzzStream(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Add(uint64(77), uint64(1<<63))
	f.Fuzz(func(t *testing.T, a, b uint64) { streamAgainstModel(t, rand.New(rand.NewPCG(a, b))) })
}
