package policy

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/ext"
)

// Fields are header fields, in their order. They are asked only during a
// judgement.
type Fields interface {
	Len() int
	At(i int) (name, value []byte)
}

// value is what our own types have in common: nothing is converted.
type value struct{ typ *cel.Type }

func (v value) ConvertToNative(t reflect.Type) (any, error) {
	return nil, fmt.Errorf("convert %s to %v: not supported", v.typ, t)
}

func (v value) Type() ref.Type { return v.typ }

// setType is the type of named prefix sets.
var setType = types.NewObjectType("prefixes", traits.ContainerType)

// set is a named set of prefixes: the right side of "in".
type set struct {
	value
	prefixes map[netip.Prefix]struct{}
	bits4    []int // lengths that there are
	bits6    []int
}

var _ traits.Container = (*set)(nil)

func newSet(prefixes []netip.Prefix) *set {
	s := &set{value{setType}, make(map[netip.Prefix]struct{}, len(prefixes)), nil, nil}
	var seen [2][129]bool
	for _, p := range prefixes {
		list, known := &s.bits4, &seen[0][p.Bits()]
		if p.Addr().Is6() {
			list, known = &s.bits6, &seen[1][p.Bits()]
		}
		if !*known {
			*known = true
			*list = append(*list, p.Bits())
		}
		s.prefixes[p.Masked()] = struct{}{}
	}
	return s
}

func (s *set) contains(a netip.Addr) bool {
	list := s.bits4
	if a.Is6() {
		list = s.bits6
	}
	for _, bits := range list {
		if p, err := a.Prefix(bits); err == nil {
			if _, ok := s.prefixes[p]; ok {
				return true
			}
		}
	}
	return false
}

// Contains implements traits.Container.
func (s *set) Contains(v ref.Val) ref.Val {
	ip, ok := v.(ext.IP)
	if !ok {
		return types.MaybeNoSuchOverloadErr(v)
	}
	return types.Bool(s.contains(ip.Addr))
}

func (s *set) ConvertToType(t ref.Type) ref.Val {
	return types.NewErr("prefixes cannot become %s", t.TypeName())
}
func (s *set) Equal(v ref.Val) ref.Val { return types.Bool(v == ref.Val(s)) }
func (s *set) Value() any              { return s }

// fieldMap is header fields as a map. Names are found in any case; a field that
// is there several times has its values joined with ", " (RFC 9110 5.3), and one
// that is not there is "".
type fieldMap struct {
	value
	fields Fields
	list   []string // names, when they have been asked for
	listed bool
}

var (
	fieldMapType               = types.NewMapType(types.StringType, types.StringType)
	_            traits.Mapper = (*fieldMap)(nil)
)

func newFieldMap(f Fields) *fieldMap { return &fieldMap{value: value{fieldMapType}, fields: f} }

// lookup returns the value of a field and whether there is one.
func (m *fieldMap) lookup(key string) (v string, ok bool) {
	var joined []byte
	for i := range m.fields.Len() {
		name, text := m.fields.At(i)
		switch {
		case !fold(name, key):
		case !ok:
			v, ok = string(text), true
		case joined == nil:
			joined = append(append([]byte(v), ", "...), text...)
		default:
			joined = append(append(joined, ", "...), text...)
		}
	}
	if joined != nil {
		v = string(joined)
	}
	return v, ok
}

// fold reports whether a and b are the same but for the case of ASCII letters.
func fold(a []byte, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i, c := range a {
		if d := b[i]; c != d && (c|0x20 != d|0x20 || c|0x20 < 'a' || c|0x20 > 'z') {
			return false
		}
	}
	return true
}

// Find implements traits.Mapper.
func (m *fieldMap) Find(key ref.Val) (ref.Val, bool) {
	k, ok := key.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(key), true
	}
	v, _ := m.lookup(string(k))
	return types.String(v), true
}

// Get implements traits.Indexer.
func (m *fieldMap) Get(key ref.Val) ref.Val { v, _ := m.Find(key); return v }

// Contains implements traits.Container.
func (m *fieldMap) Contains(key ref.Val) ref.Val {
	k, ok := key.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(key)
	}
	_, ok = m.lookup(string(k))
	return types.Bool(ok)
}

// names returns the names that there are, each once, in lower case.
func (m *fieldMap) names() []string {
	if m.listed {
		return m.list
	}
	m.listed = true
	seen := make(map[string]bool, m.fields.Len())
	for i := range m.fields.Len() {
		name, _ := m.fields.At(i)
		if n := strings.ToLower(string(name)); !seen[n] {
			seen[n] = true
			m.list = append(m.list, n)
		}
	}
	return m.list
}

// Size implements traits.Sizer.
func (m *fieldMap) Size() ref.Val { return types.Int(len(m.names())) }

// Iterator implements traits.Iterable: over the names.
func (m *fieldMap) Iterator() traits.Iterator {
	return types.NewStringList(types.DefaultTypeAdapter, m.names()).Iterator()
}

// Equal implements ref.Val. Two maps are compared as CEL compares them.
func (m *fieldMap) Equal(v ref.Val) ref.Val {
	other, ok := v.(traits.Mapper)
	if !ok {
		return types.False
	}
	names := m.names()
	if other.Size() != types.Int(len(names)) {
		return types.False
	}
	for _, n := range names {
		have, _ := m.lookup(n)
		if want, ok := other.Find(types.String(n)); !ok || want.Equal(types.String(have)) != types.True {
			return types.False
		}
	}
	return types.True
}

func (m *fieldMap) ConvertToType(t ref.Type) ref.Val {
	switch t {
	case types.MapType:
		return m
	case types.TypeType:
		return fieldMapType
	}
	return types.NewErr("headers cannot become %s", t.TypeName())
}

func (m *fieldMap) Value() any { return m }
