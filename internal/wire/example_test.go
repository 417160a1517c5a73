package wire_test

import (
	"fmt"

	"penstock/internal/wire"
)

// A SYN of a client, as it arrives from a port, and what a stage does with it: parse, look at the flow, change a field
// and mend the checksum without summing the packet again.
func Example() {
	frame := []byte{
		2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, // Ethernet
		0x45, 0, 0, 44, 0, 7, 0x40, 0, 64, 6, 0x26, 0xc3, 10, 0, 0, 1, 10, 0, 0, 2, // IPv4
		4, 210, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x60, 2, 250, 240, 0, 0, 0, 0, 2, 4, 5, 180, // TCP, MSS 1460
	}
	var h wire.Headers
	if fault := h.Parse(frame); fault != wire.FaultNone {
		fmt.Println("dropped:", fault)
		return
	}
	wire.FillL4(frame, &h)
	flow, ok := h.Flow(frame)
	fmt.Println(flow, ok)

	tcp := wire.TCP(frame[h.L4:h.End])
	for it := tcp.OptionIter(); it.Next(); {
		if mss, ok := it.MSS(); ok {
			at := wire.TCPLen + it.Offset + 2
			tcp[at], tcp[at+1] = 1300>>8, 1300&0xff
			tcp.SetChecksum(wire.UpdateChecksum16(tcp.Checksum(), mss, 1300))
		}
	}
	fmt.Println(wire.Summary(frame), wire.VerifyL4(frame, &h))
	// Output:
	// tcp 10.0.0.1:1234 > 10.0.0.2:80 true
	// IP 10.0.0.1.1234 > 10.0.0.2.80: Flags [S], seq 1, win 64240, options [mss 1300], length 0 true
}
