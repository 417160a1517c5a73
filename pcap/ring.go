package pcap

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// RingFiles says where a Ring writes: DIR/PREFIX.0000.pcapng, then 0001 and so
// on. The number goes on rising; the oldest file is removed when there are more
// than Files.
type RingFiles struct {
	Dir      string
	Prefix   string // of file names; no path separator
	MaxBytes int64  // of one file; a packet that does not fit begins a new one
	Files    int    // kept at most; 0: all
}

// minRingBytes is room for the headers and one packet of any size, so that no
// file is larger than it may be.
const minRingBytes = 1 << 20

// Ring writes packets to files of bounded size and number, so that a capture
// may run for ever. Files that an earlier Ring has left count: the numbers go
// on behind theirs, and they are removed first. It is not safe for concurrent
// use.
type Ring struct {
	files   RingFiles
	options WriterOptions
	number  int   // of the file that is being written
	kept    []int // numbers of the files that are there, oldest first
	file    *os.File
	w       *Writer
	head    int64 // bytes of a file before its first packet
	packets uint64
	bytes   int64
	removed uint64
	err     error // sticky
}

// RingStats are a ring's figures.
type RingStats struct {
	Packets uint64 `json:"packets"`
	Bytes   int64  `json:"bytes"`   // written, in all files
	Files   int    `json:"files"`   // there now
	Removed uint64 `json:"removed"` // files that made room
	Current string `json:"current"` // path of the file that is being written
}

// NewRing creates the first file.
func NewRing(f RingFiles, o WriterOptions) (*Ring, error) {
	if f.Prefix == "" || f.Prefix != filepath.Base(f.Prefix) || f.Prefix == "." || f.Prefix == ".." {
		return nil, fmt.Errorf("open capture ring: prefix must be the beginning of a file name, got %q", f.Prefix)
	}
	if f.MaxBytes < minRingBytes || f.Files < 0 {
		return nil, fmt.Errorf("open capture ring: want at least %d bytes in a file and at least 0 files, got %d and %d", minRingBytes, f.MaxBytes, f.Files)
	}
	r := &Ring{files: f, options: o}
	if err := r.find(); err != nil {
		return nil, fmt.Errorf("open capture ring: %w", err)
	}
	if len(r.kept) > 0 {
		r.number = r.kept[len(r.kept)-1] + 1
	}
	if err := r.open(); err != nil {
		return nil, err
	}
	return r, nil
}

// find looks for files of earlier rings.
func (r *Ring) find() error {
	entries, err := os.ReadDir(r.files.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), r.files.Prefix+".")
		if !ok {
			continue
		}
		if digits, ok = strings.CutSuffix(digits, ".pcapng"); !ok {
			continue
		}
		if n, err := strconv.Atoi(digits); err == nil && e.Name() == filepath.Base(r.path(n)) {
			r.kept = append(r.kept, n)
		}
	}
	slices.Sort(r.kept)
	return nil
}

func (r *Ring) path(n int) string {
	return filepath.Join(r.files.Dir, fmt.Sprintf("%s.%04d.pcapng", r.files.Prefix, n))
}

// open begins file number and removes what is too old. Captures hold what
// people said to each other: nobody but the owner may read them.
func (r *Ring) open() error {
	f, err := os.OpenFile(r.path(r.number), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("open capture ring: %w", err)
	}
	w, err := NewWriter(f, r.options)
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	r.file, r.w, r.head = f, w, w.Size()
	r.kept = append(r.kept, r.number)
	for r.files.Files > 0 && len(r.kept) > r.files.Files {
		if err := os.Remove(r.path(r.kept[0])); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove old capture: %w", err)
		}
		r.kept = r.kept[1:]
		r.removed++
	}
	return nil
}

// WritePacket is Writer.WritePacket on the ring's current file. It allocates
// only when a new file begins.
func (r *Ring) WritePacket(iface int, ts int64, wire int, data, comment []byte) error {
	if r.err != nil {
		return r.err
	}
	size := PacketSize(min(len(data), MaxPacket), min(len(comment), maxComment))
	if r.w.Size() > r.head && r.w.Size()+int64(size) > r.files.MaxBytes {
		if r.err = r.rotate(); r.err != nil {
			return r.err
		}
	}
	return r.w.WritePacket(iface, ts, wire, data, comment)
}

func (r *Ring) rotate() error {
	if err := r.finish(); err != nil {
		return err
	}
	r.number++
	return r.open()
}

// finish closes the current file.
func (r *Ring) finish() error {
	if r.file == nil {
		return nil
	}
	err := r.w.Flush()
	if cerr := r.file.Close(); cerr != nil {
		err = errors.Join(err, fmt.Errorf("close capture: %w", cerr))
	}
	r.packets += r.w.Packets()
	r.bytes += r.w.Size()
	r.file, r.w = nil, nil
	return err
}

// Flush passes buffered bytes on to the current file, so that readers see
// whole packets.
func (r *Ring) Flush() error {
	if r.err != nil {
		return r.err
	}
	return r.w.Flush()
}

// Stats returns the figures so far.
func (r *Ring) Stats() RingStats {
	s := RingStats{Packets: r.packets, Bytes: r.bytes, Files: len(r.kept), Removed: r.removed, Current: r.path(r.number)}
	if r.w != nil {
		s.Packets += r.w.Packets()
		s.Bytes += r.w.Size()
	}
	return s
}

// Close finishes the current file. The ring cannot be used afterwards.
func (r *Ring) Close() error {
	err := r.finish()
	if r.err == nil {
		r.err = errors.New("write capture: the ring is closed")
	}
	return err
}
