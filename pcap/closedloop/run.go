package closedloop

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"penstock/internal/wire"
	"penstock/pcap"
	"penstock/pipeline"
	"penstock/pipeline/fault"
)

// Run replays the connections of a capture. Result is valid also where there is
// an error: it has what was played before. A connection that differs is no
// error. A damaged capture is a *pcap.ReadError.
func Run(ctx context.Context, o Options) (Result, error) {
	begin := time.Now()
	w, err := newWorld(&o)
	if err != nil {
		return Result{Dropped: map[string]uint64{}, WhyNot: map[string]int{}, DeniedBy: map[string]int{}, List: []Flow{}, Error: err.Error()}, err
	}
	err = w.run(ctx)
	if err != nil {
		w.res.Error = err.Error()
	}
	err = errors.Join(err, w.close(), w.cap.r.Close())
	w.show(true)
	res := w.res
	slices.SortFunc(res.List, func(a, b Flow) int { return int(a.Number) - int(b.Number) })
	res.Seconds = time.Since(begin).Seconds()
	if t := (pipeline.Totals{Packets: res.Packets, Forwarded: res.Forwarded, Consumed: res.Consumed, Dropped: res.Dropped}); err == nil && !t.Balanced() {
		err = fmt.Errorf("%d packets were received, not as many are accounted for: %+v", res.Packets, t)
	}
	if err != nil {
		err = fmt.Errorf("replay %s: %w", w.cap.r.Name(), err)
		res.Error = err.Error()
	}
	return res, err
}

func newWorld(o *Options) (*world, error) {
	if o.Speed < 0 || math.IsNaN(o.Speed) || math.IsInf(o.Speed, 0) {
		return nil, fmt.Errorf("replay: speed must be 0 or more, got %v", o.Speed)
	}
	if o.Window < 0 || o.MaxFlows < 0 || o.MaxMemory < 0 || o.Latency < 0 {
		return nil, fmt.Errorf("replay: limits must not be negative, got window %d, flows %d, memory %d, latency %v", o.Window, o.MaxFlows, o.MaxMemory, o.Latency)
	}
	if o.Window == 0 {
		o.Window = defaultWindow
	}
	if o.MaxFlows == 0 {
		o.MaxFlows = defaultFlows
	}
	if o.MaxMemory == 0 {
		o.MaxMemory = defaultMemory
	}
	if o.Frames == 0 {
		o.Frames = defaultFrames
	}
	if o.Latency == 0 {
		o.Latency = defaultLatency
	}
	if o.Ports == [2]string{} {
		o.Ports = [2]string{"client", "server"}
	}
	w := &world{o: o, latency: int64(o.Latency), sessions: map[wire.Flow]*session{}, shown: time.Now()}
	w.res = Result{Dropped: map[string]uint64{}, WhyNot: map[string]int{}, DeniedBy: map[string]int{}, List: []Flow{}}
	var err error
	w.cap = &capture{
		accept: o.AcceptBadChecksums, maxBytes: int(o.MaxMemory), maxFlows: o.MaxFlows, ready: w.ready, flows: map[wire.Flow]*conversation{},
	}
	if o.In != nil {
		w.cap.r, err = pcap.NewReader(o.Name, o.In)
	} else {
		w.cap.r, err = pcap.Open(o.Name)
	}
	if err != nil {
		return nil, err
	}
	if err := w.build(); err != nil {
		return nil, errors.Join(err, w.cap.r.Close())
	}
	return w, nil
}

// ready takes a conversation over from the capture.
func (w *world) ready(c *conversation) {
	if c.why == "" {
		w.waiting = append(w.waiting, c)
		return
	}
	w.report(&Flow{
		Number: c.number, Client: c.flow.Client(), Server: c.flow.Server(), Status: NotPlayed, Why: c.why, Detail: c.detail,
	})
}

// build makes the wires and the worker.
func (w *world) build() (err error) {
	o := w.o
	if o.Out != nil {
		w.writer, err = pcap.NewWriter(o.Out, pcap.WriterOptions{Interfaces: []pcap.Interface{{Name: o.Ports[0]}, {Name: o.Ports[1]}}})
		if err != nil {
			return err
		}
	}
	arena, err := pipeline.NewArena(make([]byte, o.Frames*frameSize), frameSize, headroom, 1)
	if err != nil {
		return err
	}
	w.pool = arena.Pool(0)
	var ports []pipeline.Port
	var infos []pipeline.PortInfo
	for i := range w.cables {
		info := pipeline.PortInfo{ID: pipeline.PortID(i), Name: o.Ports[i], Interface: w.cap.r.Name(), MTU: mtu, Mode: "simulated"}
		w.cables[i] = &cable{w: w, side: i, info: info}
		infos = append(infos, info)
		var p pipeline.Port = w.cables[i]
		if o.Faults.Active() {
			w.faults[i] = fault.Wrap(p, o.Faults, fault.PortOptions{Pool: w.pool, Clock: func() int64 { return w.now }})
			p = w.faults[i]
		}
		ports = append(ports, p)
	}
	wo := pipeline.WorkerOptions{
		Ports: ports, Infos: infos, Pool: w.pool, Clock: func() int64 { return w.now }, Log: o.Log, Default: pipeline.NoChain,
		Simulation: &pipeline.Simulation{
			Seed:      o.Seed,
			AfterFunc: func(d time.Duration, fn func()) func() bool { return w.after(int64(d), fn).stop },
			Denied:    w.deniedConn,
		},
	}
	if o.Chain != nil {
		wo.Default = 0
	}
	w.worker = pipeline.NewWorker(wo)
	if o.Chain == nil {
		return nil
	}
	// The clock of the stages must not go back: the capture's first packet is
	// read before they are built.
	if err := w.cap.next(); err != nil && !isEOF(err) {
		return err
	}
	w.start()
	env := w.worker.Env()
	if o.Recorder != nil {
		env.Recorder = o.Recorder
	}
	w.watcher = &watcher{w: w, spec: o.Chain}
	chain, err := w.watcher.wrap().Build(env)
	if err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	w.worker.SetChains([]*pipeline.Chain{chain}, []bool{o.Chain.Affinity()})
	return nil
}

// deniedConn notes that a stream stage has denied a connection.
func (w *world) deniedConn(c *pipeline.Conn, r pipeline.Reason) {
	key, _ := name(c.Flow)
	if s := w.sessions[key]; s != nil && s.denied == pipeline.ReasonNone {
		s.denied, s.isDenied = r, true
	}
}
