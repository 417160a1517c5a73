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

func denyRoutes(src Source) []route {
	return []route{
		{http.MethodGet, "/v1/deny", "the deny list", ask(func() ([]Deny, error) { return list(src.DenyList()) })},
		{http.MethodPost, "/v1/deny/add", "deny prefixes", call(func(a DenyAdd) (denyAdded, error) {
			n, err := src.DenyAdd(a)
			return denyAdded{n}, err
		})},
		{http.MethodPost, "/v1/deny/del", "end denies of run time", call(func(a DenyAdd) (struct{}, error) {
			return struct{}{}, src.DenyDel(a.Prefixes)
		})},
	}
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
