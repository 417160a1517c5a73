package gate

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// journal keeps what was denied at run time in a file: a line of JSON for each
// change, appended and synchronised before the change counts. A line without
// its end was cut by a crash, and never counted.
type journal struct {
	path  string // "": nothing is kept
	file  *os.File
	size  int64
	lines int
}

// record is a line.
type record struct {
	Add   []netip.Prefix `json:"add,omitempty"`
	Until *time.Time     `json:"until,omitempty"` // nil: for good
	Added time.Time      `json:"added,omitzero"`
	Why   string         `json:"why,omitempty"`
	Del   []netip.Prefix `json:"del,omitempty"`
}

// open reads the file, and writes it anew with what still holds.
func (j *journal) open(path string, now time.Time) (map[netip.Prefix]Deny, error) {
	j.path = path
	denies := map[netip.Prefix]Deny{}
	if path == "" {
		return denies, nil
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return denies, nil
	} else if err != nil {
		return nil, fmt.Errorf("read gate state: %w", err)
	}
	line := 0
	for {
		text, rest, whole := bytes.Cut(b, []byte("\n"))
		if !whole {
			break
		}
		b = rest
		line++
		var r record
		if err := json.Unmarshal(text, &r); err != nil {
			return nil, fmt.Errorf("read gate state %s:%d: %w; mend the line, or remove the file (what was denied at run time is then forgotten)", path, line, err)
		}
		for _, p := range r.Del {
			delete(denies, p)
		}
		for _, p := range r.Add {
			if !p.IsValid() || p != Unmap(p.Masked()) {
				return nil, fmt.Errorf("read gate state %s:%d: want masked prefixes, got %s; mend the line, or remove the file", path, line, p)
			}
			d := Deny{Prefix: p, Added: r.Added, Why: r.Why}
			if r.Until != nil {
				d.Until = *r.Until
			}
			denies[p] = d
		}
	}
	for p, d := range denies {
		if d.expired(now) {
			delete(denies, p)
		}
	}
	return denies, j.rewrite(denies)
}

// rewrite puts a new file in the place of the old one, in one step.
func (j *journal) rewrite(denies map[netip.Prefix]Deny) error {
	if err := j.close(); err != nil {
		return err
	}
	if len(denies) == 0 {
		if err := os.Remove(j.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("write gate state: %w", err)
		}
		return nil
	}
	type group struct {
		until, added time.Time
		why          string
	}
	groups := map[group]*record{}
	for p, d := range denies {
		g := group{d.Until, d.Added, d.Why}
		if groups[g] == nil {
			groups[g] = newRecord(d)
		}
		groups[g].Add = append(groups[g].Add, p)
	}
	temp := j.path + ".new"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("write gate state: %w", err)
	}
	w := &countingWriter{w: bufio.NewWriterSize(f, 1<<16)}
	enc := json.NewEncoder(w)
	for _, r := range groups {
		err = errors.Join(err, enc.Encode(r))
	}
	if err = errors.Join(err, w.w.Flush(), f.Sync()); err == nil {
		err = os.Rename(temp, j.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write gate state: %w", err), f.Close())
	}
	j.file, j.size, j.lines = f, w.n, len(groups)
	return syncDir(filepath.Dir(j.path))
}

func newRecord(d Deny) *record {
	r := &record{Added: d.Added, Why: d.Why}
	if !d.Until.IsZero() {
		r.Until = &d.Until
	}
	return r
}

type countingWriter struct {
	w *bufio.Writer
	n int64
}

func (c *countingWriter) Write(b []byte) (int, error) {
	c.n += int64(len(b))
	return c.w.Write(b)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("write gate state: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("write gate state: %w", err)
	}
	return nil
}

// append adds a line; if that fails, the file is what it was.
func (j *journal) append(r record) error {
	if j.path == "" {
		return nil
	}
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write gate state: %w", err)
	}
	fresh := j.file == nil
	if fresh {
		dir := filepath.Dir(j.path)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("write gate state: %w; mend: set state in [gate] to a path that can be written, or to \"\"", err)
		}
		if j.file, err = os.OpenFile(j.path, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600); err != nil {
			return fmt.Errorf("write gate state: %w; mend: set state in [gate] to a path that can be written, or to \"\"", err)
		}
		if err := syncDir(dir); err != nil {
			return err
		}
		j.size, j.lines = 0, 0
	}
	b = append(b, '\n')
	_, err = j.file.WriteAt(b, j.size)
	if err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write gate state: %w", err), j.file.Truncate(j.size))
	}
	j.size += int64(len(b))
	j.lines++
	return nil
}

func (j *journal) close() error {
	if j.file == nil {
		return nil
	}
	err := j.file.Close()
	j.file = nil
	return err
}
