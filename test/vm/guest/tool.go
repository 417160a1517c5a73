package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"penstock/pcap"
)

// tool runs one of the tools: link IF up|down|mtu N|queues N, sockets PID,
// captures PATTERN.
func tool(args []string) error {
	switch {
	case len(args) >= 3 && args[0] == "link":
		return setLink(args[1], args[2], args[3:]...)
	case len(args) == 2 && args[0] == "sockets":
		pid, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return printSockets(pid)
	case len(args) == 2 && args[0] == "captures":
		return printCaptures(args[1])
	}
	return fmt.Errorf("want link IF up|down|mtu N|queues N, sockets PID or captures PATTERN; got %q", args)
}

// printCaptures prints how many packets capture files have, how many bytes, and
// how many the longest has: they are too long for the serial line.
func printCaptures(pattern string) error {
	names, err := filepath.Glob(pattern)
	if err != nil {
		return err
	}
	packets, octets, longest := 0, 0, 0
	for _, name := range names {
		in, err := pcap.Open(name)
		if err != nil {
			return err
		}
		defer in.Close()
		var rec pcap.Record
		for err = in.Next(&rec); err == nil; err = in.Next(&rec) {
			if rec.Wire != len(rec.Data) {
				return fmt.Errorf("%s: packet %d: %d of %d bytes", name, rec.Number, len(rec.Data), rec.Wire)
			}
			packets, octets, longest = packets+1, octets+rec.Wire, max(longest, rec.Wire)
		}
		if !errors.Is(err, io.EOF) {
			return err
		}
	}
	fmt.Println(packets, octets, longest)
	return nil
}

func setLink(name, what string, value ...string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("look up %s: %w", name, err)
	}
	n := 0
	if len(value) > 0 {
		if n, err = strconv.Atoi(value[0]); err != nil {
			return err
		}
	}
	switch what {
	case "up":
		err = netlink.LinkSetUp(l)
	case "down":
		err = netlink.LinkSetDown(l)
	case "mtu":
		err = netlink.LinkSetMTU(l, n)
	case "queues":
		err = setQueues(name, n)
	default:
		err = errors.New("no such setting")
	}
	if err != nil {
		return fmt.Errorf("set %s %s %s: %w", name, what, strings.Join(value, " "), err)
	}
	return nil
}

func setQueues(name string, n int) error {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return err
	}
	defer e.Close()
	c, err := e.GetChannels(name)
	if err != nil {
		return err
	}
	c.CombinedCount = uint32(n)
	_, err = e.SetChannels(name, c)
	return err
}

// printSockets asks the kernel about each AF_XDP socket of a process by way of
// a copy of its descriptor, so that what is said does not come from the process:
// one line a socket, "zero-copy" or "copy" (XDP_OPTIONS), and its statistics are
// left to the process.
func printSockets(pid int) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(pidfd)
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return err
	}
	for _, path := range fds {
		if to, err := os.Readlink(path); err != nil || !strings.HasPrefix(to, "socket:") {
			continue
		}
		n, err := strconv.Atoi(filepath.Base(path))
		if err != nil {
			continue
		}
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if err != nil {
			return fmt.Errorf("copy descriptor %d of process %d: %w", n, pid, err)
		}
		domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		if err == nil && domain == unix.AF_XDP {
			var options int
			if options, err = unix.GetsockoptInt(fd, unix.SOL_XDP, unix.XDP_OPTIONS); err == nil {
				mode := "copy"
				if options&unix.XDP_OPTIONS_ZEROCOPY != 0 {
					mode = "zero-copy"
				}
				fmt.Printf("fd %d XDP_OPTIONS %#x %s\n", n, options, mode)
			}
		}
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("ask socket %d of process %d: %w", n, pid, err)
		}
	}
	return nil
}
