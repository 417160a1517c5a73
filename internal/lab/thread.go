package lab

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// spawn runs fn on a new goroutine that holds an OS thread of its own, and returns
// when the goroutine has the thread. fn returns whether the thread is again as it
// was found; otherwise it ends with the goroutine. The same holds when fn leaves by
// runtime.Goexit.
//
// It is never the process's first thread: the runtime cannot end that one, and
// /proc/self shows its namespaces as those of the process.
func spawn(fn func() (clean bool)) {
	locked := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			spawn(fn) // the first thread is held here, so this gets another
			runtime.UnlockOSThread()
			close(locked)
			return
		}
		close(locked)
		if fn() {
			runtime.UnlockOSThread()
		}
	}()
	<-locked
}
