package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	tapSnap       = 1 << 17  // longer than any packet that GRO makes
	tapRecvBuffer = 16 << 20 // bytes, what the kernel holds until the tap reads it
)

// Frame is a captured frame.
type Frame struct {
	Time     time.Time // when the kernel handed it to the tap
	Data     []byte    // from the Ethernet header on, VLAN tag in place; the tap keeps it too: read only
	Outgoing bool      // sent by the namespace rather than received
	// NoChecksum: the sender's checksum is still to be computed. An endpoint
	// whose TX checksum offload is on sends such frames.
	NoChecksum bool
}

// Tap captures what crosses an interface into memory. At an endpoint it sees what
// the endpoint sends, as it leaves, and what it receives, after GRO merged it
// (VethOptions.NoMerge). Frames that an XDP program takes are not seen.
type Tap struct {
	ns   *NS
	file *os.File
	max  int
	done chan struct{} // closed when the reader is gone

	mu      sync.Mutex
	frames  []Frame
	missed  uint64
	err     error
	changed chan struct{} // closed and replaced at each new frame
}

// Tap starts a capture on an interface, promiscuous, of up to max frames: those
// after them are counted as missed. Close it, or close the lab.
func (n *NS) Tap(ifname string, max int) (*Tap, error) {
	if max <= 0 {
		return nil, fmt.Errorf("tap %s in %s: max is %d, want at least 1", ifname, n.name, max)
	}
	fd, err := n.packetSocket(ifname, unix.ETH_P_ALL, func(fd, index int) error {
		mreq := &unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_PROMISC}
		if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, mreq); err != nil {
			return fmt.Errorf("set promiscuous: %w", err)
		}
		// The kernel takes VLAN tags off received frames and tells them beside the data.
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
			return fmt.Errorf("ask for auxdata: %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
			return fmt.Errorf("ask for timestamps: %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, tapRecvBuffer); err != nil {
			return fmt.Errorf("set receive buffer: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("tap %s in %s: %w", ifname, n.name, err)
	}
	t := &Tap{
		ns: n, max: max, done: make(chan struct{}), changed: make(chan struct{}),
		file: os.NewFile(uintptr(fd), "tap:"+ifname), // non-blocking: the runtime polls it
	}
	if err := n.lab.track(t); err != nil {
		t.file.Close()
		return nil, fmt.Errorf("tap %s: %w", ifname, err)
	}
	go t.read()
	return t, nil
}

// packetSocket opens an AF_PACKET socket in the namespace, lets set prepare it, and
// binds it to the interface. proto 0 receives nothing.
func (n *NS) packetSocket(ifname string, proto uint16, set func(fd, index int) error) (int, error) {
	index, err := n.LinkIndex(ifname)
	if err != nil {
		return -1, err
	}
	fd := -1
	err = n.Do(func() (err error) {
		// Protocol 0 until the bind: else frames of other interfaces come in before it.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open packet socket: %w", err)
		}
		return nil
	})
	if err != nil {
		return -1, err
	}
	if set != nil {
		if err := set(fd, index); err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto<<8 | proto>>8, Ifindex: index}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("bind packet socket: %w", err)
	}
	return fd, nil
}

func (t *Tap) read() {
	defer close(t.done)
	raw, err := t.file.SyscallConn()
	if err != nil {
		t.fail(err)
		return
	}
	buf, oob := make([]byte, tapSnap), make([]byte, 256)
	for {
		var n, oobn int
		var from unix.Sockaddr
		var recvErr error
		err := raw.Read(func(fd uintptr) bool {
			n, oobn, _, from, recvErr = unix.Recvmsg(int(fd), buf, oob, 0)
			return recvErr != unix.EAGAIN && recvErr != unix.EINTR
		})
		if err != nil {
			t.fail(err)
			return
		}
		if recvErr == unix.ENETDOWN {
			continue // reported once when the link goes down; it may come up again
		}
		if recvErr != nil {
			t.fail(recvErr)
			return
		}
		t.add(buf[:n], oob[:oobn], from)
	}
}

func (t *Tap) add(data, oob []byte, from unix.Sockaddr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.frames) >= t.max {
		t.missed++
		return
	}
	f := Frame{Time: time.Now()}
	aux := readAux(oob, &f)
	f.Data = append(make([]byte, 0, len(data)+len(aux)), data...)
	if len(aux) > 0 && len(data) >= 12 {
		f.Data = append(append(append(f.Data[:0], data[:12]...), aux...), data[12:]...)
	}
	if ll, ok := from.(*unix.SockaddrLinklayer); ok {
		f.Outgoing = ll.Pkttype == unix.PACKET_OUTGOING
	}
	t.frames = append(t.frames, f)
	close(t.changed)
	t.changed = make(chan struct{})
}

