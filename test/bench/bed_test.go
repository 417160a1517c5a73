package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"penstock/internal/lab/labtest"
)

func TestMain(m *testing.M) {
	if status, child := runChild(os.Args[1:]); child {
		os.Exit(status)
	}
	os.Exit(m.Run())
}

func TestBulk(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var received atomic.Int64
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_ = serveBulkConn(conn, &received)
			}()
		}
	}()
	for _, up := range []string{"-up=false", "-up=true"} {
		received.Store(0)
		var out bytes.Buffer
		if err := loadBulk([]string{up, "-conns=2", "-object=100000", "-duration=100ms", ln.Addr().String()}, &out); err != nil {
			t.Fatal(err)
		}
		var r bulkResult
		if err := json.Unmarshal(out.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		if r.Errors != 0 || r.Objects == 0 || r.Bytes < r.Objects*100000 {
			t.Errorf("%s: %+v", up, r)
		}
		if up == "-up=true" && received.Load() < r.Objects*100000 {
			t.Errorf("the server has %d bytes of %d objects", received.Load(), r.Objects)
		}
	}
	// A server that cuts its connections is an error, not a small figure.
	ln.Close()
	var out bytes.Buffer
	if err := loadBulk([]string{"-duration=1s", ln.Addr().String()}, &out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), `"errors":1`) {
		t.Errorf("without a server: %s", out.String())
	}
}

// TestRedirect runs the bench's own machinery on the gateway that needs no other
// program: namespaces, pinning, CPU accounts, verification and one load.
func TestRedirect(t *testing.T) {
	labtest.NeedRoot(t)
	if testing.Short() {
		t.Skip("it loads two CPUs for a second")
	}
	bulkOnly := workload{name: "download", unit: "Gbit", run: runDownload}
	o := options{gateways: gateways()[:1], workloads: []workload{bulkOnly}, rounds: 1, seconds: 1}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	b, err := newBed(ctx, t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.close(); err != nil {
			t.Error(err)
		}
	}()
	g := o.gateways[0]
	var results []result
	for round := range 5 { // in a second of a busy machine no object may come through whole
		results = b.measure(ctx, g, o.workloads, round, func(result) {})
		if len(results) == 1 && results[0].Failed == "" {
			break
		}
	}
	if len(results) != 1 || results[0].Failed != "" {
		t.Fatalf("%+v", results)
	}
	if m := results[0]; m.Work <= 0 || m.CPUSeconds <= 0 || m.CPUSeconds > 1.2*m.Seconds+0.1 {
		t.Errorf("one CPU did %.2f Gbit in %.2f s of CPU time and %.2f s", m.Work, m.CPUSeconds, m.Seconds)
	}
	// Without a gateway nothing gets through, and the check before a load says so.
	if err := transparency(ctx, g, b.sites[g.name]); err == nil {
		t.Error("the ends reach each other without a gateway")
	}
}
