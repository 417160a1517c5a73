package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"penstock/bpf"
	"penstock/internal/config"
	"penstock/internal/control"
	"penstock/internal/doctor"
	"penstock/internal/gate"
	"penstock/internal/ipfix"
	"penstock/internal/otlp"
	"penstock/internal/record"
	"penstock/internal/route"
	"penstock/internal/watchdog"
	"penstock/pipeline"
	"penstock/pipeline/afxdp"
	"penstock/pipeline/fault"
	"penstock/xsk"
)

// appliance is everything that runs for one configuration. It is built in
// order and taken down in reverse; a failure half-way leaves nothing attached.
type appliance struct {
	cfg     *config.Config
	log     *slog.Logger
	started time.Time

	lock    *os.File
	ports   atomic.Pointer[[]*port] // by number; nil where there is none. Who changes it holds changing
	steerer *bpf.Steerer
	pinned  bool // or will be, when another takes over
	memory  *afxdp.Memory
	waiters []*afxdp.Waiter
	workers []*pipeline.Worker
	table   *gateTable
	gate    *gate.Gate
	record  *record.Recorder
	lanes   []*record.Lane // of it, by worker
	// endedLane is that of flows that are over, of which bpf tells one at a time.
	endedLane *record.Lane
	ongoing   []*ongoing // by collector

	eventReader eventReader
	ipfix       []*ipfix.Exporter
	otlp        *otlp.Exporter // nil: none
	server      *control.Server
	router      *route.Router // nil: bridge mode

	watchdog watchdog.Watchdog
	rings    rings
	past     []uint64 // by worker: packets past silent ones that it knows of
	stop     context.CancelFunc
	running  sync.WaitGroup
	failed   chan error
	handover chan struct{} // somebody wants to take over
	reloaded chan struct{} // somebody has changed the configuration
	places   places
	captures captures
	changing sync.Mutex      // held by who changes places
	ended    <-chan struct{} // the workers stop

	warnings []string      // of the start, for status
	before   *control.Exit // what the instance before this one said

	offloadFailing atomic.Bool // said so
}

// startAppliance builds the appliance and starts its workers. They run before
// XDP sends them anything: what it would find silent goes past them.
func startAppliance(cfg *config.Config, log *slog.Logger) (a *appliance, err error) {
	a = &appliance{cfg: cfg, log: log, started: time.Now(), failed: make(chan error, 1), handover: make(chan struct{}, 1),
		reloaded: make(chan struct{}, 1), stop: func() {}}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close(true, nil))
			a = nil
		}
	}()
	for _, step := range []func() error{
		a.findInterfaces, a.openRecorder, a.openExporters, a.loadXDP, a.takePlace, a.openGate, a.openRouter,
		a.openQueues, a.buildWorkers, a.startWorkers, a.attach, a.watchRings, a.serve, a.startMetrics,
	} {
		if err := step(); err != nil {
			return a, err
		}
	}
	return a, nil
}

// findInterfaces makes the checks that decide a start.
func (a *appliance) findInterfaces() error {
	facts := doctor.LookForStart(subject(a.cfg))
	warnings, err := doctor.Start(facts)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		a.warnings = append(a.warnings, w)
		a.log.Warn(w)
	}
	places := a.placePorts()
	var list []*port
	for i, f := range facts.Interfaces {
		p := &port{id: places[i], conf: a.cfg.Ports[i], nic: nicOf(f)}
		if !p.nic.up {
			a.log.Warn("link is down; the appliance waits for it", "port", p.conf.Name, "interface", p.nic.name)
		}
		list = append(list, make([]*port, max(p.id+1-len(list), 0))...)
		list[p.id] = p
	}
	a.ports.Store(&list)
	return nil
}

func (a *appliance) openRecorder() (err error) {
	if a.record, err = record.Open(recordSpecs(a.cfg), a.log); err == nil {
		a.endedLane = a.record.Lane()
	}
	return err
}

func (a *appliance) loadXDP() (err error) {
	o := steerOptions(a.cfg)
	o.Events = xdpEvents(recordSpecs(a.cfg))
	o.Ports = make([]bpf.Port, len(*a.ports.Load()))
	for p := range a.eachPort() {
		o.Ports[p.id] = p.steered()
	}
	o.Rules = a.numbered(o.Rules)
	if o.PinRoot != "" {
		if err := bpf.EnsureBPFFS(o.PinRoot); err != nil {
			if !o.LinksLate {
				return fmt.Errorf("%w; on_exit = \"open\" needs it: set pins in [appliance] to a directory on a BPF file system, or on_exit = \"closed\"", err)
			}
			a.log.Warn("nothing can be pinned; the next start cannot take over from this one", "err", err)
			o.PinRoot = ""
		}
	}
	a.pinned = o.PinRoot != ""
	a.steerer, err = bpf.Load(o)
	return err
}

