package flowtab_test

import (
	"encoding/binary"

	"penstock/internal/wire"
)

// flow returns the i-th of many different flows.
func flow(i int) wire.Flow {
	f := wire.Flow{Proto: wire.ProtoTCP, SrcPort: uint16(1024 + i%50000), DstPort: 80}
	f.Src[10], f.Src[11], f.Dst[10], f.Dst[11] = 0xff, 0xff, 0xff, 0xff
	binary.BigEndian.PutUint32(f.Src[12:], 10<<24|uint32(i/50000))
	binary.BigEndian.PutUint32(f.Dst[12:], 10<<24|1<<16|uint32(i%7))
	return f
}
