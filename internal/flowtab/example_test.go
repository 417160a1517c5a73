package flowtab_test

import (
	"fmt"
	"net/netip"
	"time"

	"penstock/internal/flowtab"
	"penstock/internal/wire"
)

// One entry serves both directions, and goes when the flow was idle for a minute.
func Example() {
	type state struct{ packets [2]int }
	table := flowtab.New[state](1000)
	count := func(f wire.Flow, now int64) {
		key, reversed := f.Canonical()
		s, ok := table.Get(key, now)
		if !ok {
			if s, ok = table.Insert(key, now); !ok {
				return // full: counted, and the packet goes on unseen
			}
		}
		if reversed {
			s.packets[1]++
		} else {
			s.packets[0]++
		}
	}
	client := netip.MustParseAddrPort("10.0.0.1:1234")
	server := netip.MustParseAddrPort("10.0.0.2:80")
	request := wire.MakeFlow(wire.ProtoTCP, client, server)
	count(request, 0)
	count(request.Reverse(), 1000)
	count(request, 2000)

	minute := func(*state) time.Duration { return time.Minute }
	table.Expire(int64(time.Minute)+2000, minute, 64, func(k wire.Flow, s *state) {
		fmt.Println(k, s.packets)
	})
	fmt.Println(table.Len())
	// Output:
	// tcp 10.0.0.1:1234 > 10.0.0.2:80 [2 1]
	// 0
}
