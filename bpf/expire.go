package bpf

import (
	"fmt"
	"os"
	"time"
)

// Timeouts say how long a flow may be idle, in both directions, before Expire removes it. A zero field is the default.
//
// They decide what is remembered, not what is alive: a TCP flow that goes on after its entry is gone is midstream. The flags that
// shorten a timeout count only with sequence numbers that the receiver would believe.
type Timeouts struct {
	TCPOpening     time.Duration // no packet from the server yet; default 30s
	TCPEstablished time.Duration // default 2h5m (RFC 5382: at least 2h4m)
	TCPHalfClosed  time.Duration // FIN seen in one direction; default 10m
	TCPClosed      time.Duration // FIN seen in both directions, or RST; default 10s
	UDP            time.Duration // packets in one direction only; default 30s
	UDPReplied     time.Duration // default 3m (RFC 4787: at least 2m)
	ICMP           time.Duration // echo and other queries; default 30s
	Other          time.Duration // protocols without ports; default 10m
}

func (t Timeouts) withDefaults() Timeouts {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.TCPOpening, 30 * time.Second},
		{&t.TCPEstablished, 2*time.Hour + 5*time.Minute},
		{&t.TCPHalfClosed, 10 * time.Minute},
		{&t.TCPClosed, 10 * time.Second},
		{&t.UDP, 30 * time.Second},
		{&t.UDPReplied, 3 * time.Minute},
		{&t.ICMP, 30 * time.Second},
		{&t.Other, 10 * time.Minute},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	return t
}

// raw is the array of enum timeout (bpf/include/types.h).
func (t *Timeouts) raw() [8]time.Duration {
	return [...]time.Duration{t.TCPOpening, t.TCPEstablished, t.TCPHalfClosed, t.TCPClosed, t.UDP, t.UDPReplied, t.ICMP, t.Other}
}

// EndedFlow is a flow that is no longer in the table, or that Lasting tells of. Counters stand as they did when it was removed; a connection that was begun anew on
// the same addresses and ports, after FIN or RST, has counters of its own only.
type EndedFlow struct {
	Key   FlowKey // of the direction that began the flow, as its packets arrived
	Reply FlowKey // of the other one; Key.Reverse() unless it was rewritten
	Why   EndReason

	Packets, Bytes           uint64 // with Key
	ReplyPackets, ReplyBytes uint64
	TCPFlags, ReplyTCPFlags  uint8         // OR of all flag bytes, as in FlowEntry
	Start                    time.Duration // CLOCK_MONOTONIC, as Now returns it
	LastSeen                 time.Duration // last packet of either direction
	Chain                    uint16
	Hash                     uint32
	Action                   Action // ToChain; Bypass or Drop if it was offloaded; Passed
}

// EndReason says why a flow ended.
type EndReason uint8

// The reasons.
const (
	EndIdle    EndReason = iota
	EndClosed            // FIN in both directions
	EndReset             // RST
	EndEvicted           // Evict
	EndActive            // it goes on: Lasting
)

// String returns the reason's lower_snake name.
func (r EndReason) String() string {
	switch r {
	case EndIdle:
		return "idle"
	case EndClosed:
		return "closed"
	case EndReset:
		return "reset"
	case EndEvicted:
		return "evicted"
	case EndActive:
		return "active"
	}
	return fmt.Sprintf("end_reason_%d", uint8(r))
}

// maxExpireRounds bounds how often one Expire fills the list of idle flows.
const maxExpireRounds = 4

const (
	tcpFIN = 0x01
	tcpRST = 0x04
)

// Expire removes the flows that have been idle for longer than their timeout, both directions together, and returns how many flows
// (not entries) it removed. now is Now, or a moment of the same clock. ended, which may be nil, is told of each; it must not call the
// Steerer. The kernel looks at the whole table: call it every few seconds. One call removes at most 65536 flows; the next one goes on.
//
// A SYN that arrives just between the removal of the two directions may leave one of them behind; the SYN's repetition mends that.
func (s *Steerer) Expire(now time.Duration, t Timeouts, ended func(*EndedFlow)) (removed int, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return 0, fmt.Errorf("expire flows: %w", os.ErrClosed)
	}
	s.table.settle(Now())
	s.table.ending.Lock()
	defer s.table.ending.Unlock()
	t = t.withDefaults()
	b := le.AppendUint64(s.table.endBuf[:0], uint64(now))
	for _, d := range t.raw() {
		b = le.AppendUint64(b, uint64(d))
	}
	if _, err := s.table.ends.WriteAt(b, 0); err != nil {
		return 0, fmt.Errorf("expire flows: %w", err)
	}
	for range maxExpireRounds { // each looks at the table from its beginning
		n, found, err := s.table.expireSome(ended)
		removed += n
		if err != nil {
			return removed, fmt.Errorf("expire flows: %w", err)
		}
		if found < maxEndJobs {
			break
		}
	}
	return removed, nil
}

