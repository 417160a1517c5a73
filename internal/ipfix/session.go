package ipfix

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// quiet is how long after the last refusal a collector over UDP counts as there
// again.
const quiet = 5 * time.Second

var past = time.Unix(1, 0)

// session is what the exporter's goroutine keeps: a connection and what the
// collector was told over it (a transport session of RFC 7011, 2).
type session struct {
	conn  net.Conn
	cut   func() bool // takes back what ends a write at the end
	gone  chan error  // the reader of conn has ended, or was told of a refusal
	pause time.Duration
	seq   uint32 // records sent

	m       message
	told    time.Time // when templates were sent; zero: they are due
	refused time.Time // last
	left    *Flow     // did not fit into the last message
}

// run is the body of the exporter's goroutine.
func (e *Exporter) run() {
	defer close(e.done)
	e.pause = e.o.Retry
	again := time.NewTicker(e.spec.Templates)
	defer again.Stop()
	for e.quit.Err() == nil {
		if e.conn == nil {
			e.dial(e.quit)
			continue
		}
		if e.left != nil {
			e.collect(e.o.Linger)
			e.flush()
			continue
		}
		select {
		case f := <-e.queue:
			e.left = &f
		case err := <-e.gone:
			e.lost(err)
		case <-again.C:
			if e.network == "udp" {
				e.told, e.m.limit = time.Time{}, e.limit()
				e.m.reset()
				e.m.templates()
				e.send()
			}
		case <-e.quit.Done():
		}
	}
	e.rest()
}

// rest sends what is queued at the end, and drops what cannot be sent.
func (e *Exporter) rest() {
	if e.conn == nil && (e.left != nil || len(e.queue) > 0) {
		e.dial(e.end)
	}
	for e.conn != nil && e.end.Err() == nil && (e.left != nil || len(e.queue) > 0) {
		e.collect(0)
		e.flush()
	}
	n := uint64(len(e.queue))
	for range n {
		<-e.queue
	}
	if e.left != nil {
		n++
	}
	e.accepted.Add(-n)
	e.drops.Add(n)
	if e.conn != nil {
		e.hangUp()
	}
}

func (e *Exporter) hangUp() {
	e.cut()
	_ = e.conn.Close() // broken, or everything has been written
	e.conn = nil
}

// dial makes one attempt, and pauses after one that did not succeed.
func (e *Exporter) dial(until context.Context) {
	ctx, cancel := context.WithTimeout(until, e.o.WriteWait)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, e.network, e.addr)
	if err != nil {
		if until.Err() == nil {
			e.trouble(err)
		}
		e.wait()
		return
	}
	e.conn, e.seq, e.told, e.gone = conn, 0, time.Time{}, make(chan error, 1)
	e.m.limit = e.limit()
	if e.network == "tcp" {
		e.well()
	}
	go watch(conn, e.gone)
	// A write to a collector that does not read ends with the exporter.
	e.cut = context.AfterFunc(e.end, func() { _ = conn.SetWriteDeadline(past) })
}

func (e *Exporter) wait() {
	t := time.NewTimer(e.pause)
	defer t.Stop()
	e.pause = min(2*e.pause, 5*time.Second)
	select {
	case <-t.C:
	case <-e.quit.Done():
	}
}

// watch reads what a collector never sends, to be told when it goes away: the
// end of a TCP connection, or an ICMP port unreachable.
func watch(conn net.Conn, gone chan<- error) {
	buf := make([]byte, 512)
	for {
		_, err := conn.Read(buf)
		if err == nil {
			continue
		}
		select {
		case gone <- err:
		default:
		}
		if !isRefusal(err) {
			return
		}
	}
}

// lost acts on what watch or a write has found.
func (e *Exporter) lost(err error) {
	if errors.Is(err, io.EOF) {
		err = errors.New("the collector has closed the connection")
	}
	e.trouble(err)
	if isRefusal(err) && e.network == "udp" {
		// The socket is as good as before; what was sent is lost, templates among it.
		e.told, e.refused = time.Time{}, time.Now()
		return
	}
	e.hangUp()
	e.wait()
}

// limit is how long a message may be on the way there is.
func (e *Exporter) limit() int {
	limit := e.spec.MessageSize
	c, ok := e.conn.(*net.UDPConn)
	if !ok {
		return limit
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return limit
	}
	six := c.RemoteAddr().(*net.UDPAddr).IP.To4() == nil
	_ = raw.Control(func(fd uintptr) { // fails only on a closed socket, and so does the write
		level, option, headers := unix.IPPROTO_IP, unix.IP_MTU, 20+8
		if six {
			level, option, headers = unix.IPPROTO_IPV6, unix.IPV6_MTU, 40+8
		}
		if mtu, err := unix.GetsockoptInt(int(fd), level, option); err == nil {
			limit = max(min(limit, mtu-headers), MinMessage)
		}
	})
	return limit
}

// collect fills a message, for at most linger.
func (e *Exporter) collect(linger time.Duration) {
	e.m.reset()
	if e.told.IsZero() {
		e.m.templates()
	}
	if e.left != nil {
		e.m.add(e.left) // any flow fits behind the templates: see MinMessage
		e.left = nil
	}
	var late <-chan time.Time
	if linger > 0 {
		t := time.NewTimer(linger)
		defer t.Stop()
		late = t.C
	}
	for {
		var f Flow
		if late == nil {
			select {
			case f = <-e.queue:
			default:
				return
			}
		} else {
			select {
			case f = <-e.queue:
			case <-late:
				return
			case <-e.quit.Done():
				return
			}
		}
		if !e.m.add(&f) {
			e.left = &f
			return
		}
	}
}

// flush sends the message, and what did not fit into it.
func (e *Exporter) flush() {
	e.send()
	for e.left != nil && e.conn != nil {
		e.collect(0)
		e.send()
	}
}

func (e *Exporter) send() {
	templates := e.told.IsZero()
	b := e.m.finish(time.Now(), e.seq, e.spec.Domain)
	if e.network == "tcp" {
		_ = e.conn.SetWriteDeadline(time.Now().Add(e.o.WriteWait)) // fails only on a closed connection, and so does the write
	}
	if e.end.Err() != nil {
		_ = e.conn.SetWriteDeadline(past)
	}
	_, err := e.conn.Write(b)
	if err != nil && isRefusal(err) && e.network == "udp" {
		// It is about the message before; this one has not been sent.
		e.lost(err)
		_, err = e.conn.Write(b)
	}
	n := e.m.records
	e.m.reset()
	if err != nil {
		e.failed.Add(uint64(n))
		e.lost(err)
		return
	}
	// Who has just refused templates may not have been there for these either.
	if templates && time.Since(e.refused) > time.Second {
		e.told = time.Now()
	}
	e.seq += n
	e.sent.Add(uint64(n))
	e.pause = e.o.Retry
	if e.network == "tcp" || time.Since(e.refused) > quiet {
		e.well()
	}
}

func isRefusal(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
