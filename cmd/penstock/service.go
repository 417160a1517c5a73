package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"penstock/internal/notify"
	"penstock/internal/watchdog"
)

// service is what an appliance tells its service manager, and the watch over its
// workers.
type service struct {
	a       *appliance
	manager *notify.Manager
	stuck   chan error // a worker makes no progress: the process is to end as it is
	stop    context.CancelFunc
}

// startService begins the watch, and says that the appliance is ready.
func startService(a *appliance) *service {
	ctx, cancel := context.WithCancel(context.Background())
	s := &service{a: a, stuck: make(chan error, 1), stop: cancel}
	var err error
	if s.manager, err = notify.Open(); err != nil {
		a.log.Warn("the service manager is not told", "err", err)
	}
	go s.watch(ctx)
	s.ready()
	return s
}

// startHold is how long a start that has failed lasts where a service manager would
// begin the next one at once. What ends while it runs is replaced without delay.
const startHold = time.Second

// notStarted tells the service manager why, and returns it.
func notStarted(err error, signals <-chan os.Signal) error {
	manager, _ := notify.Open()
	if manager == nil {
		return err
	}
	defer manager.Close()
	_ = manager.Tell("STATUS=not started: " + strings.ReplaceAll(or(err.Error(), "the configuration is wrong"), "\n", " "))
	select {
	case <-time.After(startHold):
	case <-signals:
	}
	return err
}

// watch feeds the service manager while every worker makes progress, and ends
// the process when one does not. Nothing is taken down then: that would wait for the
// worker. What XDP does is up to on_exit.
func (s *service) watch(ctx context.Context) {
	limit := time.Duration(s.a.cfg.Appliance.StuckTimeout)
	period, told := notify.Watchdog()/2, time.Time{}
	alive := func() {
		if period > 0 && time.Since(told) >= period/2 {
			told = time.Now()
			s.tell(s.manager.Alive())
		}
	}
	worker := s.a.watchdog.Watch(ctx, limit, alive)
	if worker < 0 {
		return
	}
	dump, stages := watchdog.Stacks()
	s.a.log.Error("worker is stuck: the process ends", "worker", worker, "stage", stages, "for", limit)
	_, _ = os.Stderr.Write(append(dump, '\n'))
	s.tell(s.manager.Tell("STATUS=worker is stuck"))
	s.stuck <- fmt.Errorf("worker %d has made no progress for %v (stage %s); its stack is in the log", worker, limit, or(stages, "none"))
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func (s *service) tell(err error) {
	if err != nil {
		s.a.log.Warn("the service manager does not hear", "err", err)
	}
}

func (s *service) ready() {
	s.tell(s.manager.Ready(fmt.Sprintf("%d ports, %d workers, %d chains", len(s.a.live().Ports), len(s.a.workers), len(s.a.live().Chains))))
}

func (s *service) reloading() { s.tell(s.manager.Reloading()) }

// stopping ends the watch: from here on workers end on purpose.
func (s *service) stopping(why string) {
	s.stop()
	s.tell(s.manager.Stopping("draining: " + why))
}

func (s *service) close() {
	s.stop()
	_ = s.manager.Close()
}