// Evict removes flows at once, each named by the key of either direction, and returns how many there were. ended is as for Expire. A TCP flow
// that goes on is midstream; one that is offloaded loses its rewrite.
func (s *Steerer) Evict(keys []FlowKey, ended func(*EndedFlow)) (removed int, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return 0, fmt.Errorf("evict flows: %w", os.ErrClosed)
	}
	s.table.ending.Lock()
	defer s.table.ending.Unlock()
	for len(keys) > 0 {
		batch := keys[:min(len(keys), maxOffloadJobs)]
		keys = keys[len(batch):]
		for i := range batch {
			raw := batch[i].raw()
			if _, err := s.table.ends.WriteAt(appendFlowKey(s.table.endBuf[:0], &raw), int64(endHeader+i*endJobSize)); err != nil {
				return removed, fmt.Errorf("evict flows: %w", err)
			}
		}
		n, err := s.table.endSome(0, len(batch), true, ended)
		removed += n
		if err != nil {
			return removed, fmt.Errorf("evict flows: %w", err)
		}
	}
	return removed, nil
}

// expireSome wants ending held, and the moment and the timeouts written.
func (t *table) expireSome(ended func(*EndedFlow)) (removed, found int, err error) {
	counting, err := t.beginCount(Now())
	if err != nil {
		return 0, 0, err
	}
	if _, err := t.find.Run(nil); err != nil {
		return 0, 0, err
	}
	count, err := readUint32(t.ends, endCount)
	if err != nil {
		return 0, 0, err
	}
	found = min(int(count), maxEndJobs)
	if counting && found < maxEndJobs {
		if err := t.finishCount(); err != nil {
			return 0, found, err
		}
	}
	for from := 0; from < found; from += maxOffloadJobs {
		n, err := t.endSome(from, min(from+maxOffloadJobs, found), false, ended)
		removed += n
		if err != nil {
			return removed, found, err
		}
	}
	return removed, found, nil
}

// endSome removes the flows of some jobs and tells of them. It wants ending held.
func (t *table) endSome(from, to int, evict bool, ended func(*EndedFlow)) (removed int, err error) {
	b := le.AppendUint32(t.endBuf[:0], uint32(from))
	b = le.AppendUint32(b, uint32(to))
	b = le.AppendUint32(b, 0)
	if evict {
		b[8] = 1
	}
	if _, err := t.ends.WriteAt(b, endFrom); err != nil {
		return 0, err
	}
	t.mu.Lock()
	_, err = t.end.Run(nil)
	t.mu.Unlock()
	if err != nil {
		return 0, err
	}
	b = t.endBuf[:(to-from)*endJobSize]
	if _, err := t.ends.ReadAt(b, int64(endHeader+from*endJobSize)); err != nil {
		return 0, err
	}
	var decisions [maxOffloadJobs]uint64
	for ; len(b) > 0; b = b[endJobSize:] {
		if le.Uint32(b[jobResult:]) == 0 {
			continue
		}
		key, first, other, reply := readFlowKey(b), readFlow(b[endFlow:]), readFlowKey(b[endOther:]), readFlow(b[endFlow+64:])
		decisions[removed] = first.Decision
		removed++
		if ended != nil {
			ended(endedFlow(&key, &other, &first, &reply, evict))
		}
	}
	t.mu.Lock()
	for _, d := range decisions[:removed] {
		t.slots.drop(d)
	}
	t.mu.Unlock()
	return removed, nil
}

// endedFlow makes one of a flow's two entries, in either order; the second is zero if it was not there.
func endedFlow(key, other *steerFlowKey, f, r *steerFlow, evicted bool) *EndedFlow {
	if f.Reply != 0 {
		key, other, f, r = other, key, r, f
	}
	e := &EndedFlow{
		Key: key.key(), Reply: other.key(), Packets: f.Packets, Bytes: f.Bytes, ReplyPackets: r.Packets, ReplyBytes: r.Bytes,
		TCPFlags: uint8(f.TcpFlags), ReplyTCPFlags: uint8(r.TcpFlags),
		Start: time.Duration(max(f.Start, r.Start)), LastSeen: time.Duration(max(f.LastSeen, r.LastSeen)),
		Chain: max(f.Chain, r.Chain), Hash: max(f.Hash, r.Hash), Action: Action(uint8(f.Decision)),
	}
	switch {
	case evicted:
		e.Why = EndEvicted
	case key.Proto != ProtoTCP:
	case (e.TCPFlags|e.ReplyTCPFlags)&tcpRST != 0:
		e.Why = EndReset
	case e.TCPFlags&e.ReplyTCPFlags&tcpFIN != 0:
		e.Why = EndClosed
	}
	return e
}
