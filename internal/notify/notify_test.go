package notify

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// listen is a service manager.
func listen(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	return conn
}

func TestTell(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), "@penstock-notify-test-" + strconv.Itoa(os.Getpid())} {
		server := listen(t, name)
		t.Setenv("NOTIFY_SOCKET", name)
		m, err := Open()
		if err != nil || m == nil {
			t.Fatal(m, err)
		}
		for _, c := range []struct {
			tell func() error
			want string
		}{
			{func() error { return m.Ready("2 ports") }, "^READY=1\nSTATUS=2 ports$"},
			{m.Reloading, "^RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*$"},
			{func() error { return m.Stopping("draining") }, "^STOPPING=1\nSTATUS=draining$"},
			{m.Alive, "^WATCHDOG=1$"},
		} {
			if err := c.tell(); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 1000)
			n, err := server.Read(b)
			if err != nil || !regexp.MustCompile(c.want).Match(b[:n]) {
				t.Errorf("got %q, %v, want %q", b[:n], err, c.want)
			}
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if err := m.Alive(); err == nil {
			t.Error("telling after Close is no error")
		}
	}
}

func TestNoManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	m, err := Open()
	if m != nil || err != nil || m.Ready("x") != nil || m.Close() != nil {
		t.Errorf("%v, %v", m, err)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "none"))
	if m, err := Open(); m != nil || err == nil {
		t.Errorf("a socket that is not there: %v, %v", m, err)
	}
}

func TestWatchdog(t *testing.T) {
	for _, c := range []struct {
		usec, pid string
		want      time.Duration
	}{
		{"", "", 0}, {"x", "", 0}, {"-5", "", 0}, {"99999999999999999", "", 0},
		{"30000000", "", 30 * time.Second}, {"30000000", strconv.Itoa(os.Getpid()), 30 * time.Second}, {"30000000", "1", 0},
	} {
		t.Setenv("WATCHDOG_USEC", c.usec)
		t.Setenv("WATCHDOG_PID", c.pid)
		if got := Watchdog(); got != c.want {
			t.Errorf("%q, %q: got %v, want %v", c.usec, c.pid, got, c.want)
		}
	}
}
