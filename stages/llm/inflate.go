package llm

import (
	"compress/gzip"
	"compress/zlib"
	"errors"
	"io"
	"iter"
)

// inflater decompresses a body that comes in pieces. The decoders of the
// standard library pull; it runs one as a coroutine, which stops where its input
// ends and goes on with the next piece, on the caller's goroutine.
//
// An inflater that is not closed leaks its coroutine.
type inflater struct {
	in    []byte
	over  bool // no more input comes
	yield func([]byte) bool
	next  func() ([]byte, bool)
	stop  func()
	out   [4 << 10]byte
	left  int64 // bytes that may come out yet
	err   error
	gzip  gzip.Reader
}

// inflaterCost is what an inflater takes, about: the decoder's window and tables,
// the output, and the coroutine's stack.
const inflaterCost = 64 << 10

var (
	errStopped  = errors.New("stopped")
	errInflated = errors.New("inflated beyond the limit")
)

// open makes f ready for a body that is compressed with gzip, or with zlib
// (RFC 9110 8.4.1.2), and comes to at most limit bytes.
func (f *inflater) open(zlibFormat bool, limit int64) {
	f.in, f.over, f.left, f.err = nil, false, limit, nil
	f.next, f.stop = iter.Pull(func(yield func([]byte) bool) {
		f.yield = yield
		f.err = f.run(zlibFormat)
	})
}

func (f *inflater) run(zlibFormat bool) error {
	var r io.Reader = &f.gzip
	var err error
	if zlibFormat {
		r, err = zlib.NewReader(f)
	} else {
		err = f.gzip.Reset(f)
	}
	if err != nil {
		return err
	}
	for {
		n, err := r.Read(f.out[:])
		f.left -= int64(n)
		if f.left < 0 {
			return errInflated
		}
		if n > 0 && !f.yield(f.out[:n]) {
			return errStopped
		}
		if err != nil {
			return err
		}
	}
}

// Read implements io.Reader for the decoder, and ReadByte io.ByteReader, so that
// it reads no further than it must.
func (f *inflater) Read(p []byte) (int, error) {
	if err := f.fill(); err != nil {
		return 0, err
	}
	n := copy(p, f.in)
	f.in = f.in[n:]
	return n, nil
}

func (f *inflater) ReadByte() (byte, error) {
	if err := f.fill(); err != nil {
		return 0, err
	}
	c := f.in[0]
	f.in = f.in[1:]
	return c, nil
}

func (f *inflater) fill() error {
	for len(f.in) == 0 {
		if f.over {
			return io.EOF
		}
		if !f.yield(nil) {
			return errStopped
		}
	}
	return nil
}

// feed decompresses p and gives what comes of it to sink, in pieces that are
// valid during the call, until sink wants no more. An error is final; io.EOF says that the compressed data
// has ended.
func (f *inflater) feed(p []byte, sink func([]byte) bool) error {
	if f.err != nil {
		return f.err
	}
	f.in = p
	for {
		b, ok := f.next()
		if !ok {
			f.in = nil
			return f.err
		}
		if len(b) == 0 {
			return nil // it wants more input
		}
		if !sink(b) {
			return nil
		}
	}
}

// close ends the coroutine.
func (f *inflater) close() {
	f.stop()
	f.in = nil
}
