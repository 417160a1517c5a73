package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"penstock/configs"
	"penstock/internal/control"
	"penstock/internal/latency"
)

// gateway is one contestant.
type gateway struct {
	name, about string
	place       place
	onlyAddress bool     // the server sees the client's address, but another port
	needs       []string // programs that it is, or is set up by
	config      string   // of penstock; with it there is no start
	depth       string   // at which penstock's chain must run
	inXDP       bool     // penstock's packets are to stay there
	asked       bool     // it refuses server names, and only runs where it is asked for by its name
	watched     bool     // metrics and the live page are asked for each second
	binary      string   // of penstock; "": the one to measure
	start       func(ctx context.Context, b *bed, s *site) (*running, error)
}

// Name implements named.
func (g gateway) Name() string { return g.name }

// missing returns those programs that it needs and this machine has not.
func (g gateway) missing() (out []string) {
	for _, n := range g.needs {
		if _, err := exec.LookPath(n); err != nil {
			out = append(out, n)
		}
	}
	return out
}

// running is a gateway at work.
type running struct {
	pids []int
	// alive returns an error if the gateway has ended or is not what it should be.
	alive func() error
	// seen counts packets that took the way that the gateway is measured for; nil
	// where there is no other by which they could have come.
	seen func() (uint64, error)
	// setup is how long flows took from their release to XDP; nil: none leave user
	// space.
	setup func() (latency.Summary, error)
	// logged counts the requests in the gateway's log; nil: it keeps none.
	logged func() (uint64, error)
	// processes to end and undo to call, in this order
	processes []*process
	undo      []func() error
}

