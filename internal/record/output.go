package record

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"syscall"
	"time"
)

// linesIn returns how many whole lines the first n bytes hold.
func linesIn(ends []int, n int) int { return sort.SearchInts(ends, n+1) }

// fileOutput appends to a file. What cannot be written is lost: a full disk
// must not fill the memory too.
type fileOutput struct {
	path string
	torn bool // the last write ended inside a line

	mu       sync.Mutex // guards f and deadline against interrupt
	f        *os.File
	deadline time.Time
}

// use makes f the open file and returns the one before it.
func (o *fileOutput) use(f *os.File) (old *os.File) {
	o.mu.Lock()
	defer o.mu.Unlock()
	old, o.f, o.torn = o.f, f, false
	_ = f.SetWriteDeadline(o.deadline) // pipes have deadlines, files need none
	return old
}

func (o *fileOutput) open() error {
	// O_NONBLOCK keeps a FIFO without a reader from blocking; files ignore it.
	// The runtime adds O_CLOEXEC.
	f, err := os.OpenFile(o.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY|syscall.O_NONBLOCK, 0o640)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("directory %s does not exist", filepath.Dir(o.path))
		}
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return err
	}
	if old := o.use(f); old != nil {
		_ = old.Close() // all of it has been written; there is nothing to do about an error
	}
	return nil
}

func (o *fileOutput) ready() bool { return o.f != nil }

func (o *fileOutput) write(buf []byte, ends []int) (done, failed int, err error) {
	if o.torn {
		if _, err := o.f.Write([]byte("\n")); err != nil {
			return len(ends), len(ends), pathCause(err)
		}
		o.torn = false
	}
	n, err := o.f.Write(buf)
	if err == nil {
		return len(ends), 0, nil
	}
	o.torn = n > 0 && !bytes.HasSuffix(buf[:n], []byte("\n"))
	return len(ends), len(ends) - linesIn(ends, n), pathCause(err)
}

func (o *fileOutput) interrupt(deadline time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.deadline = deadline
	if o.f != nil {
		_ = o.f.SetWriteDeadline(deadline)
	}
}

func (o *fileOutput) close() error { return pathCause(o.f.Close()) }

// pathCause takes the path out of an error whose reader knows it.
func pathCause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return fmt.Errorf("%s: %w", pe.Op, pe.Err)
	}
	return err
}

// stdoutOutput writes to a duplicate of standard output: on descriptor 1 itself
// a reader that has gone ends a Go program by SIGPIPE, and a gateway must
// outlive the pager that looked at its events.
type stdoutOutput struct {
	from *os.File
	fileOutput
}

func (o *stdoutOutput) open() error {
	if o.f != nil {
		return nil
	}
	fd, err := dupCloexec(o.from)
	if err != nil {
		return fmt.Errorf("duplicate standard output: %w", err)
	}
	o.use(os.NewFile(uintptr(fd), "stdout"))
	return nil
}

func dupCloexec(f *os.File) (fd int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	cerr := raw.Control(func(from uintptr) {
		r, _, errno := syscall.Syscall(syscall.SYS_FCNTL, from, syscall.F_DUPFD_CLOEXEC, 3)
		if fd = int(r); errno != 0 {
			err = errno
		}
	})
	return fd, errors.Join(cerr, err)
}

// socketOutput sends to a Unix socket, one event in each datagram, or as a
// stream; which of the two is what listens there. It is dialled again when the
// other end goes away.
type socketOutput struct {
	path string

	mu       sync.Mutex // guards conn and deadline against interrupt
	conn     net.Conn
	deadline time.Time
	datagram bool
}

func (o *socketOutput) open() error {
	for _, network := range []string{"unixgram", "unix"} {
		conn, err := net.DialTimeout(network, o.path, time.Second)
		if errors.Is(err, syscall.EPROTOTYPE) && network == "unixgram" {
			continue
		}
		if err != nil {
			var oe *net.OpError
			if errors.As(err, &oe) {
				err = oe.Err
			}
			return err
		}
		o.mu.Lock()
		o.conn, o.datagram = conn, network == "unixgram"
		_ = conn.SetWriteDeadline(o.deadline) // fails only on a closed connection, and so does the write
		o.mu.Unlock()
		return nil
	}
	return syscall.EPROTOTYPE
}

func (o *socketOutput) ready() bool { return o.conn != nil }

func (o *socketOutput) write(buf []byte, ends []int) (done, failed int, err error) {
	if o.datagram {
		return o.send(buf, ends)
	}
	n, err := o.conn.Write(buf)
	if err != nil {
		o.drop()
		return linesIn(ends, n), 0, err
	}
	return len(ends), 0, nil
}

// send sends each line as a datagram.
func (o *socketOutput) send(buf []byte, ends []int) (done, failed int, err error) {
	start := 0
	for _, end := range ends {
		_, werr := o.conn.Write(buf[start:end])
		switch {
		case errors.Is(werr, syscall.EMSGSIZE):
			failed++
			err = werr
		case werr != nil:
			o.drop()
			return done, failed, werr
		}
		start = end
		done++
	}
	return done, failed, err
}

func (o *socketOutput) drop() {
	o.mu.Lock()
	_ = o.conn.Close() // it is broken already
	o.conn = nil
	o.mu.Unlock()
}

func (o *socketOutput) interrupt(deadline time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.deadline = deadline
	if o.conn != nil {
		_ = o.conn.SetWriteDeadline(deadline)
	}
}

func (o *socketOutput) close() error {
	if o.conn == nil {
		return nil
	}
	return o.conn.Close()
}
