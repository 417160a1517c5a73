package main

import (
	"context"
	"time"

	"penstock/bpf"
	"penstock/internal/config"
	"penstock/internal/route"
	"penstock/pipeline"
)

// tables are the kernel's, as the XDP program sees them.
type tables struct{ *bpf.Steerer }

var _ route.Tables = tables{}

var routeStates = map[bpf.RouteState]route.State{bpf.RouteDone: route.Done, bpf.RouteKernel: route.Kernel, bpf.RouteWait: route.Wait, bpf.RoutePass: route.Pass}

// Route implements route.Tables.
func (t tables) Route(port int, frame []byte) (route.Way, error) {
	a, err := t.Steerer.Route(port, frame)
	return route.Way{State: routeStates[a.State], Hop: route.Hop(a.Hop), Port: a.Port, MTU: a.MTU}, err
}

// Hops implements route.Tables.
func (t tables) Hops(fn func(h route.Hop, unused time.Duration) bool) error {
	now := bpf.Now()
	return t.Steerer.Hops(func(h bpf.Hop, used time.Duration) bool { return fn(route.Hop(h), now-used) })
}

// openRouter makes what router mode needs besides.
func (a *appliance) openRouter() error {
	if a.cfg.Appliance.Mode != config.ModeRouter {
		return nil
	}
	o := route.Options{Tables: tables{a.steerer}, Frame: int(a.cfg.Appliance.FrameSize), Log: a.log}
	for p := range a.eachPort() {
		o.Ifindex = append(o.Ifindex, p.nic.ifindex)
	}
	a.router = route.New(o, pipeline.PortID(len(o.Ifindex)))
	return nil
}

func (a *appliance) startRouter(ctx context.Context) error {
	if a.router == nil {
		return nil
	}
	a.running.Add(1)
	if err := a.router.Watch(ctx, a.running.Done); err != nil {
		a.running.Done()
		return err
	}
	a.running.Add(1)
	go func() {
		defer a.running.Done()
		a.router.Run(ctx)
	}()
	return nil
}

// routing is what workers and ports get to know of the router.
func (a *appliance) routing() *pipeline.Router {
	if a.router == nil {
		return nil
	}
	return a.router.State()
}
