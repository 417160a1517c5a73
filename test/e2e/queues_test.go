package e2e

import (
	"context"
	"testing"
	"time"

	"penstock/internal/lab"
)

// TestTwoQueues runs two workers: on veth the directions of a flow arrive at
// different queues, and must meet in one worker.
func TestTwoQueues(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{Veth: lab.VethOptions{Queues: 2}})
	r.config("closed", "", terminateChain)
	r.tcpServer(7000)
	a := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	const n = 100
	errs := make(chan error, n)
	for i := range n {
		go func() { errs <- r.client().TCPEcho(ctx, r.addr(i%2 == 1, 7000), 300000) }()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	s := a.status()
	if len(s.Workers) != 2 {
		t.Fatalf("%d workers", len(s.Workers))
	}
	for _, w := range s.Workers {
		t.Logf("worker %d: %d packets, %d handed over", w.ID, w.Totals.Packets, w.HandedOver)
	}
	a.stop()
}
