package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
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
	for _, n := range a.nics {
		o.Ifindex = append(o.Ifindex, n.ifindex)
	}
	a.router = route.New(o, pipeline.PortID(len(a.nics)))
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

// checkForwarding says what is in the way of routing: without forwarding in the
// kernel neither it nor XDP routes anything.
func (a *appliance) checkForwarding() error {
	if a.cfg.Appliance.Mode != config.ModeRouter {
		return nil
	}
	var off []string
	families := 0
	for _, f := range []struct{ name, dir, all string }{
		{"IPv4", "/proc/sys/net/ipv4", "net.ipv4.ip_forward"}, {"IPv6", "/proc/sys/net/ipv6", "net.ipv6.conf.all.forwarding"},
	} {
		var ports []string
		for _, n := range a.nics {
			b, err := os.ReadFile(filepath.Join(f.dir, "conf", n.name, "forwarding"))
			if err != nil || strings.TrimSpace(string(b)) == "0" {
				ports = append(ports, n.name)
			}
		}
		if len(ports) > 0 {
			off = append(off, fmt.Sprintf("%s is not forwarded from %s: sysctl -w %s=1", f.name, strings.Join(ports, ", "), f.all))
		}
		if len(ports) == len(a.nics) {
			families++
		}
	}
	if families == 2 {
		return errors.New("router mode: the kernel forwards nothing; mend: sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	}
	for _, w := range off {
		a.warnings = append(a.warnings, w)
		a.log.Warn(w)
	}
	return nil
}
