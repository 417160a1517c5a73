package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// inspectChain looks into connections without terminating them, and does not let
// them go.
var inspectChain = inspecting(spliceChain)

func inspecting(chain string) string {
	out := bytes.Replace([]byte(chain), []byte(`depth = "terminate"`), []byte(`depth = "inspect"`), 1)
	if string(out) == chain {
		panic("the chain has no depth to change")
	}
	return string(out)
}

// recordDir stands for the bed's directory in a configuration.
const recordDir = "@DIR@"

// recordTo is a sink of a kind of event: a file, as the peers' log is.
func recordTo(event string) string {
	return fmt.Sprintf("\n[[record]]\nto     = \"file:%s/records.json\"\nevents = [%q]\n", recordDir, event)
}

// logged returns a reader of how many lines a log has.
func logged(path string) func() (uint64, error) {
	return func() (n uint64, err error) {
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			n++
		}
		return n, lines.Err()
	}
}

// startHAProxyHTTPLog starts HAProxy with the policy and the log of the chain
// with the http stage.
func startHAProxyHTTPLog(ctx context.Context, b *bed, s *site) (*running, error) {
	path := filepath.Join(b.dir, "haproxy.log")
	log, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has it
	r, err := startHAProxyWith(ctx, b, s, "http", noSharing+"\n  log global\n  option httplog",
		"http-request deny if { req.hdr(host) -m end .ads.example }", log)
	if err != nil {
		return r, err
	}
	r.logged = logged(path)
	return r, nil
}
