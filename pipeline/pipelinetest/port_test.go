package pipelinetest

import (
	"testing"

	"penstock/pipeline"
)

func TestMemoryPort(t *testing.T) {
	Port(t, func(t *testing.T, in [][]byte) *PortUnderTest {
		arena, err := pipeline.NewArena(make([]byte, 512*2048), 2048, 256, 1)
		if err != nil {
			t.Fatal(err)
		}
		const limit = 220
		m := pipeline.NewMemoryPort(pipeline.PortInfo{Name: "memory"}, arena.Pool(0), limit)
		for _, f := range in {
			if !m.Inject(f) {
				t.Fatal("the queue is full")
			}
		}
		var sent [][]byte
		return &PortUnderTest{
			Port: m, Pool: arena.Pool(0), Waits: true, Limit: limit,
			Sent: func() [][]byte { sent = append(sent, m.Sent()...); return sent },
		}
	})
}
