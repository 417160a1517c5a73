package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"penstock/internal/lab"
)

// TestAdoptSpliced: a new daemon translates what XDP leaves alone of connections
// that were spliced before it: here packets with IP options.
func TestAdoptSpliced(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{})
	r.config("open", "", spliceChain)
	r.tcpServer(7000)
	a := r.start()
	c, err := r.Client.Dial("tcp", r.addr(false, 7000))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(60 * time.Second))
	echo := func(text string) {
		t.Helper()
		got := make([]byte, len(text))
		io.WriteString(c, text)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
			t.Fatalf("%s: got %q, %v", text, got, err)
		}
	}
	io.WriteString(c, "echo\n")
	echo("before")
	r.eventually("it is offloaded", func() error {
		if a.counter("splice_offloaded") == 0 {
			return errors.New("it is not")
		}
		return nil
	})
	a.kill()
	echo("without a daemon")
	a = r.start()
	r.eventually("it is adopted", func() error {
		if n := a.counter("splice_adopted"); n != 1 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if e := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptString(int(fd), unix.IPPROTO_IP, unix.IP_OPTIONS, "\x01\x01\x01\x00")
	}); e != nil || err != nil {
		t.Fatal(e, err)
	}
	echo("with options")
	if n := a.counter("translated_slow"); n == 0 {
		t.Error("nothing was translated in user space")
	}
	if f, err := a.flow(r.addr(false, 7000)); err != nil || f.Depth != "offload" || f.State != "spliced" {
		t.Errorf("%+v, %v", f, err)
	}
	c.Close()
	a.stop()
}
