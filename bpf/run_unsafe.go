package bpf

import (
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// runNow runs a program of type BPF_PROG_TYPE_SYSCALL without a context
// (BPF_PROG_TEST_RUN; bpf_prog_test_run_syscall in net/bpf/test_run.c of Linux).
//
// It is a raw system call: it does not wait, it works, for some microseconds. An
// ordinary one lets the Go scheduler know, and where the process was idle until just
// now that wakes the scheduler's monitor thread, at several times the price.
func runNow(p *ebpf.Program) error {
	attr := struct {
		fd, retval, dataSizeIn, dataSizeOut uint32
		dataIn, dataOut                     uint64
		repeat, duration                    uint32
		ctxSizeIn, ctxSizeOut               uint32
		ctxIn, ctxOut                       uint64
		flags, cpu, batchSize, _            uint32
	}{fd: uint32(p.FD())}
	_, _, e := unix.RawSyscall(unix.SYS_BPF, unix.BPF_PROG_TEST_RUN, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if e != 0 {
		return e
	}
	return nil
}
