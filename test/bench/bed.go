package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"penstock/internal/lab"
	"penstock/internal/lab/traffic"
)

// Ports of the servers.
const (
	httpPort   = 80 // nginx: 128 bytes
	bulkPort   = 81 // this program: bytes without end, both ways
	originPort = 82 // package traffic: says whom it sees, checks sums
)

// site is one topology with its servers. Both kinds look alike to a load.
type site struct {
	client, gateway, server *lab.NS
	serverIP                netip.Addr
	lanIf, wanIf            string // of the gateway
	endIf                   string // of client and server
	refuses                 bool   // the gateway refuses server names
	pids                    []int  // of the gateway that runs
}

func (s *site) addr(port uint16) string { return netip.AddrPortFrom(s.serverIP, port).String() }

// bed is everything that stays from the first measurement to the last.
type bed struct {
	options
	ctx    context.Context
	dir    string           // for configurations
	sites  map[string]*site // by gateway
	script string           // for wrk
	stops  []func()
}

func newBed(ctx context.Context, dir string, o options) (*bed, error) {
	b := &bed{options: o, ctx: ctx, dir: dir, sites: map[string]*site{}}
	if err := b.build(); err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

// build makes the sites that the gateways need.
func (b *bed) build() (err error) {
	if b.script, err = writeFile(b.dir, "result.lua", wrkScript); err != nil {
		return err
	}
	if slices.ContainsFunc(b.workloads, func(w workload) bool { return w.name == playedName }) {
		if err := b.writeScript(); err != nil {
			return err
		}
	}
	for _, g := range b.gateways {
		if len(g.missing()) > 0 {
			continue
		}
		// Each has a site of its own: what is left of the connections of one, at the
		// ends too, is in the way of new ones of another on the same ports.
		s, err := buildSite(g.place, b.plainPeers)
		if err != nil {
			return err
		}
		s.refuses = g.asked
		b.sites[g.name] = s
		if err := b.serve(s); err != nil {
			return err
		}
	}
	return nil
}

// veth is the same for both topologies: one queue, MTU 1500, no TX checksum,
// TSO or GSO, GRO on. Without a queue in front of it: one would be emptied by
// the receiver's thread, and so put the endpoints' work on the gateway's account.
var veth = lab.VethOptions{}

// place is where a gateway stands.
type place string

const (
	inWire   place = "wire"   // between two ports of one subnet
	asRouter place = "router" // between two subnets
)

func buildSite(at place, plainPeers bool) (*site, error) {
	if at != inWire {
		l, err := lab.New("bench-" + string(at))
		if err != nil {
			return nil, err
		}
		t, err := l.Routed(lab.RoutedOptions{Veth: veth, NoForward: true})
		if err != nil {
			return nil, err
		}
		// The gateway's own interfaces have what a NIC would give the kernel; the
		// endpoints' have what XDP on the other end leaves them. Not TSO: a veth that
		// has it passes packets by the receiver's NAPI thread, and the receiver's work
		// would be done on the gateway's account.
		for _, name := range []string{t.LANIf, t.WANIf} {
			if plainPeers {
				break
			}
			if err := t.Gateway.SetOffload(name, map[string]bool{"tx": true, "gso": true}); err != nil {
				return nil, err
			}
		}
		return &site{client: t.Client, gateway: t.Gateway, server: t.Server, serverIP: t.ServerIP4, lanIf: t.LANIf, wanIf: t.WANIf, endIf: t.ClientIf}, nil
	}
	l, err := lab.New("bench-" + string(at))
	if err != nil {
		return nil, err
	}
	t, err := l.Inline(lab.InlineOptions{Veth: veth})
	if err != nil {
		return nil, err
	}
	return &site{client: t.Client, gateway: t.Appliance, server: t.Server, serverIP: t.ServerIP4, lanIf: t.LANIf, wanIf: t.WANIf, endIf: t.ClientIf}, nil
}

// close ends the servers and removes all namespaces.
func (b *bed) close() error {
	for i := len(b.stops) - 1; i >= 0; i-- {
		b.stops[i]()
	}
	b.stops = nil
	return lab.CloseAll()
}

const nginxConf = `daemon off; master_process off; worker_processes 1; user root;
error_log stderr warn; pid %[1]s/%[2]s.pid;
events { worker_connections 8192; }
http {
  access_log off; server_tokens off; keepalive_requests 1000000000; keepalive_timeout 60s; default_type text/plain;
  client_body_temp_path %[1]s/t1; proxy_temp_path %[1]s/t2; fastcgi_temp_path %[1]s/t3; uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5;
  server { listen %[3]d backlog=16384; location / { return 200 "%[4]s"; } }
}
`

const bodySize = 128

// serve starts the servers of a site and prepares its ends.
func (b *bed) serve(s *site) error {
	for _, ns := range []*lab.NS{s.client, s.gateway, s.server} {
		// The machine's default may be BBR, whose pacing costs a gateway that terminates
		// TCP in the kernel timers without end. Reno is what any namespace may choose.
		if err := ns.Sysctl("net/ipv4/tcp_congestion_control", "reno"); err != nil {
			return err
		}
	}
	for _, set := range []struct {
		ns         *lab.NS
		key, value string
	}{
		{s.client, "net/ipv4/ip_local_port_range", "1024 65535"},
		{s.client, "net/ipv4/tcp_tw_reuse", "1"},
		{s.server, "net/core/somaxconn", "16384"},
		{s.server, "net/ipv4/tcp_max_syn_backlog", "16384"},
		// Proxies connect from the ports that clients use again, of which there are only
		// some thousand a second: the kernel takes one in about ten.
		{s.gateway, "net/ipv4/tcp_tw_reuse", "1"},
		{s.gateway, "net/ipv4/tcp_tw_reuse_delay", "1"}, // ms; since Linux 6.14
		{s.client, "net/ipv4/tcp_tw_reuse_delay", "1"},
		{s.gateway, "net/core/somaxconn", "16384"},
		{s.gateway, "net/ipv4/tcp_max_syn_backlog", "16384"},
	} {
		if err := set.ns.Sysctl(set.key, set.value); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	ports := []uint16{bulkPort}
	if slices.ContainsFunc(b.workloads, func(w workload) bool { return slices.Contains(w.needs, "nginx") }) {
		ports = append(ports, httpPort)
		if err := b.serveWeb(s); err != nil {
			return err
		}
	}
	if _, err := startSelf(b.ctx, s.server, endpointCPU, nil, "serve-bulk", fmt.Sprintf(":%d", bulkPort)); err != nil {
		return err
	}
	if slices.ContainsFunc(b.workloads, func(w workload) bool { return strings.HasPrefix(w.name, "tls-") }) {
		ports = append(ports, tlsPort)
		if _, err := startSelf(b.ctx, s.server, endpointCPU, nil, "serve-tls", fmt.Sprintf(":%d", tlsPort)); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(b.workloads, func(w workload) bool { return w.name == playedName }) {
		ports = append(ports, playPort)
		if _, err := startSelf(b.ctx, s.server, endpointCPU, nil, "serve-played", fmt.Sprintf(":%d", playPort), b.scriptPath()); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(b.workloads, func(w workload) bool { return w.name == idleName }) {
		ports = append(ports, idlePort)
		if _, err := startSelf(b.ctx, s.server, endpointCPU, nil, "serve-idle", fmt.Sprintf(":%d", idlePort)); err != nil {
			return err
		}
	}
	ln, err := s.server.Listen("tcp", s.addr(originPort))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(b.ctx)
	done := make(chan error, 1)
	go func() { done <- traffic.ServeHTTP(ctx, ln) }()
	b.stops = append(b.stops, func() {
		cancel()
		<-done
	})
	for _, ns := range []*lab.NS{s.client, s.server} {
		if _, err := pinNAPI(ns, s.endIf, endpointCPU); err != nil {
			return err
		}
	}
	for _, port := range ports {
		if err := eventually(b.ctx, func() error {
			conn, err := s.server.Dial("tcp", s.addr(port))
			if err == nil {
				conn.Close()
			}
			return err
		}); err != nil {
			return fmt.Errorf("wait for the server on port %d: %w", port, err)
		}
	}
	return nil
}

// serveWeb starts the origin of the HTTP loads.
func (b *bed) serveWeb(s *site) error {
	name := s.server.Name()
	conf, err := writeFile(b.dir, name+".conf", fmt.Sprintf(nginxConf, b.dir, name, httpPort, strings.Repeat("x", bodySize)))
	if err != nil {
		return err
	}
	_, err = start(b.ctx, s.server, endpointCPU, nil, "nginx", "-c", conf, "-p", b.dir)
	return err
}

// pinNAPI gives an interface NAPI threads on one CPU and returns their ids.
func pinNAPI(ns *lab.NS, name string, cpu int) ([]int, error) {
	tids, err := ns.SetThreadedNAPI(name)
	if err != nil {
		return nil, err
	}
	for _, tid := range tids {
		if err := lab.PinThread(tid, cpu); err != nil {
			return nil, err
		}
	}
	return tids, nil
}

// describeOffloads reads back what the interfaces have while no gateway runs.
func (b *bed) describeOffloads() map[string]string {
	out := map[string]string{}
	for _, g := range b.gateways {
		s := b.sites[g.name]
		if s == nil {
			continue
		}
		for _, at := range []struct {
			end  string
			ns   *lab.NS
			name string
		}{{"client", s.client, s.endIf}, {"gateway", s.gateway, s.lanIf}, {"gateway", s.gateway, s.wanIf}, {"server", s.server, s.endIf}} {
			out[fmt.Sprintf("%s %s %s", g.place, at.end, at.name)] = offloads(at.ns, at.name)
		}
	}
	return out
}

func offloads(ns *lab.NS, name string) string {
	features, err := ns.Offloads(name)
	if err != nil {
		return err.Error()
	}
	var on []string
	for short, full := range map[string]string{
		"tx-checksum": "tx-checksum-ip-generic", "tso": "tx-tcp-segmentation", "gso": "tx-generic-segmentation", "gro": "rx-gro",
	} {
		if features[full] {
			on = append(on, short)
		}
	}
	sort.Strings(on)
	return "on: " + strings.Join(on, " ")
}

func writeFile(dir, name, text string) (string, error) {
	path := filepath.Join(dir, name)
	return path, os.WriteFile(path, []byte(text), 0o644)
}

// eventually polls until fn returns nil, for at most ten seconds.
func eventually(ctx context.Context, fn func() error) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := fn()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return errors.Join(ctx.Err(), err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
