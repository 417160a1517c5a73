package xsk

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// needWakeupFlag is the bit of a ring's flags word that asks for a system call.
const needWakeupFlag = unix.XDP_RING_NEED_WAKEUP

func setsockopt[T any](fd, option int, v *T) error {
	_, _, e := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_XDP, uintptr(option),
		uintptr(unsafe.Pointer(v)), unsafe.Sizeof(*v), 0)
	if e != 0 {
		return e
	}
	return nil
}

// getsockopt fills v and returns how many bytes of it the kernel knows.
func getsockopt[T any](fd, option int, v *T) (int, error) {
	n := uint32(unsafe.Sizeof(*v))
	_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_XDP, uintptr(option),
		uintptr(unsafe.Pointer(v)), uintptr(unsafe.Pointer(&n)), 0)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// registerUMEM hands the memory to the kernel (XDP_UMEM_REG).
func registerUMEM(fd int, u *UMEM) error {
	reg := unix.XDPUmemReg{
		Addr:     uint64(uintptr(unsafe.Pointer(&u.area[0]))),
		Len:      uint64(len(u.area)),
		Size:     uint32(u.size),
		Headroom: uint32(u.headroom),
	}
	if u.metadata > 0 {
		reg.Tx_metadata_len = uint32(u.metadata)
		reg.Flags = unix.XDP_UMEM_TX_METADATA_LEN
	}
	err := setsockopt(fd, unix.XDP_UMEM_REG, &reg)
	if u.metadata > 0 && errors.Is(err, unix.EINVAL) {
		// Linux 6.8 to 6.10 knew the length but not yet the flag.
		reg.Flags = 0
		err = setsockopt(fd, unix.XDP_UMEM_REG, &reg)
	}
	return err
}

// ringOffsets asks where in the ring mappings the indices and entries are.
func ringOffsets(fd int) (off unix.XDPMmapOffsets, err error) {
	n, err := getsockopt(fd, unix.XDP_MMAP_OFFSETS, &off)
	if err != nil {
		return off, fmt.Errorf("read ring offsets: %w", err)
	}
	if n < int(unsafe.Sizeof(off)) {
		return off, fmt.Errorf("read ring offsets: need %d bytes, got %d: Linux 5.4 or later is required", unsafe.Sizeof(off), n)
	}
	return off, nil
}

// isZeroCopy reads back what bind chose (XDP_OPTIONS).
func isZeroCopy(fd int) (bool, error) {
	var flags uint32
	if _, err := getsockopt(fd, unix.XDP_OPTIONS, &flags); err != nil {
		return false, fmt.Errorf("read socket options: %w", err)
	}
	return flags&unix.XDP_OPTIONS_ZEROCOPY != 0, nil
}

// epollWait waits on an epoll descriptor with nanosecond precision where the
// kernel has it (5.11), else rounded up to milliseconds. timeout < 0 is forever.
func epollWait(epfd int, events []unix.EpollEvent, timeout time.Duration) (int, error) {
	var ts *unix.Timespec
	if timeout >= 0 {
		t := unix.NsecToTimespec(int64(timeout))
		ts = &t
	}
	n, _, e := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(epfd), uintptr(unsafe.Pointer(&events[0])),
		uintptr(len(events)), uintptr(unsafe.Pointer(ts)), 0, 0)
	if e == unix.ENOSYS {
		ms := -1
		if timeout >= 0 {
			ms = int((timeout + time.Millisecond - 1) / time.Millisecond)
		}
		return unix.EpollWait(epfd, events, ms)
	}
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}
