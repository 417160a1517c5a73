// Package labtest gives tests a lab: it asks for the privileges and cleans up. The
// trap: a privileged test that is skipped has not passed, so the skip is loud, and
// REQUIRE_PRIV=1 makes it a failure.
package labtest

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
	"testing"

	"penstock/internal/lab"
)

// NeedRoot skips the test if this process cannot build network namespaces, and fails
// it when REQUIRE_PRIV=1 is set.
func NeedRoot(t testing.TB) {
	t.Helper()
	switch err := lab.Privileged(); {
	case err == nil:
	case os.Getenv("REQUIRE_PRIV") == "1":
		t.Fatalf("REQUIRE_PRIV=1, but %v", err)
	default:
		t.Skipf("SKIPPED, NOT PASSED: %v", err)
	}
}

var onSignal sync.Once

// NewForTest returns a lab called "test" that is closed when the test ends, however
// it ends, or when SIGINT, SIGTERM or SIGHUP ends the process. It calls NeedRoot.
func NewForTest(t testing.TB) *lab.Lab {
	t.Helper()
	NeedRoot(t)
	onSignal.Do(func() {
		ch := make(chan os.Signal, 1)
		signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
		go func() {
			sig := (<-ch).(syscall.Signal)
			lab.CloseAll() // nobody is left to read its error
			signal.Reset(sig)
			syscall.Kill(os.Getpid(), sig) // end as the signal would have
		}()
	})
	l, err := lab.New("test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}
