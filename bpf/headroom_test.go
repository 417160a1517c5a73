package bpf

import (
	"bytes"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"penstock/internal/lab/labtest"
)

// A frame leaves make_headroom as it came, whether it had room in front or none. The kernel does not run programs of a DEVMAP for a test,
// so it is loaded as another one, and reached by a tail call behind the program that takes the room.
func TestMakeHeadroom(t *testing.T) {
	labtest.NeedRoot(t)
	// XDP_PACKET_HEADROOM, less sizeof(struct xdp_frame), which stays free.
	const room = 256 - 40
	for _, c := range []struct {
		name string
		take int
	}{{"room", 0}, {"a little room", room - 12}, {"no room", room}} {
		t.Run(c.name, func(t *testing.T) {
			spec, err := loadSteer()
			if err != nil {
				t.Fatal(err)
			}
			spec.Programs["make_headroom"].AttachType = ebpf.AttachNone
			var obj struct {
				MakeHeadroom *ebpf.Program `ebpf:"make_headroom"`
			}
			if err := spec.LoadAndAssign(&obj, nil); err != nil {
				t.Fatalf("%+v", err)
			}
			defer obj.MakeHeadroom.Close()
			next, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer next.Close()
			if err := next.Put(uint32(0), obj.MakeHeadroom); err != nil {
				t.Fatal(err)
			}
			take, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
				asm.Mov.Reg(asm.R6, asm.R1),
				asm.Mov.Imm(asm.R2, -int32(c.take)),
				asm.FnXdpAdjustHead.Call(),
				asm.Mov.Reg(asm.R1, asm.R6),
				asm.LoadMapPtr(asm.R2, next.FD()),
				asm.Mov.Imm(asm.R3, 0),
				asm.FnTailCall.Call(),
				asm.Mov.Imm(asm.R0, 0),
				asm.Return(),
			}})
			if err != nil {
				t.Fatalf("%+v", err)
			}
			defer take.Close()
			for _, size := range []int{60, 1514, 3200} {
				packet := make([]byte, size)
				for i := range packet {
					packet[i] = byte(i * 7)
				}
				out := make([]byte, 8192)
				o := ebpf.RunOptions{Data: packet, DataOut: out}
				action, err := take.Run(&o)
				if err != nil {
					t.Fatal(err)
				}
				if action != 2 || len(o.DataOut) != c.take+size || !bytes.Equal(o.DataOut[c.take:], packet) {
					t.Errorf("%d bytes: action %d, want 2 (XDP_PASS); %d bytes came out, want %d, the same", size, action, len(o.DataOut), c.take+size)
				}
			}
		})
	}
}
