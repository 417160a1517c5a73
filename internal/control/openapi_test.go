package control

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

var update = flag.Bool("update", false, "write openapi.json anew")

type object = map[string]any

// describer turns Go types into JSON schemas (draft 2020-12, as OpenAPI 3.1 has
// them), with the comments of their fields.
type describer struct {
	t        *testing.T
	comments map[string]string // "Type" or "Type.Field"
	schemas  object
	types    map[string]reflect.Type
}

var textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()

func (d *describer) schema(t reflect.Type) object {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case t == reflect.TypeFor[netip.Prefix]():
		return object{"type": "string", "examples": []string{"192.0.2.0/24", "2001:db8::/32"}}
	case t == reflect.TypeFor[json.RawMessage]():
		return object{"type": "object"}
	case t.Implements(textMarshaler):
		return object{"type": "string"}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return d.schema(t.Elem())
	case reflect.String:
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Float64:
		return object{"type": "number"}
	case reflect.Int, reflect.Int32, reflect.Int64:
		return object{"type": "integer"}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return object{"type": "integer", "minimum": 0}
	case reflect.Slice:
		return object{"type": "array", "items": d.schema(t.Elem())}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": d.schema(t.Elem())}
	case reflect.Struct:
		if t.Name() == "" {
			return object{"type": "object", "additionalProperties": false}
		}
		name := strings.ToUpper(t.Name()[:1]) + t.Name()[1:]
		if other, known := d.types[name]; !known {
			d.types[name] = t
			d.schemas[name] = d.fields(t)
		} else if other != t {
			d.t.Fatalf("%v and %v have one name", other, t)
		}
		return object{"$ref": "#/components/schemas/" + name}
	}
	d.t.Fatalf("no schema for %v", t)
	return nil
}

func (d *describer) fields(t reflect.Type) object {
	properties, required := object{}, []string{}
	var add func(t reflect.Type)
	add = func(t reflect.Type) {
		for i := range t.NumField() {
			f := t.Field(i)
			name, options, tagged := strings.Cut(f.Tag.Get("json"), ",")
			switch {
			case f.Anonymous && name == "":
				add(f.Type)
				continue
			case name == "-" || !f.IsExported():
				continue
			case name == "":
				d.t.Fatalf("%v.%s has no name in JSON", t, f.Name)
			}
			s := d.schema(f.Type)
			if text := d.comments[t.Name()+"."+f.Name]; text != "" {
				s["description"] = text
			}
			if tagged && strings.Contains(options, "omit") {
				properties[name] = s
				continue
			}
			if k := f.Type.Kind(); (k == reflect.Slice || k == reflect.Map) && s["type"] != nil {
				s["type"] = []string{s["type"].(string), "null"} // nil
			}
			properties[name], required = s, append(required, name)
		}
	}
	add(t)
	slices.Sort(required)
	s := object{"type": "object", "properties": properties, "required": slices.Compact(required), "additionalProperties": false}
	if text := d.comments[t.Name()]; text != "" {
		s["description"] = text
	}
	return s
}

// comments reads what the fields' comments say.
func comments(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, dir := range []string{".", "../../pipeline", "../latency"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			for _, decl := range f.Decls {
				gen, ok := decl.(*ast.GenDecl)
				if !ok {
					continue
				}
				for _, spec := range gen.Specs {
					ts, ok := spec.(*ast.TypeSpec)
					if !ok {
						continue
					}
					all[ts.Name.Name] = text(gen.Doc)
					if st, ok := ts.Type.(*ast.StructType); ok {
						for _, field := range st.Fields.List {
							for _, n := range field.Names {
								all[ts.Name.Name+"."+n.Name] = strings.TrimSpace(text(field.Doc) + " " + text(field.Comment))
							}
						}
					}
				}
			}
		}
	}
	return all
}

func text(g *ast.CommentGroup) string { return strings.Join(strings.Fields(g.Text()), " ") }

