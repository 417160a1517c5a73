package policy

import (
	"net/netip"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/ext"

	"penstock/pipeline"
)

// Var is a variable of expressions about a T: "tls.sni". Make one with String,
// Strings, Bool, Int, Addr or Map.
type Var[T any] struct {
	Name string
	Help string // one line
	typ  *cel.Type
	size uint64 // most characters of a string, or elements of a list or map
	elem uint64 // most characters of an element
	get  func(*T) ref.Val
}

// Type returns the variable's type as CEL writes it.
func (v *Var[T]) Type() string { return v.typ.String() }

// String returns a variable that is a string of at most size bytes.
func String[T any](name string, size int, get func(*T) string, help string) Var[T] {
	return Var[T]{name, help, cel.StringType, uint64(size), 0, func(t *T) ref.Val {
		s := get(t)
		if len(s) > size {
			return tooLarge(name, len(s), size)
		}
		return types.String(s)
	}}
}

// tooLarge is the value of a variable that is larger than the cost of rules was
// estimated for: who asks for it fails.
func tooLarge(name string, got, most int) ref.Val {
	return types.NewErr("%s has %d bytes or elements, more than %d", name, got, most)
}

// Strings returns a variable that is a list of at most n strings of at most size
// bytes.
func Strings[T any](name string, n, size int, get func(*T) []string, help string) Var[T] {
	return Var[T]{name, help, cel.ListType(cel.StringType), uint64(n), uint64(size), func(t *T) ref.Val {
		list := get(t)
		if len(list) > n {
			return tooLarge(name, len(list), n)
		}
		for _, s := range list {
			if len(s) > size {
				return tooLarge(name, len(s), size)
			}
		}
		return types.NewStringList(types.DefaultTypeAdapter, list)
	}}
}

// Bool returns a variable that is true or false.
func Bool[T any](name string, get func(*T) bool, help string) Var[T] {
	return Var[T]{name, help, cel.BoolType, 1, 0, func(t *T) ref.Val { return types.Bool(get(t)) }}
}

// Int returns a variable that is a number.
func Int[T any](name string, get func(*T) int64, help string) Var[T] {
	return Var[T]{name, help, cel.IntType, 1, 0, func(t *T) ref.Val { return types.Int(get(t)) }}
}

// Addr returns a variable that is an IP address.
func Addr[T any](name string, get func(*T) netip.Addr, help string) Var[T] {
	return Var[T]{name, help, ext.IPType, 1, 0, func(t *T) ref.Val { return ext.IP{Addr: get(t).Unmap()} }}
}

// Map returns a variable that is a map of at most n fields. Its names and values
// are priced as of size bytes; longer ones are held against the cost when a rule
// runs.
func Map[T any](name string, n, size int, get func(*T) Fields, help string) Var[T] {
	return Var[T]{name, help, cel.MapType(cel.StringType, cel.StringType), uint64(n), uint64(size), func(t *T) ref.Val {
		f := get(t)
		if f.Len() > n {
			return tooLarge(name, f.Len(), n)
		}
		return newFieldMap(f)
	}}
}

// FlowVars returns what every stage knows of a connection. place returns where
// the stage of a T is, and its connection.
func FlowVars[T any](place func(*T) (*pipeline.Env, *pipeline.Conn)) []Var[T] {
	conn := func(t *T) *pipeline.Conn { _, c := place(t); return c }
	return []Var[T]{
		Addr("flow.src", func(t *T) netip.Addr { return conn(t).Client.Addr() }, "the client's address"),
		Addr("flow.dst", func(t *T) netip.Addr { return conn(t).Server.Addr() }, "the server's address, as the client asked for it"),
		Int("flow.src_port", func(t *T) int64 { return int64(conn(t).Client.Port()) }, "the client's port"),
		Int("flow.dst_port", func(t *T) int64 { return int64(conn(t).Server.Port()) }, "the server's port"),
		Int("flow.vlan", func(t *T) int64 { return int64(conn(t).Flow.VLAN[0] & 0x0fff) }, "the id of the outer VLAN tag, 0 without one"),
		Int("flow.ip_version", func(t *T) int64 {
			if conn(t).Server.Addr().Unmap().Is4() {
				return 4
			}
			return 6
		}, "4 or 6"),
		String("flow.from", 32, func(t *T) string {
			env, c := place(t)
			if int(c.In) < len(env.Ports) {
				return env.Ports[c.In].Name
			}
			return ""
		}, "the name of the port on the client's side"),
	}
}
