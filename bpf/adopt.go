package bpf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// Chain says of a chain what a successor must know to take its flows over.
type Chain struct {
	Name string
	// Resume: flows of a dead instance that were in user space go on in the chain of the same name. It fits chains that can begin
	// in the middle of a flow. Otherwise they are forgotten, and TCP flows are midstream from then on.
	Resume bool
	// Pass: if they cannot go on, they are bypassed until they end, instead of forgotten. It fits chains that leave flows as they are.
	Pass bool
}

// heirlooms are the maps whose contents outlive an instance: the next one of the same name goes on with them, if they are of the
// same shape.
var heirlooms = []string{"flows", "rewrites"}

// will is what an instance leaves in writing, as JSON in a pinned map: what the numbers in the heirlooms stand for.
type will struct {
	Ports   []string          `json:"ports"`  // names, by index
	Chains  []string          `json:"chains"` // names, by index
	Layouts map[string]string `json:"layouts"`
}

const (
	willName = "instance" // of the map
	willSize = 64 << 10
)

// Inheritance says what became of what a dead instance of the same name had left.
type Inheritance struct {
	Flows     int    // flows that go on, the sum of the next three
	Offloaded int    // those that XDP had and has
	Resumed   int    // those that go on in a chain
	Passed    int    // those that were in a chain and are bypassed from now on
	Forgotten int    // flows whose chain there is no more, or neither resumes nor passes
	Refused   string // why nothing was taken over, if there was something
}

// Inherited returns what was taken over from a dead instance. It is known once a port is attached.
func (s *Steerer) Inherited() Inheritance {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.inherited
}

// SetChains says anew what the numbers of chains stand for, for who inherits flows: before rules name new ones, and as long as flows have
// the old ones. A name may stand for several numbers; "" is a number that no flow has.
func (s *Steerer) SetChains(chains []Chain) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("set chains: %w", os.ErrClosed)
	}
	s.opts.Chains = slices.Clone(chains)
	s.will.Chains = nil
	for _, c := range chains {
		s.will.Chains = append(s.will.Chains, c.Name)
	}
	if !s.claimed {
		return nil
	}
	if err := s.pinWill(); err != nil {
		return fmt.Errorf("set chains: %w", err)
	}
	return nil
}