func (t *Tap) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !errors.Is(err, os.ErrClosed) {
		t.err = err
	}
	close(t.changed)
	t.changed = make(chan struct{})
}

// Frames returns what was captured so far.
func (t *Tap) Frames() []Frame {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Frame(nil), t.frames...)
}

// Packets returns the bytes of what was captured so far.
func (t *Tap) Packets() [][]byte {
	frames := t.Frames()
	packets := make([][]byte, len(frames))
	for i, f := range frames {
		packets[i] = f.Data
	}
	return packets
}

// Wait returns the first captured frame, old or new, for which match is true. It
// fails when ctx ends or the tap is closed.
func (t *Tap) Wait(ctx context.Context, match func(Frame) bool) (Frame, error) {
	for seen := 0; ; {
		t.mu.Lock()
		frames, changed, err := t.frames, t.changed, t.err
		t.mu.Unlock()
		for ; seen < len(frames); seen++ {
			if match(frames[seen]) {
				return frames[seen], nil
			}
		}
		if err != nil {
			return Frame{}, fmt.Errorf("wait for a frame: %w", err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Frame{}, fmt.Errorf("wait for a frame: none of %d matches: %w", seen, ctx.Err())
		case <-t.done:
			return Frame{}, fmt.Errorf("wait for a frame: none of %d matches: %w", seen, os.ErrClosed)
		}
	}
}

// Missed returns how many frames came after max was reached or were lost by the
// kernel because the tap was too slow, and the error that ended the capture, if any.
func (t *Tap) Missed() (uint64, error) {
	var lost uint64
	if raw, err := t.file.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { // closed: what was read before counts
			if st, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
				lost = uint64(st.Drops)
			}
		})
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.missed += lost // reading the kernel's counter clears it
	return t.missed, t.err
}

// Close ends the capture; what was captured stays readable.
func (t *Tap) Close() error {
	t.ns.lab.untrack(t)
	err := t.file.Close()
	<-t.done
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// Raw writes whole Ethernet frames to an interface, past the namespace's IP stack.
type Raw struct {
	ns   *NS
	file *os.File
}

// Raw opens a raw sender on an interface. Close it, or close the lab.
func (n *NS) Raw(ifname string) (*Raw, error) {
	fd, err := n.packetSocket(ifname, 0, nil)
	if err != nil {
		return nil, fmt.Errorf("open raw sender on %s in %s: %w", ifname, n.name, err)
	}
	r := &Raw{ns: n, file: os.NewFile(uintptr(fd), "raw:"+ifname)}
	if err := n.lab.track(r); err != nil {
		r.file.Close()
		return nil, fmt.Errorf("open raw sender on %s: %w", ifname, err)
	}
	return r, nil
}

// Write sends one frame, from the Ethernet header on and without FCS: at least 14
// bytes, at most the MTU and the header (and a VLAN tag, if it has one). ENOBUFS means
// that the wire dropped it, because the other end's ring is full.
func (r *Raw) Write(frame []byte) (int, error) {
	n, err := r.file.Write(frame)
	if errors.Is(err, syscall.EMSGSIZE) {
		return n, fmt.Errorf("write frame: %d bytes are more than the MTU allows: %w", len(frame), err)
	}
	return n, err
}

// Close closes the sender.
func (r *Raw) Close() error {
	r.ns.lab.untrack(r)
	if err := r.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// readAux reads a received message's control data into f and returns the VLAN tag
// (4 bytes) that the kernel took off the frame, or nil.
func readAux(oob []byte, f *Frame) (tag []byte) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	native, wire := binary.NativeEndian, binary.BigEndian
	for _, m := range msgs {
		switch {
		case m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16:
			f.Time = time.Unix(int64(native.Uint64(m.Data)), int64(native.Uint64(m.Data[8:])))
		case m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA && len(m.Data) >= 20:
			// struct tpacket_auxdata: status, len, snaplen (32 bits each), mac, net,
			// vlan_tci, vlan_tpid (16 bits each), host order.
			status := native.Uint32(m.Data)
			f.NoChecksum = status&unix.TP_STATUS_CSUMNOTREADY != 0
			if status&unix.TP_STATUS_VLAN_VALID != 0 {
				tpid := uint16(0x8100)
				if status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
					tpid = native.Uint16(m.Data[18:])
				}
				tag = wire.AppendUint16(wire.AppendUint16(nil, tpid), native.Uint16(m.Data[16:]))
			}
		}
	}
	return tag
}
