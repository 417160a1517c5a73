package stack_test

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"
)

const dialTime = 5 * time.Second

// noise returns n bytes that are the same for the same seed.
func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// serveOnce accepts one connection, and hands it to fn on a goroutine.
func serveOnce(l net.Listener, fn func(net.Conn)) <-chan error {
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			fn(c)
			c.Close()
		}
		done <- err
	}()
	return done
}

func TestTransfer(t *testing.T) {
	const size = 4 << 20
	for _, tc := range []struct {
		name           string
		client, server netip.Addr
		vlan           []uint16
	}{
		{"v4", client4, server4, nil},
		{"v6", client6, server6, nil},
		{"v4 vlan", client4, server4, []uint16{0x6000 | 100}},
		{"v6 two vlans", client6, server6, []uint16{7, 200}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBed(t, bedOptions{vlan: tc.vlan})
			up, down := noise(1, size), noise(2, size)
			to := addr(tc.server, 80)
			l := b.server.listen(t, to)
			var got []byte
			served := serveOnce(l, func(c net.Conn) {
				wrote := make(chan struct{})
				go func() { c.Write(down); close(wrote) }()
				got, _ = io.ReadAll(io.LimitReader(c, size))
				<-wrote
			})
			c, err := b.client.dial(addr(tc.client, 0), to, dialTime)
			if err != nil {
				t.Fatal(err)
			}
			go c.Write(up)
			back := make([]byte, size)
			if _, err := io.ReadFull(c, back); err != nil {
				t.Fatal(err)
			}
			if err := <-served; err != nil {
				t.Fatal(err)
			}
			c.Close()
			if sha256.Sum256(got) != sha256.Sum256(up) {
				t.Error("what the server got differs from what the client sent")
			}
			if !bytes.Equal(back, down) {
				t.Error("what the client got differs from what the server sent")
			}
			b.wantCount("accepted", 1)
			b.wantCount("bytes_to_server", size)
			b.wantCount("bytes_to_client", size)
		})
	}
}

// TestPortIsNotReserved: an open connection takes nothing in netstack's books of
// ports, which would be more than its flow does.
func TestPortIsNotReserved(t *testing.T) {
	b := newBed(t, bedOptions{})
	for _, tc := range []struct{ client, server netip.Addr }{{client4, server4}, {client6, server6}} {
		to := addr(tc.server, 80)
		served := serveOnce(b.server.listen(t, to), func(c net.Conn) { io.Copy(io.Discard, c) })
		from := addr(tc.client, 4000)
		c, err := b.client.dial(from, to, dialTime)
		if err != nil {
			t.Fatal(err)
		}
		if b.stage.Reserved(from) {
			t.Errorf("port of %v is reserved", from)
		}
		c.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}
