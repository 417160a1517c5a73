package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"penstock/internal/lab"
	"penstock/internal/lab/traffic"
	"penstock/internal/latency"
)

// result is one load on one gateway.
type result struct {
	Gateway      string  `json:"gateway"`
	Workload     string  `json:"workload"`
	Round        int     `json:"round"`
	Work         float64 `json:"work"` // in the workload's unit
	Seconds      float64 `json:"seconds"`
	CPUSeconds   float64 `json:"gateway_cpu_seconds"`
	PerCPUSecond float64 `json:"per_cpu_second"`
	P50          float64 `json:"p50_us,omitempty"`
	P99          float64 `json:"p99_us,omitempty"`
	// Retransmits are segments that the kernel's TCP sent again: both ends, and the
	// gateway if its TCP is the kernel's.
	Retransmits uint64 `json:"retransmits"`
	// Softirq is what ksoftirqd of the gateway's CPU ran meanwhile: work that might
	// be the gateway's and is not in CPUSeconds.
	Softirq float64 `json:"ksoftirqd_seconds"`
	// Setup is how long flows took from their release to XDP, since the gateway was
	// started.
	Setup *latency.Summary `json:"setup,omitempty"`
	// Memory is what the gateway and the kernel took for the load.
	Memory memory `json:"memory,omitzero"`
	Failed string `json:"failed,omitempty"`
	Absent bool   `json:"absent,omitempty"` // the gateway is not installed here
}

