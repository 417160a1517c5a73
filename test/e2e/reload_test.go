package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"penstock/internal/control"
	"penstock/internal/lab"
	"penstock/internal/lab/traffic"
)

// everyDepth has a chain for each depth, by the server's port: 7000 forward,
// 7001 inspect, 7002 offload, 7003 terminate, 7004 splice. Its parts change with
// n, so that no two neighbours are the same.
func everyDepth(n int) string {
	var b strings.Builder
	if n%5 != 4 { // else everything but the ports below is bypassed by no rule
		fmt.Fprintf(&b, "[gate]\ndeny = [\"198.51.100.%d\"]\n", n%200)
	}
	steer := func(port int, chain string) {
		fmt.Fprintf(&b, "[[steer]]\nfrom = \"lan\"\nproto = \"tcp\"\ndst_port = [%d]\nto = %q\n", port, chain)
	}
	terminate, splice := "terminate", "splice"
	if n%7 == 3 { // new flows to the other one
		terminate, splice = splice, terminate
	}
	if n%3 == 1 {
		steer(7999, "forward") // a rule more, at the front
	}
	steer(7000, "forward")
	steer(7001, "inspect")
	steer(7003, terminate)
	steer(7004, splice)
	if n%4 == 2 {
		steer(7002, "bypass") // and the chain goes
	} else {
		steer(7002, "offload")
	}
	chain := func(name, offload, stages string) {
		fmt.Fprintf(&b, "[[chain]]\nname = %q\noffload = %q\n%s", name, offload, stages)
	}
	chains := []func(){
		func() {
			chain("forward", "never", fmt.Sprintf("[[chain.stage]]\nkind = \"acl\"\nrules = [{ action = \"drop\", dst_port = [%d] }]\n", 9000+n/2))
		},
		func() {
			chain("inspect", "never", fmt.Sprintf("[[chain.stage]]\nkind = \"tcp\"\ndepth = \"inspect\"\nmax_flows = %d\n", 2000+n/3))
		},
		func() {
			chain("terminate", "auto", fmt.Sprintf("[[chain.stage]]\nkind = \"tcp\"\ndepth = \"terminate\"\nsplice = \"never\"\nmax_flows = %d\n", 2000+n/2))
		},
		func() {
			chain("splice", "auto", fmt.Sprintf("[[chain.stage]]\nkind = \"tcp\"\ndepth = \"terminate\"\nmax_flows = %d\n", 2000+n/4))
		},
	}
	if n%4 != 2 {
		chains = append(chains, func() { chain("offload", "auto", "") })
	}
	for i := range chains { // their places change too
		chains[(i+n)%len(chains)]()
	}
	return b.String()
}

// wrong are configurations that change nothing, and what is said of them.
var wrong = []struct{ body, want string }{
	{"[[steer]]\nto = \"nowhere\"\n", `no chain is named "nowhere"`},
	{"[[chain]]\nname = \"x\"\n[[chain.stage]]\nkind = \"htpp\"\n", `"http"`},
	{"[[chain]\n", "syntax error"},
	{"[[record]]\nto = \"file:/nowhere/at/all\"\n", "directory /nowhere/at does not exist"},
	{"[[ipfix]]\nto = \"udp:127.0.0.1:9\"\n", "[[ipfix]] cannot change while it runs"},
}

// talker opens connections to echo servers, one after the other or for good, and
// checks every byte that comes back.
type talker struct {
	r        *rig
	conns    atomic.Int64 // that ended well
	bytes    atomic.Int64
	standing atomic.Int64 // connections now
	mu       sync.Mutex
	broken   []string
}

