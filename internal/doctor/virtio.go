package doctor

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// TxHeader is what virtio_net's device reads in front of each packet that is sent
// in zero-copy mode. The driver gives it the address of a variable of its own
// (xsk_hdr in drivers/net/virtio_net.c, virtnet_xsk_pool_enable; seen in 6.18.15 and
// 7.3.4), by an arithmetic that holds for the kernel's image and not for a module. Of
// a module, the device reads from Address: twelve bytes of somebody else's memory. If
// they are zero, all is well. If not, the host takes them for an order that makes no
// sense, and drops the packet; the driver reports it as sent. They may change at any
// time.
type TxHeader struct {
	Address  uint64 // that the device reads from
	Known    bool   // else the kernel did not tell, and Address is 0
	InMemory bool   // there is memory at Address
}

// txHeaderSize is the longest header that the driver has (struct
// virtio_net_hdr_v1_hash_tunnel).
const txHeaderSize = 24

// lookAtTxHeader returns nil if the header is where it belongs: virtio_net is built
// in, or has no such variable.
func lookAtTxHeader() *TxHeader {
	const module = "/sys/module/virtio_net/initstate" // what is built in has none
	if _, err := os.Stat(module); err != nil {
		return nil
	}
	symbols, err := os.Open("/proc/kallsyms")
	if err != nil {
		return &TxHeader{}
	}
	defer symbols.Close()
	memory, err := os.Open("/proc/iomem")
	if err != nil {
		return &TxHeader{}
	}
	defer memory.Close()
	return findTxHeader(symbols, memory)
}

// findTxHeader reads what /proc/kallsyms and /proc/iomem have.
func findTxHeader(symbols, memory io.Reader) *TxHeader {
	var text, header uint64
	other, there := false, false // variables of the driver
	for lines := bufio.NewScanner(symbols); lines.Scan() && (text == 0 || header == 0); {
		f := strings.Fields(lines.Text())
		switch {
		case len(f) < 3:
		case f[2] == "_text":
			text = hex(f[0])
		case len(f) > 3 && f[3] == "[virtio_net]" && strings.ContainsAny(f[1], "bBdD"):
			if f[2] == "xsk_hdr" {
				header, there = hex(f[0]), true
			} else {
				other = true
			}
		}
	}
	if other && !there {
		return nil
	}
	var image uint64
	var ram [][2]uint64
	for lines := bufio.NewScanner(memory); lines.Scan(); {
		span, what, _ := strings.Cut(lines.Text(), " : ")
		from, to, _ := strings.Cut(strings.TrimSpace(span), "-")
		switch {
		case what == "Kernel code":
			image = hex(from)
		case strings.HasPrefix(what, "System RAM"):
			ram = append(ram, [2]uint64{hex(from), hex(to)})
		}
	}
	if text == 0 || header == 0 || image == 0 { // hidden: zeros
		return &TxHeader{}
	}
	h := &TxHeader{Address: header - text + image, Known: true}
	for _, r := range ram {
		h.InMemory = h.InMemory || h.Address <= r[1] && h.Address+txHeaderSize > r[0]
	}
	return h
}

// hex reads a number in the form of /proc; 0 if it is none.
func hex(s string) uint64 {
	n, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		return 0
	}
	return n
}

// readsTxHeader says whether packets may leave by an interface so.
func readsTxHeader(i *Interface) bool {
	return i.Driver == "virtio_net" && i.Port.ZeroCopy == "on"
}

func txHeader(f *Facts, r *report, i *Interface) {
	if !readsTxHeader(i) {
		return
	}
	const mend = "zero_copy = \"auto\" in its [[port]], or a kernel with virtio_net built in"
	switch h := f.TxHeader; {
	case h == nil:
		r.fine(i, "the headers of virtio_net are where it says")
	case !h.Known:
		r.wrong(i, "virtio_net is a module here, so that Linux has the device read the headers of what is sent with zero-copy from a wrong address: whether packets pass is chance", mend)
	case h.InMemory:
		r.wrong(i, fmt.Sprintf("virtio_net is a module here, so that Linux has the device read the headers of what is sent with zero-copy from a wrong address (%#x), "+
			"where others keep their data: whether packets pass is chance", h.Address), mend)
	default:
		r.warn(i, fmt.Sprintf("virtio_net is a module here, so that Linux has the device read the headers of what is sent with zero-copy from a wrong address (%#x), "+
			"where this machine has no memory: QEMU reads zeros there, which is right, and vhost may stop", h.Address), mend)
	}
}