// measure starts a gateway, checks that it is transparent and does its work
// right, puts the workloads on it, and ends it.
func (b *bed) measure(ctx context.Context, g gateway, workloads []workload, round int, each func(result)) (out []result) {
	blank := func(why string, absent bool) []result {
		for _, w := range workloads {
			m := result{Gateway: g.name, Workload: w.name, Round: round, Failed: why, Absent: absent}
			each(m)
			out = append(out, m)
		}
		return out
	}
	if missing := g.missing(); len(missing) > 0 {
		return blank(fmt.Sprintf("not installed: %s", strings.Join(missing, ", ")), true)
	}
	s := b.sites[g.name]
	begin := g.start
	if g.config != "" {
		begin = func(ctx context.Context, b *bed, s *site) (*running, error) { return startPenstock(ctx, b, s, g) }
	}
	r, err := begin(ctx, b, s)
	if err != nil {
		return blank(err.Error(), false)
	}
	defer func() {
		if err := r.stop(); err != nil {
			fmt.Fprintf(os.Stderr, "bench: stop %s: %v\n", g.name, err)
		}
	}()
	tids, err := s.napi()
	if err != nil {
		return blank(err.Error(), false)
	}
	if err := errors.Join(b.verify(ctx, g, s, r), r.alive()); err != nil {
		return blank("not right before the load: "+err.Error(), false)
	}
	s.pids = r.pids
	for i, w := range workloads {
		m, err := b.one(ctx, g, s, r, tids, w)
		m.Gateway, m.Workload, m.Round = g.name, w.name, round
		if err == nil && r.setup != nil {
			var setup latency.Summary
			setup, err = r.setup()
			m.Setup = &setup
		}
		if err != nil {
			m.Failed = strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		each(m)
		out = append(out, m)
		if r.alive() != nil {
			return slices.Concat(out, rest(g, workloads[i+1:], round, each))
		}
	}
	return out
}

// rest marks the workloads that a gateway did not live to see.
func rest(g gateway, left []workload, round int, each func(result)) (out []result) {
	for _, w := range left {
		m := result{Gateway: g.name, Workload: w.name, Round: round, Failed: "the gateway has ended before"}
		each(m)
		out = append(out, m)
	}
	return out
}

// reading is what is read before and after a load.
type reading struct {
	cpu, softirq time.Duration
	retransmits  uint64
	seen, logged uint64
}

func (b *bed) read(s *site, r *running, tids []int) (v reading, err error) {
	if r.seen != nil {
		if v.seen, err = r.seen(); err != nil {
			return v, err
		}
	}
	if r.logged != nil {
		if v.logged, err = r.logged(); err != nil {
			return v, err
		}
	}
	for _, ns := range []*lab.NS{s.client, s.gateway, s.server} {
		n, err := retransmits(ns)
		if err != nil {
			return v, err
		}
		v.retransmits += n
	}
	if v.softirq, err = lab.CPUTime(nil, softirqThreads()); err != nil {
		return v, err
	}
	v.cpu, err = lab.CPUTime(r.pids, tids)
	return v, err
}

// one puts one workload on the gateway.
func (b *bed) one(ctx context.Context, g gateway, s *site, r *running, tids []int, w workload) (m result, err error) {
	before, err := b.read(s, r, tids)
	if err != nil {
		return m, err
	}
	finish := b.startProfile(ctx, g, w, r, tids)
	l, err := w.run(ctx, b, s)
	finish()
	if err != nil {
		return m, err
	}
	// The CPU time first: reading the rest costs the gateway some.
	cpu, err := lab.CPUTime(r.pids, tids)
	if err != nil {
		return m, err
	}
	after, err := b.read(s, r, tids)
	if err != nil {
		return m, err
	}
	if r.logged != nil {
		if err := eventually(ctx, func() error {
			after.logged, err = r.logged()
			if n := after.logged - before.logged; err == nil && float64(n) < l.requests {
				err = fmt.Errorf("%d requests are in the log, want at least %.0f", n, l.requests)
			}
			return err
		}); err != nil {
			return m, err
		}
	}
	m.Work, m.Seconds, m.P50, m.P99 = l.work, l.seconds, l.p50, l.p99
	m.Memory = l.memory
	m.CPUSeconds = (cpu - before.cpu).Seconds()
	m.Softirq = (after.softirq - before.softirq).Seconds()
	m.Retransmits = after.retransmits - before.retransmits
	if m.CPUSeconds > 0 {
		m.PerCPUSecond = m.Work / m.CPUSeconds
	}
	var problems []error
	if err := r.alive(); err != nil {
		problems = append(problems, err)
	}
	if now, err := s.napiNow(); err != nil || !slices.Equal(now, tids) {
		problems = append(problems, fmt.Errorf("the NAPI threads of the gateway have changed: %v, then %v (%v)", tids, now, err))
	}
	if r.seen != nil && after.seen-before.seen < uint64(l.packets) {
		problems = append(problems, fmt.Errorf("%d packets took the gateway's way, want at least %.0f", after.seen-before.seen, l.packets))
	}
	if m.Work <= 0 || m.CPUSeconds <= 0 {
		problems = append(problems, fmt.Errorf("no work done: %.0f in %.3f s of CPU time", m.Work, m.CPUSeconds))
	}
	return m, errors.Join(append(problems, l.problem)...)
}

// verify checks through the gateway that the server sees the client, and that
// bytes arrive as they were sent, both ways.
func (b *bed) verify(ctx context.Context, g gateway, s *site, r *running) error {
	// The proxies listen a moment after they were started.
	if err := eventually(ctx, func() error {
		if err := r.alive(); err != nil {
			return nil // it will be said
		}
		return transparency(ctx, g, s)
	}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c := traffic.Client{Dial: s.client.DialContext}
	return errors.Join(c.Bytes(ctx, s.addr(originPort), 1<<20, false), c.Upload(ctx, s.addr(originPort), 1<<20))
}

func transparency(ctx context.Context, g gateway, s *site) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := s.client.DialContext(ctx, "tcp", s.addr(originPort))
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := fmt.Fprintf(conn, "GET /whoami HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	var who traffic.Whoami
	if err := json.NewDecoder(resp.Body).Decode(&who); err != nil {
		return err
	}
	got, want := who.Peer, conn.LocalAddr().String()
	if g.onlyAddress {
		got, want = got[:strings.LastIndex(got, ":")], want[:strings.LastIndex(want, ":")]
	}
	if got != want {
		return fmt.Errorf("the server sees the client as %s, want %s", got, want)
	}
	return nil
}

// retransmits reads how many segments a namespace's TCP has sent again.
func retransmits(ns *lab.NS) (n uint64, err error) {
	var text []byte
	err = ns.Do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/snmp")
		return err
	})
	if err != nil {
		return 0, err
	}
	return parseRetransmits(string(text))
}

// parseRetransmits finds RetransSegs in the two lines "Tcp:" of names and values.
func parseRetransmits(text string) (uint64, error) {
	var names []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != "Tcp:" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		if i := slices.Index(names, "RetransSegs"); i > 0 && i < len(f) {
			return strconv.ParseUint(f[i], 10, 64)
		}
	}
	return 0, errors.New("read TCP counters: no RetransSegs")
}

// softirqThreads returns the ksoftirqd of the gateway's CPU.
func softirqThreads() (tids []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		tid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		comm, err := os.ReadFile("/proc/" + e.Name() + "/comm")
		if err == nil && strings.TrimSpace(string(comm)) == fmt.Sprintf("ksoftirqd/%d", gatewayCPU) {
			tids = append(tids, tid)
		}
	}
	return tids
}
