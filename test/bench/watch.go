package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// Gateways that do the same work, the first without being observed.
const (
	unseen      = "inspect+unseen"
	watched     = "inspect+watched"
	recorded    = "inspect+recorded"
	watchedPort = "127.0.0.1:9477"
)

func (g gateway) metrics() string {
	if g.watched {
		return watchedPort
	}
	return ""
}

// watch asks a gateway for metrics and for what its live page asks, each second,
// until the function that it returns is called. That fails if there was no answer.
func watch(s *site) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: s.gateway.DialContext}}
	var failed error
	answers := 0
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			for _, path := range []string{"/metrics", "/live.json"} {
				err := fetch(ctx, client, "http://"+watchedPort+path)
				switch {
				case ctx.Err() != nil:
				case err != nil:
					failed = err
				default:
					answers++
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	return func() error {
		cancel()
		done.Wait()
		client.CloseIdleConnections()
		if answers == 0 {
			return errors.Join(errors.New("watch gateway: no answer"), failed)
		}
		return nil
	}
}

func fetch(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: want status 200, got %s", url, resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
