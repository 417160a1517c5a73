package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cilium/ebpf/ringbuf"
)

// EventKind is what an Event tells of.
type EventKind uint8

// The kinds.
const (
	EventFlowBegan EventKind = iota // a rule sent a new flow to a chain
	// EventDropped is a sample of what the gate, rules, or Midstream drop: one packet each CPU and 10 ms, at most.
	EventDropped
)

// String returns the kind's lower_snake name.
func (k EventKind) String() string {
	switch k {
	case EventFlowBegan:
		return "flow_began"
	case EventDropped:
		return "dropped"
	}
	return fmt.Sprintf("event_%d", uint8(k))
}

func eventMask(kinds []EventKind) (mask uint32) {
	for _, k := range kinds {
		mask |= 1 << k
	}
	return mask
}

// Event is something that the program tells of.
type Event struct {
	Kind   EventKind
	Time   time.Duration // CLOCK_MONOTONIC, as Now returns it, to some milliseconds
	Key    FlowKey       // of the packet
	Port   int           // it arrived at
	Chain  uint16        // EventFlowBegan
	Reason Reason        // EventDropped
	Count  uint32        // EventDropped: packets dropped on this CPU since it last told of one, with this one
}

// SetEvents changes Options.Events, in one step for packets.
func (s *Steerer) SetEvents(kinds []EventKind) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return fmt.Errorf("set events: %w", os.ErrClosed)
	}
	return s.putEvents(kinds)
}

func (s *Steerer) putEvents(kinds []EventKind) error {
	if err := s.eventWants.Put(uint32(0), eventMask(kinds)); err != nil {
		return fmt.Errorf("set events: %w", err)
	}
	return nil
}

// eventPoll is how often the ring is looked at: the program wakes nobody, since that would cost it more than the event.
const eventPoll = 100 * time.Millisecond

// eventSize is sizeof(struct event) (bpf/include/types.h).
const eventSize = 64

// ReadEvents calls fn for each event of the kinds in Options.Events until ctx ends, and then returns nil. Events are up to a tenth of a
// second old. The Event is fn's only during the call. There can be one reader.
func (s *Steerer) ReadEvents(ctx context.Context, fn func(*Event)) error {
	s.mu.RLock()
	if s.closed {
		s.mu.RUnlock()
		return fmt.Errorf("read events: %w", os.ErrClosed)
	}
	r, err := ringbuf.NewReader(s.events)
	s.mu.RUnlock()
	if err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	defer r.Close()
	var rec ringbuf.Record
	var e Event
	for ctx.Err() == nil {
		r.SetDeadline(time.Now().Add(eventPoll))
		for err = r.ReadInto(&rec); err == nil; err = r.ReadInto(&rec) {
			if e.decode(rec.RawSample) {
				fn(&e)
			}
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("read events: %w", err)
		}
	}
	return nil
}

func (e *Event) decode(b []byte) bool {
	if len(b) < eventSize {
		return false
	}
	le := binary.LittleEndian // the object is for such machines
	var k steerFlowKey
	if _, err := binary.Decode(b[20:64], le, &k); err != nil {
		return false
	}
	*e = Event{
		Time: time.Duration(le.Uint64(b)), Kind: EventKind(b[8]), Port: int(b[9]), Chain: le.Uint16(b[10:]),
		Reason: Reason(le.Uint32(b[12:])), Count: le.Uint32(b[16:]), Key: k.key(),
	}
	return true
}

// LostEvents returns how many events found the ring full.
func (s *Steerer) LostEvents() (lost uint64, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return 0, fmt.Errorf("read events: %w", os.ErrClosed)
	}
	var states []steerEventState
	if err := s.eventStates.Lookup(uint32(0), &states); err != nil {
		return 0, fmt.Errorf("read lost events: %w", err)
	}
	for _, st := range states {
		lost += st.Lost
	}
	return lost, nil
}
