package watchdog

import (
	"context"
	"strings"
	"testing"
	"time"
)

func TestWatch(t *testing.T) {
	d := &Watchdog{}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	beating, stopped := make(chan int, 1), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		silent := false
		for {
			d.Beat(0)
			if !silent {
				d.Beat(3)
			}
			select {
			case <-ctx.Done():
				return
			case <-beating:
				silent = true
			case <-tick.C:
			}
		}
	}()
	alive := make(chan struct{}, 1000)
	stuck := make(chan int, 1)
	go func() {
		stuck <- d.Watch(ctx, time.Second, func() {
			select {
			case alive <- struct{}{}:
			default:
			}
		})
	}()
	for range 3 {
		select {
		case <-alive:
		case n := <-stuck:
			t.Fatalf("worker %d is taken for stuck", n)
		}
	}
	start := time.Now()
	beating <- 0
	if n := <-stuck; n != 3 {
		t.Errorf("worker %d is stuck, want 3", n)
	}
	if took := time.Since(start); took < 900*time.Millisecond {
		t.Errorf("after %v, want a second", took)
	}
	// One that has left is not missed.
	d.Forget(3)
	go func() { stuck <- d.Watch(ctx, 100*time.Millisecond, nil) }()
	select {
	case n := <-stuck:
		t.Errorf("worker %d is stuck", n)
	case <-time.After(300 * time.Millisecond): // three times the limit
	}
	cancel()
	<-stopped
	if n := <-stuck; n != -1 {
		t.Errorf("got %d at the end, want -1", n)
	}
}

// TestBeat: any number is taken, and costs no memory.
func TestBeat(t *testing.T) {
	d := &Watchdog{}
	d.Forget(-1)
	d.Forget(MaxWorkers)
	if n := testing.AllocsPerRun(100, func() {
		d.Beat(0)
		d.Beat(-1)
		d.Beat(MaxWorkers)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestStagesIn(t *testing.T) {
	dump := strings.ReplaceAll(`goroutine 7 [running]:
penstock/stages/acl.(*stage).Process(0x1)
	/src/acl.go:7
penstock/pipeline.(*Chain).process(0x1)
	/src/chain.go:7
penstock/pipeline.(*Worker).Turn(0x1)
	/src/worker.go:7

goroutine 8 [select]:
penstock/stages/llm.(*x).background(0x1)
	/src/llm.go:7
`, "    ", "\t")
	if got := stagesIn(dump); got != "acl" {
		t.Errorf("got %q", got)
	}
	if b, stages := Stacks(); !strings.Contains(string(b), "TestStagesIn") || stages != "" {
		t.Errorf("%q, %s", stages, b)
	}
}
