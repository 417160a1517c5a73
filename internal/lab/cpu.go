package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// CPUTime returns the time that threads have spent on a CPU so far, in nanoseconds'
// resolution: all threads of each process in pids, and each thread in tids (kernel
// threads, such as NAPI's, are listed there). Threads that have ended count no more,
// so take the difference over a time in which none ends.
func CPUTime(pids, tids []int) (time.Duration, error) {
	var total time.Duration
	for _, pid := range pids {
		threads, err := Threads(pid)
		if err != nil {
			return 0, fmt.Errorf("read cpu time: %w", err)
		}
		for _, tid := range threads {
			d, err := readSchedstat(fmt.Sprintf("/proc/%d/task/%d/schedstat", pid, tid))
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
				continue // it ended since the listing
			}
			if err != nil {
				return 0, fmt.Errorf("read cpu time of process %d: %w", pid, err)
			}
			total += d
		}
	}
	for _, tid := range tids {
		d, err := readSchedstat(fmt.Sprintf("/proc/%d/schedstat", tid))
		if err != nil {
			return 0, fmt.Errorf("read cpu time of thread %d: %w", tid, err)
		}
		total += d
	}
	return total, nil
}

// readSchedstat returns the first of the file's three numbers: nanoseconds on CPU.
func readSchedstat(path string) (time.Duration, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	first, _, ok := bytes.Cut(b, []byte(" "))
	if !ok {
		return 0, fmt.Errorf("%s: want three numbers, got %q", path, b)
	}
	ns, err := strconv.ParseInt(string(first), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return time.Duration(ns), nil
}

// Threads returns the ids of a process's threads.
func Threads(pid int) ([]int, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "task")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list threads of process %d: %w", pid, err)
	}
	tids := make([]int, 0, len(entries))
	for _, e := range entries {
		tid, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, fmt.Errorf("list threads of process %d: %w", pid, err)
		}
		tids = append(tids, tid)
	}
	return tids, nil
}

// PinThread binds a thread to one CPU, numbered from 0.
func PinThread(tid, cpu int) error {
	var set unix.CPUSet
	set.Zero()
	set.Set(cpu)
	if err := unix.SchedSetaffinity(tid, &set); err != nil {
		return fmt.Errorf("pin thread %d to cpu %d: %w", tid, cpu, err)
	}
	return nil
}

// PinProcess binds all threads that a process has now to one CPU; those that they
// start later inherit it.
func PinProcess(pid, cpu int) error {
	threads, err := Threads(pid)
	if err != nil {
		return err
	}
	for _, tid := range threads {
		if err := PinThread(tid, cpu); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}