// tellInheritance says what became of the flows of an instance before this one.
func (a *appliance) tellInheritance() {
	i := a.steerer.Inherited()
	if i.Refused != "" {
		a.log.Warn("flows of the last instance are not taken over; TCP flows of it are midstream", "why", i.Refused)
	} else if i.Flows+i.Forgotten > 0 {
		a.log.Info("flows of the last instance are taken over", "flows", i.Flows, "offloaded", i.Offloaded, "resumed", i.Resumed, "bypassed", i.Passed, "forgotten", i.Forgotten)
	}
}

func (a *appliance) openQueues() (err error) {
	// Worker i serves queue i of every port, so that what comes in by one port
	// can leave by the other without another thread.
	workers := 0
	for p := range a.eachPort() {
		workers = len(p.nic.queues)
	}
	frames := a.cfg.Appliance.FramesPerQueue * a.roomForPorts()
	a.memory, err = afxdp.NewMemory(int(a.cfg.Appliance.FrameSize), frames, workers, xsk.HugeAuto)
	if err != nil {
		return err
	}
	for p := range a.eachPort() {
		for w := range workers {
			if err := a.openQueue(p, w, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *appliance) buildWorkers() error {
	workers, infos := len(a.memory.Arena.Pools()), a.portInfos()
	a.past = make([]uint64, workers)
	for w := range workers {
		clock := pipeline.Clock()
		var mine []*afxdp.Port
		for p := range a.eachPort() {
			mine = append(mine, p.queues[w])
		}
		waiter, err := afxdp.NewWaiter(mine)
		if err != nil {
			return err
		}
		a.waiters = append(a.waiters, waiter)
		ports := make([]pipeline.Port, len(*a.ports.Load()))
		for p := range a.eachPort() {
			if f := p.conf.Fault; f != nil {
				p.wires[w] = fault.Wrap(p.wires[w], *f, fault.PortOptions{Pool: a.memory.Arena.Pool(w), Clock: clock, Wake: waiter.Wake})
			}
			ports[p.id] = p.wires[w]
		}
		if a.router != nil {
			door := a.router.Port(w, a.memory.Arena.Pool(w), waiter.Wake)
			ports = append(ports, door)
			if w == 0 {
				infos = append(infos, door.Info())
			}
		}
		lane := a.record.TimedLane(clock)
		lane.Batch()
		a.lanes = append(a.lanes, lane)
		a.workers = append(a.workers, pipeline.NewWorker(pipeline.WorkerOptions{
			ID: w, Ports: ports, Infos: infos, Pool: a.memory.Arena.Pool(w), Waiter: waiter, Clock: clock, Log: a.log,
			Default: pipeline.NoChain, TimeStages: true, Offloader: &offloader{a: a}, Router: a.routing(), Beat: func() { a.beat(w) },
			Passer: a, Silence: time.Duration(a.cfg.Appliance.Heartbeat), Flush: lane.Flush,
		}))
	}
	pipeline.Link(a.workers)
	return a.firstPlaces()
}

// beat says that worker w works, on its queue of every port.
func (a *appliance) beat(w int) {
	a.watchdog.Beat(w)
	now := bpf.Now()
	for _, p := range *a.ports.Load() {
		if p != nil {
			a.steerer.Beat(p.id, p.nic.queues[w], now)
		}
	}
}

// offloader is the pipeline.Offloader of a worker.
type offloader struct {
	a    *appliance
	list []bpf.OffloadFlow
}

// Offload implements pipeline.Offloader.
func (o *offloader) Offload(flows []pipeline.ReleasedFlow) {
	list := o.list[:0]
	for _, f := range flows {
		list = append(list, bpf.OffloadFlow{Key: bpfKey(f.Flow), Drop: f.Drop})
		if f.Rules != nil {
			last := &list[len(list)-1]
			last.Rewrite, last.ReplyRewrite = f.Rules[pipeline.ToServer], f.Rules[pipeline.ToClient]
		}
	}
	if _, err := o.a.steerer.Offload(list); err != nil && !o.a.offloadFailing.Swap(true) {
		o.a.log.Error("flows stay in user space", "err", err)
	}
	for i := range list {
		flows[i].Taken = list[i].Result == bpf.OffloadTaken
	}
	o.list = list
}

func (a *appliance) attach() error {
	for p := range a.eachPort() {
		if err := a.attachPort(p); err != nil {
			return err
		}
	}
	a.tellInheritance()
	a.adopt()
	// What cannot be redirected to would vanish without a trace.
	if err := a.steerer.CheckPeers(); err != nil {
		a.warnings = append(a.warnings, err.Error())
		a.log.Warn(err.Error())
	}
	return nil
}

func (a *appliance) serve() (err error) {
	c := &a.cfg.Appliance
	if a.server, err = control.Serve(c.Control, c.Metrics, a); err != nil || c.API.Listen == "" {
		return err
	}
	return a.server.ServeTLS(control.Remote{Listen: c.API.Listen, Cert: c.API.Cert, Key: c.API.Key, ClientCA: c.API.ClientCA}, a.log)
}

// Audited implements control.Source.
func (a *appliance) Audited(e control.Audit) {
	level := slog.LevelInfo
	if e.Error != "" {
		level = slog.LevelWarn
	}
	a.log.Log(context.Background(), level, "asked for a change", "action", e.Action, "what", e.What, "by", e.Caller.String(), "result", e.Result, "err", e.Error)
	a.record.Record("audit", auditEvent{e})
}

// auditEvent is a change in a record.
type auditEvent struct {
	Audit control.Audit `json:"audit"`
}

func (a *appliance) startWorkers() error {
	ctx, cancel := context.WithCancel(context.Background())
	a.stop, a.ended = cancel, ctx.Done()
	if err := a.startRouter(ctx); err != nil {
		return err
	}
	for i, w := range a.workers {
		a.beat(i)
		a.running.Add(1)
		go func() {
			defer a.running.Done()
			if err := w.Run(ctx); err != nil {
				select {
				case a.failed <- fmt.Errorf("worker %d: %w", i, err):
				default:
				}
			}
		}()
	}
	a.running.Go(func() { a.expireFlows(ctx) })
	a.running.Go(func() { a.sweepGate(ctx) })
	a.running.Go(func() { a.tendPlaces(ctx) })
	a.eventReader.ctx = ctx
	a.eventReader.want(a, len(xdpEvents(recordSpecs(a.cfg))) > 0)
	return nil
}

// expireFlows removes from XDP's table what has ended or been idle.
func (a *appliance) expireFlows(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	failing := false
	ongoing, told := a.ongoingInterval(), bpf.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		e := a.newEnded()
		now := bpf.Now()
		_, err := a.steerer.Expire(now, bpf.Timeouts{}, e.add)
		e.done()
		if ongoing > 0 && now-told >= ongoing {
			told, err = now, errors.Join(err, a.tellOngoing())
		}
		if err != nil && !failing {
			a.log.Error("flows are not expired", "err", err)
		}
		failing = err != nil
	}
}

// drain lets terminated connections finish, up to the deadline, and returns
// how many are left.
func (a *appliance) drain(ctx context.Context) (left int) {
	a.places.mu.Lock()
	a.places.draining = true
	a.places.mu.Unlock()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		left = 0
		for _, w := range a.workers {
			left += ask(w, (*pipeline.Worker).Drain)
		}
		if left == 0 {
			return 0
		}
		select {
		case <-ctx.Done():
			return left
		case <-tick.C:
		}
	}
}

// ask runs fn on the worker's goroutine and returns its answer, or the zero
// value if the worker does not answer in time.
func ask[T any](w *pipeline.Worker, fn func(*pipeline.Worker) T) (v T) {
	answer := make(chan T, 1)
	w.Call(func() { answer <- fn(w) })
	select {
	case v = <-answer:
	case <-time.After(2 * time.Second):
	}
	return v
}

// close takes everything down, in the reverse order of its making. If detach
// is false, XDP stays as on_exit says. The report, if there is one, is completed
// and left for a successor.
func (a *appliance) close(detach bool, report *control.Exit) error {
	var errs []error
	a.captures.end()
	if a.server != nil {
		errs = append(errs, a.server.Close())
	}
	if a.otlp != nil {
		a.otlp.StopMetrics() // they are gathered from what is closed below
	}
	if report != nil {
		errs = append(errs, a.leaveOngoing(detach))
	}
	if detach && a.steerer != nil {
		errs = append(errs, a.steerer.Close())
		removePinRoot(a.cfg)
	}
	a.stop()
	for _, w := range a.waiters {
		w.Wake()
	}
	a.running.Wait()
	for _, w := range a.workers {
		errs = append(errs, w.Close())
	}
	if report != nil {
		a.account(report)
		a.leaveReport(report)
	}
	for _, w := range a.waiters {
		errs = append(errs, w.Close())
	}
	for p := range a.eachPort() {
		for _, q := range p.wires {
			if q != nil { // nil after a failure half-way
				errs = append(errs, q.Close())
			}
		}
	}
	if !detach && a.steerer != nil {
		errs = append(errs, a.steerer.Leave())
	}
	if detach {
		for p := range a.eachPort() {
			if _, exists := linkState(p.nic.ifindex); exists {
				errs = append(errs, p.nic.setPromisc(false))
			}
		}
	}
	if a.memory != nil {
		errs = append(errs, a.memory.Close())
	}
	if a.gate != nil {
		errs = append(errs, a.gate.Close())
	}
	if a.record != nil {
		errs = append(errs, a.record.Close())
	}
	a.closeExporters()
	if a.lock != nil {
		errs = append(errs, a.lock.Close())
	}
	return errors.Join(errs...)
}
