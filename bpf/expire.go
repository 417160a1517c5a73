package bpf

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
)

// Timeouts say how long a flow may be idle, in both directions, before Expire removes it. A zero field is the default.
//
// They decide what is remembered, not what is alive: a TCP flow that goes on after its entry is gone is midstream. The flags that
// shorten a timeout are believed without a look at sequence numbers, so a forged RST makes an idle flow be forgotten early.
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

const (
	tcpFIN = 0x01
	tcpRST = 0x04
)

// of returns the timeout of a flow. reply is nil if its entry is missing.
func (t *Timeouts) of(proto uint8, first, reply *steerFlow) time.Duration {
	if reply == nil {
		reply = &steerFlow{}
	}
	switch proto {
	case ProtoTCP:
		switch {
		case (first.TcpFlags|reply.TcpFlags)&tcpRST != 0, first.TcpFlags&reply.TcpFlags&tcpFIN != 0:
			return t.TCPClosed
		case (first.TcpFlags|reply.TcpFlags)&tcpFIN != 0:
			return t.TCPHalfClosed
		case first.Packets == 0 || reply.Packets == 0:
			return t.TCPOpening
		}
		return t.TCPEstablished
	case ProtoUDP:
		if first.Packets == 0 || reply.Packets == 0 {
			return t.UDP
		}
		return t.UDPReplied
	case ProtoICMP, ProtoICMPv6:
		return t.ICMP
	}
	return t.Other
}

// shortest is the least that of can return for a protocol: an entry that is younger needs no look at its other direction.
func (t *Timeouts) shortest(proto uint8) time.Duration {
	switch proto {
	case ProtoTCP:
		return min(t.TCPOpening, t.TCPEstablished, t.TCPHalfClosed, t.TCPClosed)
	case ProtoUDP:
		return min(t.UDP, t.UDPReplied)
	}
	return t.of(proto, &steerFlow{}, nil)
}

// longest is the most that of can return for a protocol.
func (t *Timeouts) longest(proto uint8) time.Duration {
	switch proto {
	case ProtoTCP:
		return max(t.TCPOpening, t.TCPEstablished, t.TCPHalfClosed, t.TCPClosed)
	case ProtoUDP:
		return max(t.UDP, t.UDPReplied)
	}
	return t.shortest(proto)
}

// Expire removes the flows that have been idle for longer than their timeout, both directions together, and returns how many flows
// (not entries) it removed. now is Now, or a moment of the same clock. It reads the whole table: call it every few seconds, from one
// goroutine.
//
// A SYN that arrives just between the removal of the two directions may leave one of them behind; the SYN's repetition mends that.
func (s *Steerer) Expire(now time.Duration, t Timeouts) (removed int, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	t = t.withDefaults()
	var failed error
	err = s.eachFlow(func(k *steerFlowKey, v *steerFlow) bool {
		// The entry of the first direction answers for both; one of the reply only if it stands alone, which is rare.
		limit := t.shortest(k.Proto)
		if v.Reply != 0 {
			limit = t.longest(k.Proto)
		}
		if idle(now, v) <= limit {
			return true
		}
		var gone bool
		if gone, failed = s.expire(now, &t, *k); gone {
			removed++
		}
		return failed == nil
	})
	if err = errors.Join(err, failed); err != nil {
		return removed, fmt.Errorf("expire flows: %w", err)
	}
	return removed, nil
}

// expire removes one flow if it is idle now: what the batch said may be old.
func (s *Steerer) expire(now time.Duration, t *Timeouts, k steerFlowKey) (bool, error) {
	v, err := s.flow(&k)
	if v == nil || err != nil {
		return false, err
	}
	back := k.reverse()
	other, err := s.flow(&back)
	if err != nil || v.Reply != 0 && other != nil {
		return false, err
	}
	since := idle(now, v)
	if other != nil {
		since = min(since, idle(now, other))
	}
	if since <= t.of(k.Proto, v, other) {
		return false, nil
	}
	for _, key := range []*steerFlowKey{&k, &back} {
		if err := s.flows.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return false, err
		}
	}
	return true, nil
}

// flow returns an entry, or nil if there is none.
func (s *Steerer) flow(k *steerFlowKey) (*steerFlow, error) {
	var v steerFlow
	err := s.flows.Lookup(k, &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, nil
	}
	return &v, err
}

// idle is negative for an entry that was used after now.
func idle(now time.Duration, v *steerFlow) time.Duration { return now - time.Duration(v.LastSeen) }
