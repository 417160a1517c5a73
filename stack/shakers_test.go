package stack

import (
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// TestShakersStop: the goroutines serve many handshakes, and end, also where
// netstack has swallowed a SYN for which none was ever started.
func TestShakersStop(t *testing.T) {
	h := newShakers()
	var mu sync.Mutex
	served := 0
	run := h.run(func(*tcp.ForwarderRequest) {
		mu.Lock()
		served++
		mu.Unlock()
	})
	var started sync.WaitGroup
	for range 1000 {
		started.Add(1)
		go func() {
			started.Done()
			run(nil)
		}()
	}
	started.Wait()
	deadline := time.Now().Add(10 * time.Second)
	for {
		mu.Lock()
		n := served
		mu.Unlock()
		if n == 1000 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of 1000 handshakes served", n)
		}
		time.Sleep(time.Millisecond)
	}
	done := make(chan struct{})
	go func() {
		h.stop()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(2 * closeWait):
		t.Fatal("stop does not return")
	}
	if n := h.live.Load(); n != 0 {
		t.Errorf("%d goroutines are left", n)
	}
}
