// Package watchdog notices workers that make no progress any more, and says in
// which stage.
//
// Its one trap: it counts its own ticks, not time. A process that was stopped for
// an hour and goes on has missed one tick, and so has each of its workers.
package watchdog

import (
	"context"
	"regexp"
	"runtime"
	"strings"
	"sync/atomic"
	"time"
)

// MaxWorkers is how many workers are watched.
const MaxWorkers = 256

// Watchdog watches workers by their beats. The zero value watches nothing that
// has not beaten yet.
type Watchdog struct {
	beats [MaxWorkers]atomic.Uint64
	done  [MaxWorkers]atomic.Bool
}

// Beat says that a worker works; its first beat has it watched. It takes no lock
// and allocates nothing. Workers beyond MaxWorkers are not watched.
func (d *Watchdog) Beat(worker int) {
	if uint(worker) < MaxWorkers {
		d.beats[worker].Add(1)
	}
}

// Forget ends the watching of a worker that ends on purpose. A later beat does not
// begin it again.
func (d *Watchdog) Forget(worker int) {
	if uint(worker) < MaxWorkers {
		d.done[worker].Store(true)
	}
}

// ticks is how many times a limit is divided.
const ticks = 10

// Watch returns the number of the first worker that has not beaten for limit, or
// -1 when ctx ends. Workers must beat more often than limit/10. alive, which may
// be nil, is called each limit/10 if every worker has beaten since.
func (d *Watchdog) Watch(ctx context.Context, limit time.Duration, alive func()) (stuck int) {
	ticker := time.NewTicker(limit / ticks)
	defer ticker.Stop()
	var last [MaxWorkers]uint64
	var silent [MaxWorkers]int
	for {
		select {
		case <-ctx.Done():
			return -1
		case <-ticker.C:
		}
		all := true
		for i := range last {
			n := d.beats[i].Load()
			if n == 0 || n != last[i] || d.done[i].Load() {
				last[i], silent[i] = n, 0
				continue
			}
			all = false
			if silent[i]++; silent[i] >= ticks {
				return i
			}
		}
		if all && alive != nil {
			alive()
		}
	}
}

// maxDump bounds a dump of stacks, in bytes.
const maxDump = 1 << 20

// Stacks returns the stacks of all goroutines, and the kinds of the stages in
// which workers are now, separated by commas; "" if no worker is in one.
func Stacks() (dump []byte, stages string) {
	dump = make([]byte, maxDump)
	dump = dump[:runtime.Stack(dump, true)]
	return dump, stagesIn(string(dump))
}

var (
	workerFrame = regexp.MustCompile(`(?m)^penstock/pipeline\.\(\*Worker\)\.`)
	stageFrame  = regexp.MustCompile(`(?m)^penstock/stages/([a-z0-9]+)\.`)
)

func stagesIn(dump string) string {
	var kinds []string
	for _, goroutine := range strings.Split(dump, "\n\n") {
		if !workerFrame.MatchString(goroutine) {
			continue
		}
		if m := stageFrame.FindStringSubmatch(goroutine); m != nil {
			kinds = append(kinds, m[1])
		}
	}
	return strings.Join(kinds, ",")
}
