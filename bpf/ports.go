package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
)

// has reports whether there is a port of that number. It wants s.mu held.
func (s *Steerer) has(port int) bool {
	return port >= 0 && port < len(s.opts.Ports) && s.opts.Ports[port].Ifindex != 0
}

// portNames are the names by number, "" where there is no port, without such at the end.
func (s *Steerer) portNames() (names []string) {
	for i, p := range s.opts.Ports {
		if p.Ifindex == 0 {
			continue
		}
		names = append(names, make([]string, i-len(names))...)
		names = append(names, p.Name)
	}
	return names
}

// AddPair makes two interfaces ports that are each other's peer (DefaultBridge only), and returns the number of the first one, which is
// even; the other's is one more. Numbers of removed ports are used again. Their programs are loaded, which takes CAP_PERFMON, and not attached:
// SetSocket and Attach are next. After an error nothing has changed. The ports that there are never notice, nor does who calls other methods.
func (s *Steerer) AddPair(a, b Port) (first int, err error) {
	s.work.Lock()
	defer s.work.Unlock()
	if s.isClosed() {
		return 0, fmt.Errorf("add ports: %w", os.ErrClosed)
	}
	if s.opts.Default != DefaultBridge {
		return 0, errors.New("add ports: only a bridge's can be added")
	}
	o := s.opts
	o.Ports = slices.Clone(o.Ports)
	for first < len(o.Ports) && o.Ports[first].Ifindex != 0 {
		first += 2
	}
	if first == len(o.Ports) {
		o.Ports = append(o.Ports, Port{}, Port{})
	}
	o.Ports[first], o.Ports[first+1] = a, b
	if err := o.check(); err != nil {
		return 0, fmt.Errorf("add ports: %w", err)
	}
	ports := append(slices.Clone(s.ports), make([]attachment, len(o.Ports)-len(s.ports))...)
	defer func() {
		if err != nil {
			ports[first].prog.Close() // nil: nothing to do
			ports[first+1].prog.Close()
			err = errors.Join(fmt.Errorf("add ports: %w", explainLoad(err)), s.clearPorts(first))
		}
	}()
	shared := s.maps()
	for i := first; i < first+2; i++ {
		if ports[i].prog, err = s.program(i, shared); err != nil {
			return 0, err
		}
		if err = s.setPeer(i, o.Ports[i^1]); err != nil {
			return 0, fmt.Errorf("set peer of port %q to %s: %w", o.Ports[i].Name, ifaceName(o.Ports[i^1].Ifindex), err)
		}
	}
	list, before := s.opts.Ports, s.ports
	if err = s.setPorts(o.Ports, ports); err != nil {
		return 0, errors.Join(err, s.setPorts(list, before))
	}
	return first, nil
}

// RemovePair takes the program off two ports that are each other's peer, the first of which has the even number, and forgets them. The
// flows of their packets are the caller's to Evict, before, and after for what came meanwhile; so are rules that name them.
func (s *Steerer) RemovePair(first int) error {
	s.work.Lock()
	defer s.work.Unlock()
	if s.isClosed() {
		return fmt.Errorf("remove ports: %w", os.ErrClosed)
	}
	if first%2 != 0 || !s.has(first) {
		return fmt.Errorf("remove ports: there is no pair of number %d", first)
	}
	var errs []error
	list, ports := slices.Clone(s.opts.Ports), slices.Clone(s.ports)
	for i := first; i < first+2; i++ {
		a := &ports[i]
		if a.link != nil {
			if s.pinsLinks() {
				errs = append(errs, os.Remove(s.linkPin(i)))
			}
			errs = append(errs, detach(a.link))
		}
		a.prog.Close()
		*a, list[i] = attachment{}, Port{}
	}
	_ = barrier() // without it, what comes in the same moment stays counted
	errs = append(errs, s.clearPorts(first))
	if first+2 == len(list) {
		list, ports = list[:first], ports[:first]
	}
	errs = append(errs, s.setPorts(list, ports))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove ports: %w", err)
	}
	return nil
}

// setPorts has all see other ports, and writes down which there are, for who inherits flows. It wants s.work held.
func (s *Steerer) setPorts(list []Port, ports []attachment) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opts.Ports, s.ports = list, ports
	s.will.Ports = s.portNames()
	if !s.claimed {
		return nil
	}
	return s.pinWill()
}

func (s *Steerer) isClosed() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.closed
}

// clearPorts empties what the maps have of two ports.
func (s *Steerer) clearPorts(first int) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	var errs []error
	none := make([]steerCounter, cpus)
	for i := first; i < first+2; i++ {
		if err := s.peers.Delete(uint32(i)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
		}
		for q := range MaxQueues {
			if err := s.sockets.Delete(uint32(i*MaxQueues + q)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				errs = append(errs, err)
			}
			_, _ = s.beatMemory.WriteAt(binary.NativeEndian.AppendUint64(nil, 0), int64(i*MaxQueues+q)*8)
		}
		for c := range counterSlots {
			if err := s.counters.Put(uint32(i)*counterSlots+c, none); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
