package config

import (
	"encoding"
	"reflect"
	"strconv"
	"strings"

	"penstock/pipeline/fault"
)

// Key describes a key of the configuration, for documentation.
type Key struct {
	Table    string   `json:"table"` // "appliance", "port", "chain.stage", ...
	List     bool     `json:"list"`  // the table is written [[...]] and may stand several times
	Name     string   `json:"name"`
	Type     string   `json:"type"`
	Default  string   `json:"default,omitempty"` // as it would be written, "" for none
	Required bool     `json:"required"`
	Values   []string `json:"values,omitempty"` // the only ones, where there is a choice
	Min      string   `json:"min,omitempty"`
	Max      string   `json:"max,omitempty"`
	Help     string   `json:"help"` // one line
}

// Table describes a table of the configuration.
type Table struct {
	Name string `json:"name"`
	List bool   `json:"list"`
	Help string `json:"help"`
	Keys []Key  `json:"keys"`
}

// stageHead is what all stages have in common.
type stageHead struct {
	Kind string `toml:"kind" required:"" help:"the kind of stage; the other keys of the table are described with it"`
}

// Tables describes all tables, in the order in which a file has them. It reads
// the types that files are decoded into, so it cannot differ from them.
func Tables() []Table {
	doc := document{Appliance: defaultAppliance("penstock"), Gate: defaultGate("penstock"), OTLP: defaultOTLP()}
	var tables []Table
	v := reflect.ValueOf(&doc).Elem()
	for _, f := range fieldsOf(v.Type(), nil) {
		field := v.FieldByIndex(f.index)
		t := Table{Name: f.name, List: field.Kind() == reflect.Slice, Help: f.tag.Get("help")}
		if t.List {
			elem := reflect.New(field.Type().Elem())
			if d, ok := elem.Interface().(defaulter); ok {
				d.setDefaults()
			}
			field = elem.Elem()
		}
		if field.Kind() == reflect.Map { // a table for each name
			t.Name += ".NAME"
			field = reflect.Zero(field.Type().Elem())
		}
		t.Keys = keysOf(t, field)
		tables = append(tables, t)
		if f.name == "appliance" {
			at := Table{Name: "appliance.api", Help: "the control API over TCP too, with TLS 1.3, for clients with a certificate"}
			at.Keys = keysOf(at, reflect.ValueOf(API{}))
			tables = append(tables, at)
		}
		if f.name == "port" {
			ft := Table{Name: "port.fault", Help: "faults on purpose, for rehearsals: they strike what passes between the port above and user space"}
			ft.Keys = keysOf(ft, reflect.ValueOf(faultTable{fault.Default()}))
			tables = append(tables, ft)
		}
		if f.name == "chain" {
			st := Table{Name: "chain.stage", List: true, Help: "a stage of the chain above; they run from the first to the last"}
			st.Keys = keysOf(st, reflect.ValueOf(stageHead{}))
			tables = append(tables, st)
		}
	}
	return tables
}

// Keys describes the keys of all tables.
func Keys() (keys []Key) {
	for _, t := range Tables() {
		keys = append(keys, t.Keys...)
	}
	return keys
}

func keysOf(t Table, v reflect.Value) (keys []Key) {
	for _, f := range fieldsOf(v.Type(), nil) {
		if t.Name == "chain" && f.name == "stage" || t.Name == "port" && f.name == "fault" || t.Name == "appliance" && f.name == "api" {
			continue // a table of its own
		}
		_, required := f.tag.Lookup("required")
		k := Key{
			Table: t.Name, List: t.List, Name: f.name, Required: required,
			Type: typeName(f.tag, v.FieldByIndex(f.index)), Help: f.tag.Get("help"),
			Min: f.tag.Get("min"), Max: f.tag.Get("max"),
		}
		if values := f.tag.Get("values"); values != "" {
			k.Values = strings.Split(values, "|")
		}
		if !required {
			k.Default = literal(v.FieldByIndex(f.index))
		}
		keys = append(keys, k)
	}
	return keys
}

// typeName returns the type of a key in the words of a user.
func typeName(tag reflect.StructTag, v reflect.Value) string {
	if name := tag.Get("type"); name != "" {
		return name
	}
	if name := v.Type().Name(); name == "Size" || name == "Duration" || name == "Share" {
		return strings.ToLower(name)
	}
	switch {
	case v.Kind() == reflect.Slice:
		return "list of " + typeName("", reflect.Zero(v.Type().Elem())) + "s"
	case v.CanInt():
		return "integer"
	}
	return v.Kind().String()
}

// literal writes a default as TOML; "" for what is absent by default.
func literal(v reflect.Value) string {
	if v.Kind() == reflect.Pointer {
		return "" // not set
	}
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		text, err := m.MarshalText()
		if err != nil {
			return ""
		}
		return strconv.Quote(string(text))
	}
	switch v.Kind() {
	case reflect.Interface:
		return literal(v.Elem())
	case reflect.Slice:
		if v.IsNil() {
			return ""
		}
		parts := make([]string, v.Len())
		for i := range parts {
			parts[i] = literal(v.Index(i))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case reflect.Bool:
		return strconv.FormatBool(v.Bool())
	case reflect.String:
		if v.String() == "" {
			return ""
		}
		return strconv.Quote(v.String())
	}
	return strconv.FormatInt(v.Int(), 10)
}
