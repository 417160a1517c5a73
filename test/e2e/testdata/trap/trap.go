// Package trap is a packet stage that does what a packet tells it: panic, hang,
// or take all addresses or all memory. It is in no binary but the one that the tests build with it.
package trap

import (
	"bytes"

	"penstock/pipeline"
)

type Config struct{}

func Descriptor() pipeline.Descriptor[Config] {
	return pipeline.Descriptor[Config]{
		Kind: "trap", Summary: "does what a packet tells it", Default: func() Config { return Config{} },
		Validate: func(*Config, *pipeline.Issues) {},
		New:      func(Config, *pipeline.Env) (pipeline.Stage, error) { return &stage{}, nil },
	}
}

type stage struct {
	spun  uint64
	eaten [][]byte
}

func (s *stage) Process(b *pipeline.Batch) {
	for p := range b.Live() {
		p.Continue()
		_, what, ok := bytes.Cut(p.Bytes(), []byte("TRAP:"))
		switch {
		case !ok:
		case bytes.HasPrefix(what, []byte("panic")):
			panic("the trap was told to")
		case bytes.HasPrefix(what, []byte("crash")):
			go panic("the trap was told to, where nobody recovers")
		case bytes.HasPrefix(what, []byte("hang")):
			for ; ; s.spun++ {
			}
		case bytes.HasPrefix(what, []byte("eat")):
			for { // addresses
				s.eaten = append(s.eaten, make([]byte, 64<<20))
			}
		case bytes.HasPrefix(what, []byte("fill")):
			for { // pages
				b := make([]byte, 1<<20)
				for i := 0; i < len(b); i += 4096 {
					b[i] = 1
				}
				s.eaten = append(s.eaten, b)
			}
		}
	}
}
