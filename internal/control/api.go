package control

import (
	_ "embed"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Description is the OpenAPI 3.1 document of everything in routes. A test
// writes it from the Go types and holds it against them.
//
//go:embed openapi.json
var Description []byte

// route is one thing that can be asked.
type route struct {
	method, path string
	summary      string
	action       string // in the audit log; "" for what changes nothing
	in, out      reflect.Type
	media        string // of an answer that is a stream; "": JSON
	answer       func(w http.ResponseWriter, r *http.Request) (any, error)
}

// routes are all there are.
func routes(src Source) []route {
	return slices.Concat([]route{
		get("/v1/openapi.json", "this description", func() (json.RawMessage, error) { return Description, nil }),
		get("/v1/status", "what the appliance is and does", func() (Status, error) { return src.Status(), nil }),
		get("/v1/sample", "the same, at a cost that does not grow with the number of flows", func() (Status, error) { return src.Sample(), nil }),
		get("/v1/flows", "the live flows", func() ([]Flow, error) { return list(src.Flows()) }),
		post(src, "/v1/flows/evict", "evict", "forget flows, each named by its ends, protocol and VLANs", func(flows []Flow) (evicted, error) {
			n, err := src.Evict(flows)
			return evicted{n}, err
		}),
	}, reloadRoutes(src), denyRoutes(src), captureRoutes(src))
}

// get answers a request that changes nothing.
func get[T any](path, summary string, fn func() (T, error)) route {
	return route{
		method: http.MethodGet, path: path, summary: summary, out: reflect.TypeFor[T](),
		answer: func(http.ResponseWriter, *http.Request) (any, error) { return fn() },
	}
}

// post answers a request that changes something, and has it audited. The body is
// an A; none at all is the zero value.
func post[A, T any](src Source, path, action, summary string, fn func(A) (T, error)) route {
	return route{
		method: http.MethodPost, path: path, summary: summary, action: action, in: reflect.TypeFor[A](), out: reflect.TypeFor[T](),
		answer: func(w http.ResponseWriter, r *http.Request) (any, error) {
			start := time.Now()
			var a A
			var v T
			err := body(w, r, &a)
			if err == nil {
				v, err = fn(a)
			}
			if changes(a) {
				e := Audit{Caller: callerOf(r), Action: action, What: what(a), Seconds: time.Since(start).Seconds()}
				e.Result, e.Error = outcome(v, err)
				src.Audited(e)
			}
			return v, err
		},
	}
}

// list makes a list that has nothing in it an empty one of JSON.
func list[T any](l []T, err error) ([]T, error) {
	if l == nil {
		l = []T{}
	}
	return l, err
}

// maxRequest bounds what a request may hold.
const maxRequest = 256 << 20

// body reads the one JSON value of a request into v.
func body(w http.ResponseWriter, r *http.Request, v any) error {
	if r.ContentLength == 0 {
		return nil
	}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	if err == nil {
		if _, err = dec.Token(); err == nil {
			err = errors.New("want one JSON value, got more")
		} else if errors.Is(err, io.EOF) {
			return nil
		}
	}
	var long *http.MaxBytesError
	if errors.As(err, &long) {
		return problemf(http.StatusRequestEntityTooLarge, "request_too_long", "send less at a time", "read request: want at most %d bytes", long.Limit)
	}
	return problemf(http.StatusBadRequest, "bad_request", "see the schema of the request in /v1/openapi.json", "read request: %w", err)
}

// apiHandler answers what is in routes, and everything else with a Problem.
func apiHandler(src Source) http.Handler {
	mux := http.NewServeMux()
	methods := map[string][]string{}
	for _, r := range routes(src) {
		methods[r.path] = append(methods[r.path], r.method)
		mux.HandleFunc(r.method+" "+r.path, func(w http.ResponseWriter, req *http.Request) {
			v, err := r.answer(w, req)
			if r.media == "" || err != nil { // a stream has been written
				reply(w, v, err)
			}
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, req *http.Request) {
		if allowed := methods[req.URL.Path]; allowed != nil {
			w.Header().Set("Allow", strings.Join(allowed, ", "))
			reply(w, nil, problemf(http.StatusMethodNotAllowed, "method_not_allowed", "ask with "+strings.Join(allowed, " or "),
				"%s %s: it is asked otherwise", req.Method, req.URL.Path))
			return
		}
		reply(w, nil, problemf(http.StatusNotFound, "no_such_path", "see /v1/openapi.json for what can be asked", "%s: there is no such path", req.URL.Path))
	})
	return mux
}

type evicted struct {
	Evicted int `json:"evicted"`
}

func reply(w http.ResponseWriter, v any, err error) {
	if err == nil {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v) // the client has gone: nothing to do
		return
	}
	p := problemOf(err)
	w.Header().Set("Content-Type", problemType)
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}
