package control

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
)

type denyAdded struct {
	Added int `json:"added"`
}

func denyHandlers(mux *http.ServeMux, src Source) {
	mux.HandleFunc("GET /v1/deny", func(w http.ResponseWriter, _ *http.Request) {
		list, err := src.DenyList()
		if list == nil {
			list = []Deny{}
		}
		reply(w, list, err)
	})
	mux.HandleFunc("POST /v1/deny/add", func(w http.ResponseWriter, r *http.Request) {
		var a DenyAdd
		var n int
		err := body(w, r, &a)
		if err == nil {
			n, err = src.DenyAdd(a)
		}
		reply(w, denyAdded{n}, err)
	})
	mux.HandleFunc("POST /v1/deny/del", func(w http.ResponseWriter, r *http.Request) {
		var a DenyAdd
		err := body(w, r, &a)
		if err == nil {
			err = src.DenyDel(a.Prefixes)
		}
		reply(w, struct{}{}, err)
	})
}

func body(w http.ResponseWriter, r *http.Request, v any) error {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	return nil
}

// DenyAdd denies prefixes, all or none, and returns how many were new.
func (c *Client) DenyAdd(a DenyAdd) (int, error) {
	var n denyAdded
	err := c.do(http.MethodPost, "/v1/deny/add", a, &n)
	return n.Added, err
}

// DenyDel ends denies of run time, all or none.
func (c *Client) DenyDel(prefixes []netip.Prefix) error {
	return c.do(http.MethodPost, "/v1/deny/del", DenyAdd{Prefixes: prefixes}, &struct{}{})
}

// DenyList asks for the deny list.
func (c *Client) DenyList() (list []Deny, err error) { return list, c.get("/v1/deny", &list) }