func (k *talker) fails(format string, args ...any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.broken = append(k.broken, time.Now().UTC().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// talk holds one connection after the other, each for up to life, until ctx ends.
func (k *talker) talk(ctx context.Context, seed uint64, addr string, life time.Duration) {
	rng := rand.New(rand.NewPCG(seed, 1))
	for n := 0; ctx.Err() == nil; n++ {
		hold := life
		if life < time.Minute {
			hold = life/4 + time.Duration(rng.Int64N(int64(life)*3/4))
		}
		if err := k.connection(ctx, rng, addr, hold); err != nil {
			k.fails("connection %d of talker %d to %s: %v", n, seed, addr, err)
			return
		}
		k.conns.Add(1)
	}
}

func (k *talker) connection(ctx context.Context, rng *rand.Rand, addr string, hold time.Duration) error {
	c, err := k.r.Client.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	k.standing.Add(1)
	defer k.standing.Add(-1)
	_ = c.SetDeadline(time.Now().Add(hold + 60*time.Second))
	if _, err := io.WriteString(c, "echo\n"); err != nil {
		return err
	}
	end := time.NewTimer(hold)
	defer end.Stop()
	seed, at := rng.Uint64(), 0
	send, check := traffic.NewPattern(seed), traffic.NewChecker(seed)
	buf, got := make([]byte, 4096), make([]byte, 4096)
	for {
		n := 1 + rng.IntN(len(buf))
		_, _ = io.ReadFull(send, buf[:n])
		if _, err := c.Write(buf[:n]); err != nil {
			return fmt.Errorf("write byte %d: %w", at, err)
		}
		if m, err := io.ReadFull(c, got[:n]); err != nil {
			return fmt.Errorf("read byte %d: %w", at+m, err)
		}
		if _, err := check.Write(got[:n]); err != nil || !bytes.Equal(buf[:n], got[:n]) {
			return fmt.Errorf("bytes %d to %d are wrong: %v", at, at+n, err)
		}
		at += n
		k.bytes.Add(int64(n))
		select {
		case <-end.C:
		case <-ctx.Done():
		case <-time.After(time.Duration(20+rng.IntN(60)) * time.Millisecond):
			continue
		}
		break
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	if n, err := io.Copy(io.Discard, c); err != nil || n > 0 {
		return fmt.Errorf("at the end: %d bytes, %w", n, err)
	}
	return nil
}

// memory is the resident memory of the appliance, and how many BPF maps and
// programs it has open.
func (a *appliance) memory() (rss, maps int) {
	a.r.t.Helper()
	dir := fmt.Sprintf("/proc/%d", a.cmd.Process.Pid)
	text, err := os.ReadFile(dir + "/status")
	if err != nil {
		a.r.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			rss, _ = strconv.Atoi(f[1])
		}
	}
	list, err := os.ReadDir(dir + "/fd")
	if err != nil {
		a.r.t.Fatal(err)
	}
	for _, f := range list {
		if to, err := os.Readlink(dir + "/fd/" + f.Name()); err == nil && strings.HasPrefix(to, "anon_inode:bpf") {
			maps++
		}
	}
	return rss << 10, maps
}

func long() bool { return os.Getenv("PENSTOCK_LONG") == "1" }

// everyTalker starts conns talkers, to all ports alike. Those that are terminated
// have an end in sight; of the others every second stays.
func (r *rig) everyTalker(ctx context.Context, conns int, ports []uint16, life time.Duration) (k *talker, wait func()) {
	k = &talker{r: r}
	var group sync.WaitGroup
	for i := range conns {
		port, stay := ports[i%len(ports)], life
		if i/len(ports)%2 == 1 && port != 7003 && port != 7004 {
			stay = time.Hour
		}
		group.Go(func() { k.talk(ctx, uint64(i), r.addr(i%3 == 1, port), stay) })
	}
	return k, group.Wait
}

// TestReload changes the configuration of a running appliance again and again,
// while connections of every depth exchange bytes: none breaks.
func TestReload(t *testing.T) {
	reloads, conns, pause := 20, 100, 150*time.Millisecond
	if long() {
		reloads, conns, pause = 200, 500, 500*time.Millisecond
	}
	r := newRig(t, lab.InlineOptions{})
	write := func(body string) { r.configWith("drain = \"5s\"", body) }
	write(everyDepth(0))
	ports := []uint16{7000, 7001, 7002, 7003, 7004}
	for _, port := range ports {
		r.tcpServer(port)
	}
	a := r.start()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	k, wait := r.everyTalker(ctx, conns, ports, 2*time.Second)
	r.eventually("all connections stand", func() error {
		if n := k.standing.Load(); int(n) < conns*9/10 {
			return fmt.Errorf("%d do", n)
		}
		return nil
	})
	client := control.NewClient(r.control())
	applied, refused := 0, 0
	var rss, maps, goroutines int // after a tenth of it
	var slowest float64
	for n := 1; n <= reloads; n++ {
		if n == reloads/10+1 {
			rss, maps = a.memory()
			goroutines = a.status().Goroutines
		}
		if n%4 == 0 { // between two good ones
			w := wrong[n/4%len(wrong)]
			write(everyDepth(n-1) + w.body)
			res, err := client.Reload(false)
			if said := strings.Join(res.Problems, "\n") + res.Refused; err != nil || res.Applied || !strings.Contains(said, w.want) {
				t.Errorf("reload of a wrong configuration: %+v, %v", res, err)
			}
			refused++
		}
		write(everyDepth(n))
		if n%10 == 0 {
			if out, err := r.penstock("reload", "--control", r.control()).CombinedOutput(); err != nil || !bytes.Contains(out, []byte("reloaded in")) {
				t.Errorf("reload %d: %v: %s", n, err, out)
			}
		} else if res, err := client.Reload(false); err != nil || !res.Applied || len(res.Changes) == 0 {
			t.Errorf("reload %d: %+v, %v", n, res, err)
		} else {
			slowest = max(slowest, res.Seconds)
		}
		applied++
		time.Sleep(pause) // so much later the next one comes
	}
	if got := a.status().Reloads; got.Applied != applied || got.Refused != refused {
		t.Errorf("%+v, want %d applied and %d refused", got, applied, refused)
	}
	endRSS, endMaps := a.memory()
	endGoroutines := a.status().Goroutines
	cancel()
	wait()
	for i, b := range k.broken {
		if t.Errorf("%s", b); i > 20 {
			break
		}
	}
	r.eventually("old chains are closed", func() error {
		if l := a.status().Leaving; len(l) > 0 {
			return fmt.Errorf("%d leave: %+v", len(l), l[0])
		}
		return nil
	})
	idleRSS, idleMaps := a.memory()
	s := a.status()
	t.Logf("%d reloads, the slowest took %.1f ms; %d connections, %d of them at once, %d MiB; %d broken", applied, slowest*1000, k.conns.Load(), conns, k.bytes.Load()>>20, len(k.broken))
	t.Logf("resident MiB %d, %d, %d; BPF maps and programs %d, %d, %d; goroutines %d, %d, %d", rss>>20, endRSS>>20, idleRSS>>20, maps, endMaps, idleMaps, goroutines, endGoroutines, s.Goroutines)
	if endRSS > rss+rss/2+64<<20 {
		t.Errorf("memory grew from %d to %d MiB", rss>>20, endRSS>>20)
	}
	if idleMaps != maps {
		t.Errorf("BPF maps and programs: %d, and %d before", idleMaps, maps)
	}
	if s.Goroutines > 200 {
		t.Errorf("%d goroutines at the end", s.Goroutines)
	}
	for _, c := range s.Chains {
		for _, depth := range []string{"forward", "inspect", "terminate", "splice"} {
			if c.Name == depth && c.Packets == 0 {
				t.Errorf("chain %q has seen no packet: the test proves nothing", c.Name)
			}
		}
	}
	a.balanced()
	r.eventually("the figures of chains and workers agree", func() error {
		s := a.status()
		chains := s.Removed.Packets
		for _, c := range s.Chains {
			chains += c.Packets
		}
		if chains != s.Totals.Packets {
			return fmt.Errorf("chains have %d packets, workers %d", chains, s.Totals.Packets)
		}
		return nil
	})
	a.stop()
}

// configWith writes a configuration with more keys in [appliance].
func (r *rig) configWith(keys, body string) {
	r.t.Helper()
	r.config("open", "", body)
	text, err := os.ReadFile(r.toml)
	if err != nil {
		r.t.Fatal(err)
	}
	text = bytes.Replace(text, []byte("drain_timeout ="), []byte(keys+"\ndrain_timeout ="), 1)
	if err := os.WriteFile(r.toml, text, 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// TestDrainRunsOut: what becomes of flows whose chain has changed when the time
// for them is over, and of those of a chain that is drained.
func TestDrainRunsOut(t *testing.T) {
	r := newRig(t, lab.InlineOptions{})
	body := everyDepth(1)
	write := func(drain, body string) { r.configWith("drain = \""+drain+"\"", body) }
	write("1h", body)
	ports := []uint16{7000, 7001, 7002, 7003, 7004}
	for _, port := range ports {
		r.tcpServer(port)
	}
	a := r.start()
	client := control.NewClient(r.control())
	conns := map[uint16]net.Conn{}
	echo := func(port uint16, msg string) error {
		c := conns[port]
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.WriteString(c, msg); err != nil {
			return err
		}
		got := make([]byte, len(msg))
		_, err := io.ReadFull(c, got)
		if err == nil && string(got) != msg {
			err = fmt.Errorf("got %q", got)
		}
		return err
	}
	for _, port := range ports {
		c, err := r.Client.Dial("tcp", r.addr(port%2 == 1, port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns[port] = c
		if _, err := io.WriteString(c, "echo\n"); err != nil {
			t.Fatal(err)
		}
		if err := echo(port, "before"); err != nil {
			t.Fatalf("port %d: %v", port, err)
		}
	}
	r.eventually("one is spliced", func() error {
		if err := echo(7004, "to be spliced"); err != nil {
			t.Fatal(err)
		}
		list, err := client.Drains()
		for _, d := range list {
			if d.Flows.Spliced == 1 {
				return nil
			}
		}
		return fmt.Errorf("%+v, %v", list, err)
	})
	// The time is short and the inspected and terminated chains change; the one of
	// port 7002 goes altogether.
	next := strings.NewReplacer("max_flows = 2000", "max_flows = 2100", "9000", "9500").Replace(body)
	next = strings.Replace(next, `to = "offload"`, `to = "bypass"`, 1)
	next = strings.Replace(next, "[[chain]]\nname = \"offload\"\noffload = \"auto\"\n", "", 1)
	write("1h", next)
	if res, err := client.Reload(true); err != nil || res.Applied || len(res.Changes) < 5 {
		t.Fatalf("dry run: %+v, %v", res, err)
	}
	if s := a.status(); s.Reloads != (control.Reloads{}) {
		t.Errorf("after a dry run: %+v", s.Reloads)
	}
	if res, err := client.Reload(false); err != nil || !res.Applied || len(res.Leaving) != 5 {
		t.Fatalf("%+v, %v", res, err)
	}
	for _, port := range ports {
		if err := echo(port, "on the old chain"); err != nil {
			t.Errorf("port %d: %v", port, err)
		}
	}
	r.eventually("four chains have flows", func() error { // an offloaded one is left alone
		if s := a.status(); len(s.Leaving) != 4 {
			return fmt.Errorf("%+v", s.Leaving)
		}
		return nil
	})
	write("0s", next)
	if res, err := client.Reload(false); err != nil || len(res.Kept) != 4 {
		t.Fatalf("%+v, %v", res, err)
	}
	r.eventually("no chain leaves any more", func() error {
		if s := a.status(); len(s.Leaving) != 0 {
			return fmt.Errorf("%+v", s.Leaving)
		}
		return nil
	})
	for _, port := range ports {
		err := echo(port, "after it")
		if (err != nil) != (port == 7003) {
			t.Errorf("port %d: %v", port, err)
		}
	}
	if f, err := a.flow(r.addr(true, 7001)); err != nil || f.Depth != "offload" {
		t.Errorf("what was inspected: %+v, %v", f, err)
	}
	if f, err := a.flow(r.addr(false, 7000)); err != nil || f.Depth != "forward" || f.Chain != "forward" {
		t.Errorf("what was forwarded: %+v, %v", f, err)
	}

	// Drained chains get no more flows, and keep those that they have.
	out, err := r.penstock("drain", "--control", r.control(), "--chain", "forward", "--wait", "100ms", "--json").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "1 flows are left") {
		t.Errorf("drain: %v: %s", err, out)
	}
	before := a.status().Totals.Packets
	c, err := r.Client.Dial("tcp", r.addr(false, 7000))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if now := a.status().Totals.Packets; now != before {
		t.Errorf("%d packets of a new flow of a drained chain came up", now-before)
	}
	if err := echo(7000, "drained"); err != nil || a.status().Totals.Packets == before {
		t.Errorf("the flow that it has: %v", err)
	}
	conns[7000].Close()
	if out, err := r.penstock("drain", "--control", r.control(), "--chain", "forward").CombinedOutput(); err != nil || !strings.Contains(string(out), "bypassed") {
		t.Errorf("drain: %v: %s", err, out)
	}
	if out, err := r.penstock("drain", "--control", r.control(), "--chain", "forwrad").CombinedOutput(); err == nil || !strings.Contains(string(out), `there are "`) {
		t.Errorf("drain of what is not there: %v: %s", err, out)
	}
	if out, err := r.penstock("drain", "--control", r.control(), "--undo").CombinedOutput(); err != nil {
		t.Errorf("undo: %v: %s", err, out)
	}
	before = a.status().Totals.Packets
	if c, err = r.Client.Dial("tcp", r.addr(false, 7000)); err != nil || a.status().Totals.Packets == before {
		t.Errorf("after undo: %v, and no packet came up", err)
	} else {
		c.Close()
	}

	// What cannot change while it runs names the key and the way.
	write("1h", strings.Replace(next, "[[chain]]", "[[ipfix]]\nto = \"udp:127.0.0.1:9\"\n[[chain]]", 1))
	out, err = r.penstock("reload", "--control", r.control()).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "penstock run "+r.toml) || !strings.Contains(string(out), "[[ipfix]]") {
		t.Errorf("%v: %s", err, out)
	}
	a.stop()
	log := a.log.String()
	for _, want := range []string{"moved=1", "bypassed=1", "reset=1", "left_to_xdp=1", "balanced=true"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log has no %s", want)
		}
	}
}
