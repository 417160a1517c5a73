package config

import (
	"encoding"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// decoder fills Go values from a parsed document, strictly, and goes on after
// each problem, so that all of them are found. (The TOML library's own decoder
// stops at the first one and ignores keys it does not know.)
//
// A struct field is a key by its `toml` tag, else by its name in lower_snake.
// The tags `values:"a|b"`, `min` and `max` restrict strings and integers.
type decoder struct {
	report
}

// value decodes v, which stands at path, into rv.
func (d *decoder) value(path string, v any, rv reflect.Value, tag reflect.StructTag) {
	if rv.Kind() == reflect.Pointer {
		if rv.IsNil() {
			rv.Set(reflect.New(rv.Type().Elem()))
			if def, ok := rv.Interface().(defaulter); ok {
				def.setDefaults()
			}
		}
		d.value(path, v, rv.Elem(), tag)
		return
	}
	if rv.CanAddr() && rv.Addr().CanInterface() {
		switch u := rv.Addr().Interface().(type) {
		case unmarshaler:
			if err := u.UnmarshalTOML(v); err != nil {
				d.add(path, "%s", oneLine(err.Error()))
			}
			return
		case *time.Time:
			t, ok := v.(time.Time)
			if !ok {
				d.add(path, "want a date and time such as 2026-01-02T15:04:05Z, got %s", describe(v))
			}
			*u = t
			return
		case *time.Duration:
			d.duration(path, v, u)
			return
		case encoding.TextUnmarshaler:
			d.text(path, v, u, tag)
			return
		}
	}
	switch rv.Kind() {
	case reflect.Struct:
		d.table(path, v, rv)
	case reflect.Map:
		d.mapping(path, v, rv)
	case reflect.Slice, reflect.Array:
		d.list(path, v, rv, tag)
	case reflect.String:
		d.str(path, v, rv, tag)
	case reflect.Bool:
		if b, ok := v.(bool); ok {
			rv.SetBool(b)
		} else {
			d.add(path, "want true or false, got %s", describe(v))
		}
	case reflect.Float32, reflect.Float64:
		switch n := v.(type) {
		case float64:
			rv.SetFloat(n)
		case int64:
			rv.SetFloat(float64(n))
		default:
			d.add(path, "want a number, got %s", describe(v))
		}
	case reflect.Interface:
		if rv.NumMethod() == 0 {
			rv.Set(reflect.ValueOf(v))
			return
		}
		d.unsupported(rv)
	default:
		if rv.CanInt() || rv.CanUint() {
			d.integer(path, v, rv, tag)
			return
		}
		d.unsupported(rv)
	}
}

// unsupported is a mistake in the program, not in the file.
func (d *decoder) unsupported(rv reflect.Value) {
	panic(fmt.Sprintf("config: no TOML value can be decoded into a %s", rv.Type()))
}

func (d *decoder) table(path string, v any, rv reflect.Value) {
	t, ok := v.(map[string]any)
	if !ok {
		if _, isList := asList(v); isList && path != "" {
			d.add(path, "want one table, written [%s], got a list", headerName(path))
			return
		}
		d.add(path, "want a table, got %s", describe(v))
		return
	}
	fs := fieldsOf(rv.Type(), nil)
	names := make([]string, len(fs))
	for i, f := range fs {
		names[i] = f.name
	}
	for key, elem := range t {
		i := slices.Index(names, key)
		if i < 0 {
			d.addIn(child(path, key), path, "unknown key %q: %s", shorten(key), meant(key, names))
			continue
		}
		d.value(child(path, key), elem, rv.FieldByIndex(fs[i].index), fs[i].tag)
	}
}

func (d *decoder) mapping(path string, v any, rv reflect.Value) {
	t, ok := v.(map[string]any)
	if !ok {
		d.add(path, "want a table, got %s", describe(v))
		return
	}
	if rv.IsNil() {
		rv.Set(reflect.MakeMap(rv.Type()))
	}
	for key, elem := range t {
		val := reflect.New(rv.Type().Elem()).Elem()
		d.value(child(path, key), elem, val, "")
		rv.SetMapIndex(reflect.ValueOf(key).Convert(rv.Type().Key()), val)
	}
}

// defaulter is an element of a list, or an optional table, that does not begin as its zero value.
type defaulter interface{ setDefaults() }

func (d *decoder) list(path string, v any, rv reflect.Value, tag reflect.StructTag) {
	elems, ok := asList(v)
	if !ok {
		k := rv.Type().Elem().Kind()
		if _, isTable := v.(map[string]any); isTable && (k == reflect.Struct || k == reflect.Map) {
			d.add(path, "want a list of tables, each written [[%s]], got one table", headerName(path))
			return
		}
		d.add(path, "want a list, got %s", describe(v))
		return
	}
	if rv.Kind() == reflect.Array {
		if len(elems) != rv.Len() {
			d.add(path, "want a list of %d, got %d", rv.Len(), len(elems))
			return
		}
	} else {
		rv.Set(reflect.MakeSlice(rv.Type(), len(elems), len(elems)))
	}
	for i, elem := range elems {
		e := rv.Index(i)
		if def, ok := e.Addr().Interface().(defaulter); ok {
			def.setDefaults()
		}
		d.value(element(path, i), elem, e, tag)
	}
}

func (d *decoder) str(path string, v any, rv reflect.Value, tag reflect.StructTag) {
	values := tag.Get("values")
	s, ok := v.(string)
	switch {
	case values != "" && (!ok || !slices.Contains(strings.Split(values, "|"), s)):
		d.add(path, "want %s, got %s", choice(strings.Split(values, "|")), describe(v))
	case !ok:
		d.add(path, "want a string, got %s", describe(v))
	default:
		rv.SetString(s)
	}
}

func (d *decoder) duration(path string, v any, to *time.Duration) {
	if s, ok := v.(string); ok {
		if t, err := time.ParseDuration(s); err == nil {
			*to = t
			return
		}
	}
	d.add(path, `want a duration such as "30s" or "250ms", got %s`, describe(v))
}

func (d *decoder) text(path string, v any, u encoding.TextUnmarshaler, tag reflect.StructTag) {
	var s string
	switch v := v.(type) {
	case string:
		s = v
	case int64, float64, bool:
		s = fmt.Sprint(v) // the type knows best what it wants instead
	default:
		d.add(path, "want a string, got %s", describe(v))
		return
	}
	if err := u.UnmarshalText([]byte(s)); err != nil {
		d.add(path, "%s", oneLine(err.Error()))
		return
	}
	d.bounds(path, s, u, tag)
}

// bounds holds a size or a duration against the limits that its key has, which
// are written as the value is.
func (d *decoder) bounds(path, s string, u encoding.TextUnmarshaler, tag reflect.StructTag) {
	value := reflect.ValueOf(u).Elem()
	limit := func(key string) (n int64, ok bool) {
		text, ok := tag.Lookup(key)
		if !ok || !value.CanInt() {
			return 0, false
		}
		l := reflect.New(value.Type())
		if err := l.Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(text)); err != nil {
			panic(err) // a tag of ours
		}
		return l.Elem().Int(), true
	}
	if n, ok := limit("min"); ok && value.Int() < n {
		d.add(path, "want at least %s, got %q", tag.Get("min"), s)
	}
	if n, ok := limit("max"); ok && value.Int() > n {
		d.add(path, "want at most %s, got %q", tag.Get("max"), s)
	}
}

