package closedloop_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"penstock/internal/wire"
	"penstock/pcap"
	"penstock/pipeline/pipelinetest"
)

// talk writes the packets of a connection as a capture would have them.
type talk struct {
	client, server string
	seq            [2]uint32
	frames         [][]byte
}

func newTalk(i int, opts ...pipelinetest.Option) *talk {
	k := &talk{
		client: fmt.Sprintf("10.1.%d.%d:%d", i>>8&0xff, i&0xff, 20000+i), server: "10.2.0.1:80",
		seq: [2]uint32{uint32(i) * 0x9e3779b1, uint32(i)*0x85ebca6b + 7},
	}
	if i%3 == 1 {
		k.client, k.server = fmt.Sprintf("[2001:db8::%x]:%d", i+1, 20000+i), "[2001:db8::ffff]:443"
	}
	syn := append([]pipelinetest.Option{pipelinetest.MSS(1400)}, opts...)
	k.send(0, wire.FlagSYN, 0, syn...)
	k.send(1, wire.FlagSYN|wire.FlagACK, 0, syn...)
	k.send(0, wire.FlagACK, 0)
	return k
}

// send lets end from send n bytes and flags.
func (k *talk) send(from int, flags wire.TCPFlags, n int, opts ...pipelinetest.Option) {
	src, dst := k.client, k.server
	if from == 1 {
		src, dst = dst, src
	}
	if n > 0 {
		opts = append(opts, pipelinetest.Payload(bytesAt(from, k.seq[from], n)))
	}
	if flags&wire.FlagACK != 0 {
		opts = append(opts, pipelinetest.Ack(k.seq[1-from]))
	}
	k.frames = append(k.frames, pipelinetest.TCP(src, dst, flags, k.seq[from], opts...))
	k.seq[from] += uint32(n)
	if flags&(wire.FlagSYN|wire.FlagFIN) != 0 {
		k.seq[from]++
	}
}

// bytesAt returns bytes that are others at each place of each direction.
func bytesAt(from int, seq uint32, n int) string {
	b := make([]byte, n)
	for i := range b {
		x := (seq + uint32(i)) * 2654435761
		b[i] = byte(x>>24) ^ byte(x>>11) ^ byte(from)
	}
	return string(b)
}

// ends closes the connection in one of the ways that there are.
func (k *talk) ends(how int) {
	const fin, ack, rst = wire.FlagFIN, wire.FlagACK, wire.FlagRST
	switch how % 5 {
	case 0:
		k.send(0, fin|ack, 0)
		k.send(1, fin|ack, 0)
		k.send(0, ack, 0)
	case 1: // the server first, with bytes of the client behind
		k.send(1, fin|ack, 0)
		k.send(0, ack, 500)
		k.send(0, fin|ack, 0)
		k.send(1, ack, 0)
	case 2: // a half-closed connection
		k.send(0, fin|ack, 0)
		k.send(1, ack, 3000%1400)
		k.send(1, fin|ack, 0)
		k.send(0, ack, 0)
	case 3:
		k.send(0, rst|ack, 0)
	case 4:
		// the capture ends first
	}
}

// conversations returns a capture of n connections, interleaved.
func conversations(t testing.TB, seed uint64, n int) []byte {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, seed))
	var talks []*talk
	for i := range n {
		var opts []pipelinetest.Option
		if rng.IntN(4) > 0 {
			opts = append(opts, pipelinetest.SACKPermitted(), pipelinetest.WindowScale(uint8(rng.IntN(9))))
		}
		if rng.IntN(2) > 0 {
			opts = append(opts, pipelinetest.Timestamps(1, 0))
		}
		k := newTalk(i, opts...)
		for range rng.IntN(12) {
			from := rng.IntN(2)
			for range 1 + rng.IntN(6) {
				k.send(from, wire.FlagACK|wire.FlagPSH, 1+rng.IntN(1400))
			}
			k.send(1-from, wire.FlagACK, 0)
		}
		k.ends(rng.IntN(5))
		talks = append(talks, k)
	}
	var out bytes.Buffer
	w, err := pcap.NewWriter(&out, pcap.WriterOptions{Interfaces: []pcap.Interface{{Name: "any"}}})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC).UnixNano()
	for left := talks; len(left) > 0; {
		i := rng.IntN(min(len(left), 20))
		k := left[i]
		now += int64(rng.IntN(1e6))
		if err := w.WritePacket(0, now, len(k.frames[0]), k.frames[0], nil); err != nil {
			t.Fatal(err)
		}
		if k.frames = k.frames[1:]; len(k.frames) == 0 {
			left = append(left[:i:i], left[i+1:]...)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