// described is the document as the table of routes has it.
func described(t *testing.T) []byte {
	t.Helper()
	d := &describer{t: t, comments: comments(t), schemas: object{}, types: map[string]reflect.Type{}}
	paths := map[string]object{}
	problem := object{"description": "it was not done", "content": object{problemType: object{"schema": d.schema(reflect.TypeFor[Problem]())}}}
	for _, r := range routes(example()) {
		op := object{
			"summary":     r.summary,
			"operationId": strings.ToLower(r.method) + strings.ReplaceAll(strings.NewReplacer("/v1", "", ".", "_").Replace(r.path), "/", "_"),
			"responses": object{
				"200":     object{"description": "done", "content": content(r.media, d.schema(r.out))},
				"default": problem,
			},
		}
		if r.in != nil {
			op["requestBody"] = object{"content": object{"application/json": object{"schema": d.schema(r.in)}}}
		}
		if r.action != "" {
			op["x-audit-action"] = r.action
		}
		if paths[r.path] == nil {
			paths[r.path] = object{}
		}
		paths[r.path][strings.ToLower(r.method)] = op
	}
	b, err := json.MarshalIndent(object{
		"openapi": "3.1.0",
		"info": object{
			"title": "Penstock control API", "version": "1",
			"description": "What a running appliance is asked over its control socket, or over TCP with certificates on both sides. Paths and what they mean stay as they are within /v1; answers may gain members.",
			"license":     object{"name": "Apache-2.0", "identifier": "Apache-2.0"},
		},
		"servers":    []object{{"url": "http://penstock", "description": "over the unix socket; the name does not matter"}},
		"paths":      paths,
		"components": object{"schemas": d.schemas},
	}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

// content is an answer of a type of media, JSON of a schema if it is "".
func content(media string, schema object) object {
	if media != "" {
		return object{media: object{}}
	}
	return object{"application/json": object{"schema": schema}}
}

// TestDescription: what openapi.json says is what the table of routes and its
// types say.
func TestDescription(t *testing.T) {
	want := described(t)
	if *update {
		if err := os.WriteFile("openapi.json", want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(want, Description) {
		t.Error("openapi.json is not what the handlers are: run make docs")
	}
}

// document is as much of openapi.json as a client needs.
type document struct {
	OpenAPI string
	Paths   map[string]map[string]struct {
		Summary     string
		OperationID string
		Action      string `json:"x-audit-action"`
		RequestBody any
		Responses   map[string]struct{ Content map[string]any }
	}
}

// asked are requests that work, by route.
func asked() map[string]any {
	prefixes := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	return map[string]any{
		"POST /v1/deny/add": DenyAdd{Prefixes: prefixes, ForSeconds: 60, Why: "scan"}, "POST /v1/deny/del": DenyDel{prefixes},
		"POST /v1/drain": DrainAsk{Chain: "web"}, "POST /v1/flows/evict": example().flows, "POST /v1/handover": nil,
		"POST /v1/capture": CaptureAsk{At: "lan:rx"}, "POST /v1/capture/stop": captureStop{7}, "POST /v1/reload": ReloadAsk{},
	}
}

// checker compiles the schemas of the document that the server serves.
func checker(t *testing.T, served []byte) func(pointer ...string) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(served))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	if err := c.AddResource("openapi.json", doc); err != nil {
		t.Fatal(err)
	}
	return func(pointer ...string) *jsonschema.Schema {
		t.Helper()
		at := "openapi.json#"
		for _, p := range pointer {
			at += "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(p)
		}
		s, err := c.Compile(at)
		if err != nil {
			t.Fatalf("%s: %v", at, err)
		}
		return s
	}
}

// TestDescriptionHolds: a running server serves the description; what it answers
// to each request in it is of the schema that is described; and it answers
// nothing that is not in it.
func TestDescriptionHolds(t *testing.T) {
	src := example()
	path, _ := serve(t, src)
	c := NewClient(path)
	ask := func(method, url string, send any) (*http.Response, []byte) {
		t.Helper()
		var body io.Reader
		if send != nil {
			b, err := json.Marshal(send)
			if err != nil {
				t.Fatal(err)
			}
			body = bytes.NewReader(b)
		}
		req, err := http.NewRequest(method, "http://penstock"+url, body)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, b
	}
	resp, served := ask(http.MethodGet, "/v1/openapi.json", nil)
	var doc document
	if err := json.Unmarshal(served, &doc); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status, err)
	}
	schema := checker(t, served)
	valid := func(what string, s *jsonschema.Schema, b []byte) {
		t.Helper()
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
		if err == nil {
			err = s.Validate(v)
		}
		if err != nil {
			t.Errorf("%s: %v\n%s", what, err, b)
		}
	}
	operations := map[string]bool{}
	requests := asked()
	for url, methods := range doc.Paths {
		for method, op := range methods {
			id := strings.ToUpper(method) + " " + url
			send, known := requests[id]
			if !known && op.RequestBody != nil {
				t.Errorf("%s: no request to test it with", id)
			}
			if operations[op.OperationID] || op.Summary == "" {
				t.Errorf("%s: %+v", id, op)
			}
			operations[op.OperationID] = true
			src.err = nil
			src.denied = []DenyAdd{{Prefixes: []netip.Prefix{netip.MustParsePrefix("::/0")}}}
			resp, b := ask(strings.ToUpper(method), url, send)
			media := resp.Header.Get("Content-Type")
			if _, described := op.Responses["200"].Content[media]; resp.StatusCode != http.StatusOK || !described {
				t.Errorf("%s: %s, %s, %s", id, resp.Status, media, b)
			}
			if media == "application/json" {
				valid(id, schema("paths", url, method, "responses", "200", "content", "application/json", "schema"), b)
			}
			if send != nil {
				sent, err := json.Marshal(send)
				if err != nil {
					t.Fatal(err)
				}
				valid(id, schema("paths", url, method, "requestBody", "content", "application/json", "schema"), sent)
			}
			bad := schema("paths", url, method, "responses", "default", "content", problemType, "schema")
			src.err = errors.New("write gate state: disk full; make room")
			if resp, b := ask(strings.ToUpper(method), url, send); resp.StatusCode != http.StatusOK {
				valid(id, bad, b)
				var p Problem
				if err := json.Unmarshal(b, &p); err != nil || p.Code != "failed" || p.Mend != "make room" || resp.Header.Get("Content-Type") != problemType {
					t.Errorf("%s: %s, %v", id, b, err)
				}
			} else if url != "/v1/status" && url != "/v1/sample" && url != "/v1/openapi.json" {
				t.Errorf("%s: an error of the appliance is not told", id)
			}
			other := map[string]string{"get": http.MethodPut, "post": http.MethodDelete}[method]
			resp, b = ask(other, url, nil)
			valid(id, bad, b)
			if resp.StatusCode != http.StatusMethodNotAllowed || !strings.Contains(resp.Header.Get("Allow"), strings.ToUpper(method)) {
				t.Errorf("%s %s: %s, Allow %q", other, url, resp.Status, resp.Header.Get("Allow"))
			}
			if op.RequestBody != nil {
				for _, nonsense := range []any{object{"no_such_member": 1}, "text"} {
					resp, b := ask(strings.ToUpper(method), url, nonsense)
					valid(id, bad, b)
					if resp.StatusCode != http.StatusBadRequest {
						t.Errorf("%s with nonsense: %s %s", id, resp.Status, b)
					}
				}
			}
			delete(requests, id)
		}
	}
	if len(requests) > 0 {
		t.Errorf("not described: %v", requests)
	}
	for _, r := range routes(src) {
		if op, ok := doc.Paths[r.path][strings.ToLower(r.method)]; !ok || op.Action != r.action {
			t.Errorf("%s %s is not described, or its action is %q", r.method, r.path, r.action)
		}
	}
	for _, url := range []string{"/", "/v1", "/v1/no", "/v2/status", "/v1/status/"} {
		resp, b := ask(http.MethodGet, url, nil)
		valid(url, schema("components", "schemas", "Problem"), b)
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", url, resp.Status)
		}
	}
}
