package control

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
)

type denyAdded struct {
	Added int `json:"added"`
}

func denyRoutes(src Source) []route {
	return []route{
		get("/v1/deny", "the deny list", func() ([]Deny, error) { return list(src.DenyList()) }),
		post(src, "/v1/deny/add", "deny_add", "deny prefixes, all or none", func(a DenyAdd) (denyAdded, error) {
			if err := a.check(); err != nil {
				return denyAdded{}, Wrong(err)
			}
			n, err := src.DenyAdd(a)
			return denyAdded{n}, err
		}),
		post(src, "/v1/deny/del", "deny_del", "end denies of run time, all or none", func(a DenyDel) (struct{}, error) {
			if len(a.Prefixes) == 0 {
				return struct{}{}, Wrong(errNoPrefix)
			}
			return struct{}{}, src.DenyDel(a.Prefixes)
		}),
	}
}

var errNoPrefix = errors.New("want at least one prefix, got none; name some in prefixes")

// maxSeconds is the longest time for which something is denied: a hundred years.
const maxSeconds = 100 * 365 * 24 * 3600

func (a *DenyAdd) check() error {
	if len(a.Prefixes) == 0 {
		return errNoPrefix
	}
	if a.ForSeconds < 0 || a.ForSeconds > maxSeconds {
		return fmt.Errorf("want for_seconds from 0 to %d, got %g; 0 is for good", maxSeconds, a.ForSeconds)
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
	return c.do(http.MethodPost, "/v1/deny/del", DenyDel{Prefixes: prefixes}, &struct{}{})
}

// DenyList asks for the deny list.
func (c *Client) DenyList() (list []Deny, err error) { return list, c.get("/v1/deny", &list) }
