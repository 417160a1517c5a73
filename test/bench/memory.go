package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"
)

// What a connection takes that is open and idle is read from what the gateway's
// processes have (Pss) and from what the kernel has (slabs, page tables, stacks)
// before and after some ten thousand of them. The kernel's figure has both ends'
// sockets too; what the same connections take where nobody terminates them is
// taken off.

const (
	idlePort  = 84
	idleConns = 9_500 // a proxy has two sockets for each: 20,000 are what an unraised limit often is
	idleName  = "idle"
	// memoryBase is the gateway that has nothing of a connection.
	memoryBase = limit
)

// memory is in bytes.
type memory struct {
	Process int64 `json:"process"`
	Kernel  int64 `json:"kernel"`
}

func (m memory) minus(o memory) memory { return memory{m.Process - o.Process, m.Kernel - o.Kernel} }

// readMemory reads what processes and the kernel have now.
func readMemory(pids []int) (m memory, err error) {
	for _, pid := range pids {
		n, err := sumKB(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss:")
		if err != nil {
			return m, err
		}
		m.Process += n
	}
	m.Kernel, err = sumKB("/proc/meminfo", "Slab:", "KernelStack:", "PageTables:")
	return m, err
}

// sumKB adds up lines "NAME: N kB".
func sumKB(path string, names ...string) (sum int64, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	found := 0
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		for _, name := range names {
			if len(f) == 3 && f[0] == name {
				n, err := strconv.ParseInt(f[1], 10, 64)
				if err != nil {
					return 0, fmt.Errorf("read %s: %w", path, err)
				}
				sum, found = sum+n<<10, found+1
			}
		}
	}
	if found != len(names) {
		return 0, fmt.Errorf("read %s: %d of %v are there", path, found, names)
	}
	return sum, nil
}

// runIdle opens the connections, each of which carries a byte there and back,
// and reads how much memory is in use once that has settled.
func runIdle(ctx context.Context, b *bed, s *site) (l loaded, err error) {
	before, err := settled(ctx, s.pids)
	if err != nil {
		return l, err
	}
	self, err := os.Executable()
	if err != nil {
		return l, err
	}
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	p, err := prepare(ctx, s.client, endpointCPU, []string{childEnv + "=1"}, self, "load-idle", fmt.Sprintf("-conns=%d", idleConns), s.addr(idlePort))
	if err != nil {
		return l, err
	}
	in, err := p.StdinPipe()
	if err != nil {
		return l, err
	}
	out, err := p.StdoutPipe()
	if err != nil {
		return l, err
	}
	began := time.Now()
	if err := p.Start(); err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	defer in.Close()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "open\n" {
		return l, fmt.Errorf("open %d connections: %q, %v%s", idleConns, line, err, p.log)
	}
	l = loaded{work: idleConns, seconds: time.Since(began).Seconds(), packets: idleConns * 5}
	after, err := settled(ctx, s.pids)
	l.memory = after.minus(before)
	return l, err
}

// settled reads the memory in use until it has not changed much for a while.
func settled(ctx context.Context, pids []int) (m memory, err error) {
	const calm, most = 4 * time.Second, 20 * time.Second
	began := time.Now()
	since := began
	for time.Since(since) < calm && time.Since(began) < most {
		now, err := readMemory(pids)
		if err != nil {
			return m, err
		}
		if d := now.minus(m); max(d.Process, -d.Process, d.Kernel, -d.Kernel) > 1<<20 {
			m, since = now, time.Now()
		}
		select {
		case <-ctx.Done():
			return m, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
	return m, nil
}

// serveIdle gives back the first byte of each connection, and then waits for its
// end.
func serveIdle(address string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	lc.KeepAlive = -1
	ln, err := lc.Listen(ctx, "tcp4", address)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { ln.Close() })
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			b := make([]byte, 1)
			for {
				if _, err := conn.Read(b); err != nil {
					return // the client counts what went wrong
				}
				if _, err := conn.Write(b); err != nil {
					return
				}
			}
		}()
	}
}

// loadIdle opens connections, says "open", and closes them when its input ends.
func loadIdle(args []string, in io.Reader, out io.Writer) error {
	fs := flag.NewFlagSet("load-idle", flag.ContinueOnError)
	n := fs.Int("conns", 1, "how many")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() != 1 {
		return errors.New("load-idle: want one address")
	}
	d := net.Dialer{Timeout: 10 * time.Second, KeepAlive: -1}
	d.SetMultipathTCP(false)
	conns := make([]net.Conn, *n)
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}()
	var wg sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		wg.Go(func() {
			b := []byte{1}
			for j := i; j < len(conns) && errs[i] == nil; j += len(errs) {
				if conns[j], errs[i] = d.Dial("tcp4", fs.Arg(0)); errs[i] != nil {
					return
				}
				_ = conns[j].SetDeadline(time.Now().Add(10 * time.Second))
				if _, errs[i] = conns[j].Write(b); errs[i] == nil {
					_, errs[i] = io.ReadFull(conns[j], b)
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(out, "open"); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, in)
	return err
}

// memoryOf returns what a connection takes by a gateway, in bytes; the kernel's
// part without what it takes where nobody terminates it, if that was measured.
func (r report) memoryOf(gateway string) (process, kernel spread, ok bool) {
	var p, k []float64
	for _, m := range r.of(gateway, idleName) {
		base := int64(0)
		for _, o := range r.of(memoryBase, idleName) {
			if o.Round == m.Round {
				base = o.Memory.Kernel
			}
		}
		p, k = append(p, float64(m.Memory.Process)/m.Work), append(k, float64(m.Memory.Kernel-base)/m.Work)
	}
	return spreadOf(p), spreadOf(k), len(p) > 0
}

func (r report) printMemory(out io.Writer) {
	if len(r.of(memoryBase, idleName)) == 0 {
		return
	}
	fmt.Fprintf(out, "\nmemory of an idle connection, of %d, in bytes\n", idleConns)
	tw := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "  GATEWAY\tPROCESS\tKERNEL\tBOTH")
	for _, g := range r.gateways(idleName) {
		if p, k, ok := r.memoryOf(g); ok && g != memoryBase {
			fmt.Fprintf(tw, "  %s\t%s\t%s\t%.0f\n", g, whole(p), whole(k), p.Median+k.Median)
		}
	}
	tw.Flush()
}

func (r report) markdownMemory(out io.Writer) {
	if len(r.of(memoryBase, idleName)) == 0 {
		return
	}
	fmt.Fprintf(out, "\n| bytes of an idle connection, of %d | process | kernel | both |\n|---|---|---|---|\n", idleConns)
	for _, g := range r.gateways(idleName) {
		if p, k, ok := r.memoryOf(g); ok && g != memoryBase {
			fmt.Fprintf(out, "| `%s` | %s | %s | %.0f |\n", g, whole(p), whole(k), p.Median+k.Median)
		}
	}
}
