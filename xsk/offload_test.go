package xsk_test

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"penstock/internal/lab"
	"penstock/internal/lab/labtest"
	"penstock/xsk"
)

func TestRequestChecksumBounds(t *testing.T) {
	u := newUMEM(t, xsk.UMEMOptions{Frames: 2, TxMetadataLen: 24})
	without := newUMEM(t, xsk.UMEMOptions{Frames: 2})
	for _, c := range []struct {
		name          string
		u             *xsk.UMEM
		d             xsk.Desc
		start, offset int
		want          bool
	}{
		{"fits", u, xsk.Desc{Addr: 24, Len: 60}, 34, 6, true},
		{"last two bytes", u, xsk.Desc{Addr: 2048 + 256, Len: 60}, 34, 24, true},
		{"one beyond", u, xsk.Desc{Addr: 256, Len: 60}, 34, 25, false},
		{"start at the end", u, xsk.Desc{Addr: 256, Len: 60}, 60, 0, false},
		{"start beyond", u, xsk.Desc{Addr: 256, Len: 60}, 61, 0, false},
		{"negative start", u, xsk.Desc{Addr: 256, Len: 60}, -1, 6, false},
		{"negative offset", u, xsk.Desc{Addr: 256, Len: 60}, 34, -1, false},
		{"offset overflows", u, xsk.Desc{Addr: 256, Len: 60}, 34, 1<<63 - 1, false},
		{"no room before", u, xsk.Desc{Addr: 23, Len: 60}, 34, 6, false},
		{"no room in the second frame", u, xsk.Desc{Addr: 2048 + 8, Len: 60}, 34, 6, false},
		{"outside", u, xsk.Desc{Addr: 4096 + 256, Len: 60}, 34, 6, false},
		{"no metadata", without, xsk.Desc{Addr: 256, Len: 60}, 34, 6, false},
	} {
		d := c.d
		if got := c.u.RequestChecksum(&d, c.start, c.offset); got != c.want || (d.Options != 0) != c.want || d.Addr != c.d.Addr || d.Len != c.d.Len {
			t.Errorf("%s: %v, %+v; want %v", c.name, got, d, c.want)
		}
	}
}

// TestRequestChecksum sends UDP packets with only the pseudo-header's sum in
// the checksum field to a real UDP socket: with the request it takes them,
// without it drops them.
func TestRequestChecksum(t *testing.T) {
	t.Run("computed by the kernel", func(t *testing.T) { requestChecksum(t, lab.VethOptions{}) })
	t.Run("left to the device", func(t *testing.T) { requestChecksum(t, lab.VethOptions{KernelOffloads: true}) })
}

func requestChecksum(t *testing.T, veth lab.VethOptions) {
	l := labtest.NewForTest(t)
	host, err := l.NS("host")
	if err != nil {
		t.Fatal(err)
	}
	box, err := l.NS("box")
	if err != nil {
		t.Fatal(err)
	}
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	dst, src := netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("10.99.0.2")
	err = l.Veth(lab.End{NS: box, Name: "x", NoIPv6: true},
		lab.End{NS: host, Name: "eth0", MAC: mac, Addrs: []netip.Prefix{netip.PrefixFrom(dst, 24)}, NoIPv6: true}, veth)
	if err != nil {
		t.Fatal(err)
	}
	in, err := host.ListenPacket("udp", "10.99.0.1:7000")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	idx, err := box.LinkIndex("x")
	if err != nil {
		t.Fatal(err)
	}
	u := newUMEM(t, xsk.UMEMOptions{Frames: 8, TxMetadataLen: 24})
	var s *xsk.Socket
	if err := box.Do(func() (err error) { s, err = u.Open(idx, 0, nil); return err }); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	pool := u.NewPool(0, 8)

	send := func(payload string, request bool) {
		t.Helper()
		a := take(t, pool, 1)[0] + 64
		b := udpPacket(u.Frame(a)[64:64], mac, src, dst, payload)
		d := xsk.Desc{Addr: a, Len: uint32(len(b))}
		if request && !u.RequestChecksum(&d, 34, 6) {
			t.Fatal("the request was refused")
		}
		if s.Transmit([]xsk.Desc{d}) != 1 {
			t.Fatal("the tx ring is full")
		}
		if err := s.Kick(); err != nil {
			t.Fatal(err)
		}
	}
	recv := func(wait time.Duration) (string, error) {
		var buf [2048]byte
		if err := in.SetReadDeadline(time.Now().Add(wait)); err != nil {
			t.Fatal(err)
		}
		n, _, err := in.ReadFrom(buf[:])
		return string(buf[:n]), err
	}
	send("without", false)
	send("with", true)
	if got, err := recv(5 * time.Second); err != nil || got != "with" {
		t.Errorf("got %q, %v; want the packet with a request only", got, err)
	}
	if got, err := recv(50 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %q, %v; want nothing more", got, err)
	}
	noRefusals(t, s)
}

// udpPacket appends an Ethernet, IPv4 and UDP packet whose UDP checksum is only
// the pseudo-header's sum.
func udpPacket(b []byte, dstMAC net.HardwareAddr, src, dst netip.Addr, payload string) []byte {
	udpLen := 8 + len(payload)
	b = append(append(b, dstMAC...), 2, 0, 0, 0, 0, 8, 8, 0)
	ip := len(b)
	b = append(b, 0x45, 0, 0, byte(20+udpLen), 0, 1, 0, 0, 64, 17, 0, 0)
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(b[ip+10:], ^sum16(b[ip:ip+20], 0))
	pseudo := sum16(b[ip+12:ip+20], uint32(17+udpLen))
	b = append(b, 0x1b, 0x58, 0x1b, 0x58, 0, byte(udpLen), byte(pseudo>>8), byte(pseudo))
	return append(b, payload...)
}

// sum16 is the Internet checksum of an even number of bytes, not inverted.
func sum16(b []byte, sum uint32) uint16 {
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}
