// Package notify tells a service manager how the process is: the protocol of
// sd_notify(3), datagrams to the socket in NOTIFY_SOCKET.
//
// Its one trap: without a service manager there is no socket, and telling
// nobody is no error. A nil *Manager does that.
package notify

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Manager is the service manager that started this process.
type Manager struct{ conn *net.UnixConn }

// Open connects to the service manager of the environment; nil if there is none.
func Open() (*Manager, error) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil, nil
	}
	// A leading '@' is the abstract namespace, for Go as for systemd.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("connect to NOTIFY_SOCKET: %w", err)
	}
	return &Manager{conn}, nil
}

// Tell sends assignments in one datagram: "READY=1", "STATUS=...". It is safe for
// several goroutines, and waits for nothing but room in the socket.
func (m *Manager) Tell(assignments ...string) error {
	if m == nil {
		return nil
	}
	if _, err := m.conn.Write([]byte(strings.Join(assignments, "\n"))); err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	return nil
}

// Ready says that the start, or a reload, is done.
func (m *Manager) Ready(status string) error { return m.Tell("READY=1", "STATUS="+status) }

// Reloading says that a reload has begun; Ready ends it.
func (m *Manager) Reloading() error {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return fmt.Errorf("read clock: %w", err)
	}
	return m.Tell("RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", ts.Nano()/1000))
}

// Stopping says that the process is on its way out.
func (m *Manager) Stopping(status string) error { return m.Tell("STOPPING=1", "STATUS="+status) }

// Alive feeds the service manager's watchdog.
func (m *Manager) Alive() error { return m.Tell("WATCHDOG=1") }

// Close ends the connection.
func (m *Manager) Close() error {
	if m == nil {
		return nil
	}
	return m.conn.Close()
}

// Watchdog is within what time the service manager wants to hear Alive; 0 if it
// does not, or if it asks another process.
func Watchdog() time.Duration {
	usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || usec <= 0 || usec > int64(24*time.Hour/time.Microsecond) {
		return 0
	}
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	return time.Duration(usec) * time.Microsecond
}
