package flowtab_test

import (
	"encoding/binary"
	"testing"

	"penstock/internal/flowtab"
	"penstock/internal/wire"
)

// TestChains: whatever pattern the flows follow, chains stay as short as a random function makes them. With 65536 flows
// in 131072 chains the longest one of a random function has 6 to 9 entries, and more than 12 once in a million tables.
func TestChains(t *testing.T) {
	const n = 1 << 16
	put := func(b []byte, v int) { binary.BigEndian.PutUint32(b, uint32(v)) }
	for name, make := range map[string]func(i int) wire.Flow{
		"a client's ports":         func(i int) wire.Flow { return wire.Flow{Proto: 6, SrcPort: uint16(i), DstPort: 80} },
		"both ports":               func(i int) wire.Flow { return wire.Flow{SrcPort: uint16(i >> 8), DstPort: uint16(i & 255)} },
		"equal ports":              func(i int) wire.Flow { return wire.Flow{SrcPort: uint16(i), DstPort: uint16(i)} },
		"clients":                  func(i int) (f wire.Flow) { put(f.Src[12:], i); return f },
		"clients, high bits":       func(i int) (f wire.Flow) { put(f.Src[:], i<<16); return f },
		"source equal destination": func(i int) (f wire.Flow) { put(f.Src[12:], i); put(f.Dst[12:], i); return f },
		"source and destination":   func(i int) (f wire.Flow) { put(f.Src[8:], i>>8); put(f.Dst[8:], i&255); return f },
		"one word twice":           func(i int) (f wire.Flow) { put(f.Src[4:], i); put(f.Src[12:], i); return f },
		"words that cancel out":    func(i int) (f wire.Flow) { put(f.Src[:], i); put(f.Src[8:], ^i); put(f.Dst[:], i); return f },
		"address and port":         func(i int) (f wire.Flow) { put(f.Src[12:], i); f.SrcPort = uint16(i); return f },
		"vlans":                    func(i int) (f wire.Flow) { f.VLAN = [2]uint16{uint16(i >> 8), uint16(i & 255)}; return f },
		"ones":                     func(i int) (f wire.Flow) { put(f.Src[12:], -1); put(f.Src[8:], -1); f.SrcPort = uint16(i); return f },
	} {
		tab := flowtab.New[struct{}](n)
		for i := range n {
			tab.Insert(make(i), 0)
		}
		if tab.Len() != n {
			t.Fatalf("%s: %d different flows", name, tab.Len())
		}
		if longest := tab.LongestChain(); longest > 12 {
			t.Errorf("%s: a chain of %d", name, longest)
		}
	}
}

// TestSecret: two tables put the same flows into different chains, so that who knows one knows nothing of another.
func TestSecret(t *testing.T) {
	const n = 1 << 6
	// Find flows that share a chain of one table: the first, and those that make its chain longer.
	tab := flowtab.New[struct{}](n)
	tab.Insert(flow(0), 0)
	colliding := []wire.Flow{flow(0)}
	for i := 1; len(colliding) < 12 && i < 1<<16; i++ {
		tab.Insert(flow(i), 0)
		if tab.LongestChain() == len(colliding) {
			tab.Delete(flow(i))
			continue
		}
		colliding = append(colliding, flow(i))
	}
	if len(colliding) < 12 {
		t.Fatalf("found only %d colliding flows", len(colliding))
	}
	for range 3 {
		other := flowtab.New[struct{}](n)
		for _, f := range colliding {
			other.Insert(f, 0)
		}
		if longest := other.LongestChain(); longest > len(colliding)/2 {
			t.Errorf("%d flows that collide in one table make a chain of %d in another", len(colliding), longest)
		}
	}
}
