package main

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRecordedConnectionIsPlayed(t *testing.T) {
	recorded, err := recordTLS(playBytes)
	if err != nil {
		t.Fatal(err)
	}
	// A ClientHello first, with the name that policies look for; the object at the end.
	if !recorded[0].Client || recorded[0].Bytes[0] != 22 || !strings.Contains(string(recorded[0].Bytes), tlsServer) {
		t.Fatalf("the recording begins with % x", recorded[0].Bytes[:8])
	}
	var sizes [2]int
	for _, s := range recorded {
		if s.Client {
			sizes[0] += len(s.Bytes)
		} else {
			sizes[1] += len(s.Bytes)
		}
	}
	if sizes[0] < 300 || sizes[1] < playBytes+300 {
		t.Errorf("the client says %d bytes, the server %d: that is no handshake with %d bytes behind it", sizes[0], sizes[1], playBytes)
	}
	text, err := json.Marshal(recorded)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	script, longest, err := readScript(path)
	if err != nil {
		t.Fatal(err)
	}
	both := func(server []said) (error, error) {
		a, b := net.Pipe()
		for _, c := range []net.Conn{a, b} {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		}
		served := make(chan error, 1)
		go func() {
			defer b.Close()
			served <- play(b, server, false, make([]byte, longest))
		}()
		err := play(a, script, true, make([]byte, longest))
		a.Close()
		return err, <-served
	}
	if client, server := both(script); client != nil || server != nil {
		t.Errorf("playing it: client %v, server %v", client, server)
	}
	// A byte of what the server says first is another one on the way.
	changed := append([]said(nil), script...)
	for i, s := range changed {
		if !s.Client {
			b := append([]byte(nil), s.Bytes...)
			b[len(b)/2] ^= 1
			changed[i].Bytes = b
			break
		}
	}
	if client, _ := both(changed); client == nil {
		t.Error("the client has not noticed a wrong byte")
	}
}
