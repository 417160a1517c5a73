package traffic

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
)

const patternBlock = 4096

// Pattern is an endless stream of pseudo-random bytes that depend on the seed and the
// position only. It is cheap, and no two of its blocks are equal: bytes that are lost,
// doubled or swapped never go unseen.
type Pattern struct {
	block [patternBlock]byte // the first 8 bytes are the block's number, big endian
	pos   int64
}

// NewPattern returns the pattern of a seed, at its beginning.
func NewPattern(seed uint64) *Pattern {
	p := &Pattern{}
	r := rand.New(rand.NewPCG(seed, 0x70656e73746f636b)) // "penstock"
	for i := 0; i < patternBlock; i += 8 {
		binary.BigEndian.PutUint64(p.block[i:], r.Uint64())
	}
	return p
}

// next returns the bytes from the position on, up to the block's end.
func (p *Pattern) next() []byte {
	binary.BigEndian.PutUint64(p.block[:], uint64(p.pos/patternBlock))
	return p.block[p.pos%patternBlock:]
}

// Read fills b; it never fails and never ends.
func (p *Pattern) Read(b []byte) (int, error) {
	for rest := b; len(rest) > 0; {
		n := copy(rest, p.next())
		p.pos += int64(n)
		rest = rest[n:]
	}
	return len(b), nil
}

// Checker is a writer that compares what is written with a pattern, from its
// beginning, and fails at the first byte that differs.
type Checker struct{ want *Pattern }

// NewChecker returns a checker for the pattern of a seed.
func NewChecker(seed uint64) *Checker { return &Checker{NewPattern(seed)} }

// Write compares b with what is due.
func (c *Checker) Write(b []byte) (int, error) {
	for i := 0; i < len(b); {
		want := c.want.next()
		n := min(len(want), len(b)-i)
		for j := range n {
			if b[i+j] != want[j] {
				return i + j, fmt.Errorf("check bytes: at %d got %#02x, want %#02x", c.want.pos+int64(j), b[i+j], want[j])
			}
		}
		c.want.pos += int64(n)
		i += n
	}
	return len(b), nil
}

// Checked returns how many bytes were as they should be.
func (c *Checker) Checked() int64 { return c.want.pos }

var (
	sumMu sync.Mutex
	sums  = map[[2]uint64]string{}
)

const maxSums = 1024

// Sum returns the SHA-256 of a pattern's first n bytes in hexadecimal. Sums are
// remembered, up to a bound.
func Sum(seed uint64, n int64) string {
	key := [2]uint64{seed, uint64(n)}
	sumMu.Lock()
	sum, known := sums[key]
	sumMu.Unlock()
	if known {
		return sum
	}
	h := sha256.New()
	io.CopyN(h, NewPattern(seed), n) // neither side can fail
	sum = hex.EncodeToString(h.Sum(nil))
	sumMu.Lock()
	if len(sums) < maxSums {
		sums[key] = sum
	}
	sumMu.Unlock()
	return sum
}
