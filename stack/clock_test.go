package stack_test

import (
	"fmt"
	"testing"
	"time"

	"penstock/stack"
)

// TestNothingSentAgain: without loss hardly anything is sent twice. What a stall
// of the machine makes netstack probe for is allowed for; segments of one turn
// that netstack takes for older than they are would be fifty to the megabyte.
func TestNothingSentAgain(t *testing.T) {
	for _, rack := range []bool{false, true} {
		t.Run(fmt.Sprintf("rack %v", rack), func(t *testing.T) { testNothingSentAgain(t, rack) })
	}
}

func testNothingSentAgain(t *testing.T, rack bool) {
	const answers = 8
	r := newRote(t, load{request: 128, response: 1 << 20}, func(o *stack.Options) { o.RACK = rack })
	r.open()
	r.until(func() bool { return r.done >= answers })
	r.bed.stage.Tick(time.Now().UnixNano())
	if n := r.bed.count("retransmits"); n > 5*answers {
		t.Errorf("%d segments sent again, without any loss", n)
	}
	r.over = true
	if err := r.worker.Close(); err != nil {
		t.Error(err)
	}
}