func (d *decoder) integer(path string, v any, rv reflect.Value, tag reflect.StructTag) {
	low, high := int64(math.MinInt64), int64(math.MaxInt64)
	if bits := rv.Type().Bits(); rv.CanUint() {
		low = 0
		if bits < 64 {
			high = 1<<bits - 1
		}
	} else if bits < 64 {
		low, high = -1<<(bits-1), 1<<(bits-1)-1
	}
	if n, err := strconv.ParseInt(tag.Get("min"), 10, 64); err == nil {
		low = max(low, n)
	}
	if n, err := strconv.ParseInt(tag.Get("max"), 10, 64); err == nil {
		high = min(high, n)
	}
	want := "an integer"
	switch {
	case low > math.MinInt64 && high < math.MaxInt64:
		want = fmt.Sprintf("an integer from %d to %d", low, high)
	case low > math.MinInt64:
		want = fmt.Sprintf("an integer of at least %d", low)
	}
	n, ok := v.(int64)
	switch {
	case !ok || n < low || n > high:
		d.add(path, "want %s, got %s", want, describe(v))
	case rv.CanUint():
		rv.SetUint(uint64(n))
	default:
		rv.SetInt(n)
	}
}

// field is a key that a struct type has.
type field struct {
	name  string
	index []int
	tag   reflect.StructTag
}

// fieldsOf returns the keys of a struct type in order; embedded structs without
// a tag count as part of it.
func fieldsOf(t reflect.Type, prefix []int) []field {
	var fs []field
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		at := append(slices.Clone(prefix), i)
		switch {
		case f.Anonymous && name == "" && f.Type.Kind() == reflect.Struct:
			fs = append(fs, fieldsOf(f.Type, at)...)
		case name == "-" || !f.IsExported():
		case name == "":
			fs = append(fs, field{lowerSnake(f.Name), at, f.Tag})
		default:
			fs = append(fs, field{name, at, f.Tag})
		}
	}
	return fs
}

// lowerSnake turns "DenyHosts" into "deny_hosts" and "MaxURL" into "max_url".
func lowerSnake(s string) string {
	var b strings.Builder
	rs := []rune(s)
	for i, r := range rs {
		if unicode.IsUpper(r) && i > 0 && (!unicode.IsUpper(rs[i-1]) || i+1 < len(rs) && unicode.IsLower(rs[i+1])) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// asList returns v as a list; the library has two types for them.
func asList(v any) ([]any, bool) {
	switch v := v.(type) {
	case []any:
		return v, true
	case []map[string]any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = v[i]
		}
		return list, true
	}
	return nil, false
}

// describe says what a value is, for "got ...".
func describe(v any) string {
	switch v := v.(type) {
	case string:
		return strconv.Quote(shorten(v))
	case map[string]any:
		return "a table"
	case []any, []map[string]any:
		return "a list"
	case time.Time:
		return "the date " + v.Format(time.RFC3339)
	case float64:
		if s := strconv.FormatFloat(v, 'f', -1, 64); len(s) < 20 && !strings.ContainsAny(s, ".NI") {
			return s + ".0" // a float, though its value is whole
		}
	case nil:
		return "nothing"
	}
	return fmt.Sprint(v)
}

// headerName returns the path as it stands in a table header: without numbers.
func headerName(path string) string {
	var b strings.Builder
	inside := false
	for _, r := range path {
		switch r {
		case '[':
			inside = true
		case ']':
			inside = false
		default:
			if !inside {
				b.WriteRune(r)
			}
		}
	}
	return b.String()
}