func (r *running) stop() error {
	var first error
	for _, p := range r.processes {
		if err := p.stop(); err != nil && first == nil {
			first = err
		}
	}
	for i := len(r.undo) - 1; i >= 0; i-- {
		if err := r.undo[i](); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// add makes a started process part of the gateway.
func (r *running) add(p *process) {
	r.processes = append(r.processes, p)
	r.pids = append(r.pids, p.Process.Pid)
	before := r.alive
	r.alive = func() error {
		if before != nil {
			if err := before(); err != nil {
				return err
			}
		}
		return p.alive()
	}
}

func gateways() []gateway {
	return []gateway{
		{name: "redirect", about: "XDP redirect NIC to NIC, no look-up, no counter: the limit", place: inWire, start: startRedirect},
		{name: "offload", about: "penstock, an acl that releases each flow to XDP after its first packet", place: inWire, config: shipped("offload.toml"), depth: "forward", inXDP: true},
		{name: "forward", about: "penstock, AF_XDP, a chain without stages", place: inWire, config: shipped("forward.toml"), depth: "forward"},
		{name: "splice", about: "penstock, tcp stage at depth terminate that splices each connection and offloads it to XDP", place: inWire, config: spliceChain, depth: "terminate", inXDP: true},
		{name: "terminate", about: "penstock, AF_XDP, tcp stage at depth terminate", place: inWire, config: terminateChain, depth: "terminate"},
		{name: "terminate+http", about: "the same, and the http stage", place: inWire, config: terminateChain + httpStage, depth: "terminate"},
		{name: "inspect+http", about: "penstock, AF_XDP, depth inspect, the http stage refuses hosts and records each request in a file", place: inWire, config: inspectChain + httpStage + recordTo("http"), depth: "inspect"},
		{name: unseen, about: "as inspect+http, with nothing to see of it: no records, no metrics", place: inWire, config: inspectChain + httpStage, depth: "inspect"},
		{name: watched, about: "the same, metrics and the live page asked for each second", place: inWire, config: inspectChain + httpStage, depth: "inspect", watched: true},
		{name: recorded, about: "the same, and each request recorded in a file: all observation together", place: inWire, config: inspectChain + httpStage + recordTo("http"), depth: "inspect", watched: true},
		{name: "haproxy-tcp", about: "HAProxy, mode tcp, TPROXY", place: asRouter, needs: []string{"haproxy", "nft", "ip"}, start: startHAProxy("tcp")},
		{name: "haproxy-http", about: "HAProxy, mode http, TPROXY", place: asRouter, needs: []string{"haproxy", "nft", "ip"}, start: startHAProxy("http")},
		{name: "haproxy-http-log", about: "HAProxy, mode http, TPROXY, refuses hosts and logs each request to a file", place: asRouter, needs: []string{"haproxy", "nft", "ip"}, start: startHAProxyHTTPLog},
		{name: "splice+tls", about: "penstock, tcp stage at depth terminate, a policy for server names in the tls stage, then spliced; port 83", place: inWire, config: sniChain("terminate"), depth: "terminate", inXDP: true, asked: true},
		{name: "inspect+tls", about: "the same policy at depth inspect, then offloaded; port 83", place: inWire, config: sniChain("inspect"), depth: "inspect", inXDP: true, asked: true},
		{name: tlsYardstick, about: "HAProxy, mode tcp, the same policy by req.ssl_sni, TPROXY", place: asRouter, needs: []string{"haproxy", "nft", "ip"}, start: startHAProxySNI, asked: true},
		{name: "nginx-stream", about: "nginx, stream proxy, TPROXY", place: asRouter, onlyAddress: true, needs: []string{"nginx", "nft", "ip"}, start: startNginx},
		{name: "go-tproxy", about: "a plain Go proxy, TPROXY, splice(2)", place: asRouter, needs: []string{"nft", "ip"}, start: startGoProxy},
		{name: "ip_forward", about: "plain kernel forwarding", place: asRouter, start: startForwarding},
	}
}

// What is measured at depth terminate must not leave it.
const terminateChain = spliceChain + `  splice = "never"
`

const spliceChain = `
[appliance]
mode    = "bridge"
on_exit = "open"
[[port]]
name      = "lan"
interface = "eth1"
[[port]]
name      = "wan"
interface = "eth2"
[[steer]]
from     = "lan"
proto    = "tcp"
dst_port = ["80-85"]
to       = "web"
[[chain]]
name = "web"
  [[chain.stage]]
  kind  = "tcp"
  depth = "terminate"
`

// sniChain refuses TLS connections by the server name.
func sniChain(depth string) string {
	text := strings.Replace(spliceChain, `["80-85"]`, `[83, 85]`, 1)
	return strings.Replace(text, `depth = "terminate"`, fmt.Sprintf("depth = %q", depth), 1) + `
  [[chain.stage]]
  kind     = "tls"
  deny_sni = ["*.ads.example"]
`
}

const httpStage = `
  [[chain.stage]]
  kind       = "http"
  deny_hosts = ["*.ads.example"]
`

// shipped returns a configuration that is shipped. A test loads each of them, so
// that it exists.
func shipped(name string) string {
	text, err := configs.FS.ReadFile(name)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// against adds to penstock's gateways the same ones run by another binary.
func against(list []gateway, binary string) (out []gateway) {
	for _, g := range list {
		out = append(out, g)
		if g.config != "" {
			g.name, g.about, g.binary = g.name+"@other", g.about+", the other binary", binary
			out = append(out, g)
		}
	}
	return out
}

// startPenstock runs a gateway's configuration under a name of its own.
func startPenstock(ctx context.Context, b *bed, s *site, g gateway) (*running, error) {
	binary := b.penstock
	if g.binary != "" {
		binary = g.binary
	}
	socket := filepath.Join(b.dir, "control.sock")
	head := fmt.Sprintf("[appliance]\nname = %q\ncontrol = %q\nmetrics = %q\ndrain_timeout = \"1s\"\n", s.gateway.Lab().Name(), socket, g.metrics())
	own := strings.Replace(g.config, "[appliance]\n", head, 1)
	own = strings.Replace(own, `on_exit = "open"`, `on_exit = "closed"`, 1) // else it would go on bridging
	if own == g.config || !strings.Contains(own, `"closed"`) {
		return nil, fmt.Errorf("adapt configuration: no [appliance] with on_exit = \"open\" in it")
	}
	records := filepath.Join(b.dir, "records.json")
	if err := os.Remove(records); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	own = strings.ReplaceAll(own, recordDir, b.dir)
	file, err := writeFile(b.dir, "penstock.toml", own)
	if err != nil {
		return nil, err
	}
	args := []string{"run", "--log-level", "warn", file}
	if b.cpuProfile != "" {
		args = append(args, "--cpuprofile", filepath.Join(b.cpuProfile, fmt.Sprintf("%s-%s.pprof", g.name, s.gateway.Lab().Name())))
	}
	p, err := start(ctx, s.gateway, gatewayCPU, []string{"GOMAXPROCS=1"}, binary, args...)
	if err != nil {
		return nil, err
	}
	r := &running{}
	r.add(p)
	if strings.Contains(g.config, recordDir) {
		r.logged = logged(records)
	}
	client := control.NewClient(socket)
	var st control.Status
	if err := eventually(ctx, func() error {
		if err := p.alive(); err != nil {
			return err
		}
		st, err = client.Status()
		return err
	}); err != nil {
		_ = r.stop()
		return nil, fmt.Errorf("start penstock: %w%s", err, p.log)
	}
	if err := asExpected(st, g.depth); err != nil {
		_ = r.stop()
		return nil, err
	}
	if g.watched {
		r.undo = append(r.undo, watch(s))
	}
	if g.inXDP {
		r.setup = func() (latency.Summary, error) {
			st, err := client.Status()
			if err != nil {
				return latency.Summary{}, err
			}
			return st.Workers[0].OffloadDelay, nil // one queue, one worker
		}
	}
	r.seen = func() (n uint64, err error) {
		st, err := client.Status()
		if !g.inXDP {
			return st.Totals.Packets, err
		}
		for _, p := range st.Ports {
			n += 2 * p.Reasons["flow_offloaded"].Packets // the first ones of a flow may still go by user space
		}
		return n, err
	}
	r.alive = func() error {
		if err := p.alive(); err != nil {
			return err
		}
		st, err := client.Status()
		if err != nil {
			return err
		}
		for _, w := range st.Workers {
			if w.Panics > 0 {
				return fmt.Errorf("worker %d: %d panics of stages", w.ID, w.Panics)
			}
		}
		return nil
	}
	return r, nil
}

// asExpected checks how the appliance says it runs.
func asExpected(st control.Status, depth string) error {
	for _, p := range st.Ports {
		if p.XDP != "native" || len(p.Queues) != 1 {
			return fmt.Errorf("penstock's port %s: XDP %s on %d queues, want native on one", p.Name, p.XDP, len(p.Queues))
		}
	}
	if len(st.Chains) != 1 || st.Chains[0].Depth != depth {
		return fmt.Errorf("penstock's chains: %+v, want one at depth %s", st.Chains, depth)
	}
	return nil
}

// napi moves the receive work of the gateway's interfaces to its CPU. Call it
// when the gateway runs: XDP replaces the threads.
func (s *site) napi() (tids []int, err error) {
	for _, name := range []string{s.lanIf, s.wanIf} {
		t, err := pinNAPI(s.gateway, name, gatewayCPU)
		if err != nil {
			return nil, err
		}
		tids = append(tids, t...)
	}
	return tids, nil
}

// napiNow returns the threads without changing anything.
func (s *site) napiNow() (tids []int, err error) {
	for _, name := range []string{s.lanIf, s.wanIf} {
		t, err := s.gateway.NAPIThreads(name)
		if err != nil {
			return nil, err
		}
		tids = append(tids, t...)
	}
	return tids, nil
}
