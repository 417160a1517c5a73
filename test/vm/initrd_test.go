package vm

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// drivers are the modules that a machine may need; what a kernel has built in is
// no module.
var drivers = []string{"virtio_pci", "virtio_net", "veth", "af_packet"}

// writeInitrd writes an archive in the format that kernels unpack (newc, see
// Documentation/driver-api/early-userspace/buffer-format.rst).
func writeInitrd(to, kernel string, files map[string]string) error {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	made := map[string]bool{".": true}
	inode := 0
	add := func(name string, mode uint32, data io.Reader, size int64) error {
		inode++
		fmt.Fprintf(w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00", inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0, name)
		pad := func(n int64) {
			_, _ = w.Write(make([]byte, (4-n%4)%4)) // Flush tells
		}
		pad(int64(110 + len(name) + 1))
		if size > 0 {
			if _, err := io.Copy(w, data); err != nil {
				return err
			}
			pad(size)
		}
		return nil
	}
	var folder func(name string) error
	folder = func(name string) error {
		if made[name] {
			return nil
		}
		made[name] = true
		return errors.Join(folder(path.Dir(name)), add(name, 0o040755, nil, 0))
	}
	file := func(name, from string) error {
		f, err := os.Open(from)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		return errors.Join(folder(path.Dir(name)), add(name, 0o100755, f, info.Size()))
	}
	order, err := moduleOrder(filepath.Join(kernel, "modules"))
	if err != nil {
		return err
	}
	err = folder("modules")
	var list strings.Builder
	for _, m := range order {
		err = errors.Join(err, file("modules/"+filepath.Base(m), m))
		fmt.Fprintln(&list, filepath.Base(m))
	}
	err = errors.Join(err, add("modules/order", 0o100644, strings.NewReader(list.String()), int64(list.Len())))
	for _, name := range slices.Sorted(maps.Keys(files)) {
		err = errors.Join(err, file(name, files[name]))
	}
	return errors.Join(err, folder("dev"), add("TRAILER!!!", 0, nil, 0), w.Flush())
}

// moduleOrder lists the drivers that are modules of a kernel and what they
// depend on, each after those it needs.
func moduleOrder(dir string) ([]string, error) {
	var order []string
	done := map[string]bool{}
	var visit func(name string) error
	visit = func(name string) error {
		if done[name] {
			return nil
		}
		done[name] = true
		file := filepath.Join(dir, name+".ko")
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			// A file may have a dash where the module's name has an underscore.
			file = filepath.Join(dir, strings.ReplaceAll(name, "_", "-")+".ko")
			if _, err := os.Stat(file); err != nil {
				return nil //nolint:nilerr // built in
			}
		}
		depends, err := moduleDepends(file)
		if err != nil {
			return err
		}
		for _, d := range depends {
			if err := visit(d); err != nil {
				return err
			}
		}
		order = append(order, file)
		return nil
	}
	for _, name := range drivers {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleDepends reads what a module says of itself: names, separated by commas.
func moduleDepends(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read module: %w", err)
	}
	defer f.Close()
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("read module %s: no .modinfo", file)
	}
	b, err := s.Data()
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", file, err)
	}
	for _, field := range bytes.Split(b, []byte{0}) {
		if list, ok := bytes.CutPrefix(field, []byte("depends=")); ok {
			return strings.FieldsFunc(string(list), func(r rune) bool { return r == ',' }), nil
		}
	}
	return nil, nil
}