// inherit finds the heirlooms of a dead instance that fit spec.
func (s *Steerer) inherit(spec *ebpf.CollectionSpec) map[string]*ebpf.Map {
	s.will = s.write(spec)
	if s.opts.PinRoot == "" {
		return nil
	}
	old, err := readWill(filepath.Join(s.pinDir(), willName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	maps := map[string]*ebpf.Map{}
	if err == nil {
		err = s.openHeirlooms(spec, old, maps)
	}
	if err != nil {
		s.inherited.Refused = err.Error()
		for _, m := range maps {
			m.Close()
		}
		return nil
	}
	s.heritage = old
	return maps
}

func (s *Steerer) openHeirlooms(spec *ebpf.CollectionSpec, old *will, maps map[string]*ebpf.Map) error {
	if !slices.Equal(old.Ports, s.will.Ports) {
		return fmt.Errorf("its ports were %s", strings.Join(old.Ports, ", "))
	}
	for _, name := range heirlooms {
		if old.Layouts[name] != s.will.Layouts[name] {
			return fmt.Errorf("its map %q was laid out in another way", name)
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(s.pinDir(), name), nil)
		if err != nil {
			return fmt.Errorf("open map %q: %w", name, err)
		}
		maps[name] = m
		want := spec.Maps[name]
		if m.MaxEntries() != want.MaxEntries {
			return fmt.Errorf("its map %q had %d entries, and now it has %d", name, m.MaxEntries(), want.MaxEntries)
		}
		if err := want.Compatible(m); err != nil {
			return fmt.Errorf("map %q: %w", name, err)
		}
	}
	return nil
}

// write returns what this instance would leave.
func (s *Steerer) write(spec *ebpf.CollectionSpec) will {
	w := will{Layouts: map[string]string{}}
	w.Ports = s.portNames()
	for _, c := range s.opts.Chains {
		w.Chains = append(w.Chains, c.Name)
	}
	for _, name := range heirlooms {
		m := spec.Maps[name]
		w.Layouts[name] = layout(m.Key) + " > " + layout(m.Value)
	}
	return w
}

// layout is a type with all that matters to who reads its bytes: the members, where they are, and how long.
func layout(t btf.Type) string {
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		var b strings.Builder
		for _, m := range t.Members {
			fmt.Fprintf(&b, "%s@%d:%s;", m.Name, m.Offset, layout(m.Type))
		}
		return fmt.Sprintf("{%s}%d", b.String(), t.Size)
	case *btf.Array:
		return fmt.Sprintf("[%d]%s", t.Nelems, layout(t.Type))
	case *btf.Int:
		return fmt.Sprintf("%d", t.Size)
	default:
		return fmt.Sprint(t)
	}
}

// LeftPorts returns the names of a dead instance's ports by their numbers, "" where there is none; nil if it has left nothing. Its flows
// can be taken over by one whose ports have the same numbers.
func LeftPorts(pinRoot, name string) []string {
	w, err := readWill(filepath.Join(pinRoot, name, pinVersion, willName))
	if err != nil {
		return nil
	}
	return w.Ports
}

func readWill(path string) (*will, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	value, err := m.LookupBytes(uint32(0))
	if err != nil {
		return nil, fmt.Errorf("read map %q: %w", willName, err)
	}
	w := new(will)
	if err := json.Unmarshal(bytes.TrimRight(value, "\x00"), w); err != nil {
		return nil, fmt.Errorf("read map %q: %w", willName, err)
	}
	return w, nil
}

// pinWill puts down in writing what this instance leaves.
func (s *Steerer) pinWill() error {
	text, err := json.Marshal(s.will)
	if err != nil {
		return err
	}
	if len(text) > willSize { // thousands of chains: the next instance begins anew
		if err := os.Remove(filepath.Join(s.pinDir(), willName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: willName, Type: ebpf.Array, KeySize: 4, ValueSize: willSize, MaxEntries: 1})
	if err != nil {
		return err
	}
	defer m.Close()
	if err := m.Put(uint32(0), append(text, make([]byte, willSize-len(text))...)); err != nil {
		return err
	}
	return replacePin(m, filepath.Join(s.pinDir(), willName))
}

// replacePin pins a map where another may be pinned. What the old programs use stays alive without a name.
func replacePin(m *ebpf.Map, path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return m.Pin(path)
}

// settle makes the flows of a dead instance ours: their chains get the numbers they have now, and those that cannot go on are
// forgotten.
func (s *Steerer) settle() error {
	if s.heritage == nil {
		return nil
	}
	now := make([]int, len(s.heritage.Chains)) // by old index; -1: gone
	for i, name := range s.heritage.Chains {
		now[i] = slices.IndexFunc(s.opts.Chains, func(c Chain) bool { return c.Name == name })
	}
	var forget []steerFlowKey
	type move struct {
		key   steerFlowKey
		chain uint16
		pass  bool
	}
	var moved []move
	err := s.eachFlow(func(k *steerFlowKey, v *steerFlow) bool {
		if v.Chain == NoChain {
			return true
		}
		to := -1
		if int(v.Chain) < len(now) {
			to = now[v.Chain]
		}
		var count *int
		pass := false
		switch {
		case to < 0:
			count = &s.inherited.Forgotten
		case Action(uint8(v.Decision)) != ToChain, v.Decision>>decisionRewrite != 0: // the latter was offloaded, and a SYN has come
			count = &s.inherited.Offloaded
		case s.opts.Chains[to].Resume:
			count = &s.inherited.Resumed
		case s.opts.Chains[to].Pass:
			count, pass = &s.inherited.Passed, true
		default:
			count = &s.inherited.Forgotten
		}
		if v.Reply == 0 {
			*count++
		}
		switch {
		case count == &s.inherited.Forgotten:
			forget = append(forget, *k)
		case pass || to != int(v.Chain):
			moved = append(moved, move{*k, uint16(to), pass})
		}
		return true
	})
	s.inherited.Flows = s.inherited.Offloaded + s.inherited.Resumed + s.inherited.Passed
	if err != nil {
		return err
	}
	for i := range forget {
		if err := s.flows.Delete(&forget[i]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	for _, c := range moved {
		v, err := s.flow(&c.key)
		if err != nil {
			return err
		}
		if v == nil {
			continue
		}
		v.Chain = c.chain
		if c.pass {
			v.Decision = uint64(Bypass)
		}
		if err := s.flows.Update(&c.key, v, ebpf.UpdateExist); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	return s.table.adopt(s.eachFlow)
}
