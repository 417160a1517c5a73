package stack

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/log"
)

// netstackLog takes over what netstack logs, which is global to the process and
// goes to standard error otherwise. It says little, and limits its own rate.
type netstackLog struct{ to *slog.Logger }

var netstackLogOnce sync.Once

// logTo sends what netstack logs to the first logger that asks for it.
func logTo(l *slog.Logger) {
	if l == nil {
		return
	}
	netstackLogOnce.Do(func() { log.SetTarget(netstackLog{l}) })
}

// Emit implements log.Emitter.
func (n netstackLog) Emit(_ int, _ log.Level, _ time.Time, format string, args ...any) {
	n.to.Debug("netstack: " + fmt.Sprintf(format, args...))
}
