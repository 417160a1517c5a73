package traffic

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"penstock/internal/lab"
)

// childEnv tells a program that Start has started it.
const childEnv = "PENSTOCK_TRAFFIC_CHILD"

const startLimit = 10 * time.Second

// Process is a server or load of this package that runs inside a namespace as a
// process of its own.
type Process struct {
	*lab.Cmd
	Addrs []string // where a server listens, "address:port"

	out    *bufio.Reader
	errors *tail
}

// Start runs Main with args inside n, as a process that ends with ctx and with the
// lab. For a server it returns when it listens. It runs this program again, so
// this program must call Child first.
func Start(ctx context.Context, n *lab.NS, args ...string) (*Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start traffic: %w", err)
	}
	p := &Process{Cmd: n.Command(ctx, self, args...), errors: &tail{}}
	p.Env = append(os.Environ(), childEnv+"=1")
	p.Stderr = p.errors
	stdout, err := p.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start traffic: %w", err)
	}
	p.out = bufio.NewReader(stdout)
	if err := p.Cmd.Start(); err != nil {
		return nil, err
	}
	if len(args) > 0 && strings.HasSuffix(args[0], "-server") {
		if err := p.readAddrs(); err != nil {
			p.Terminate(0)
			return nil, fmt.Errorf("start traffic %q in %s: %w%s", args, n.Name(), err, p.errors)
		}
	}
	return p, nil
}

// readAddrs reads a server's first line, which says where it listens.
func (p *Process) readAddrs() error {
	timer := time.AfterFunc(startLimit, func() { p.Terminate(0) })
	defer timer.Stop()
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("wait for it to listen: %w", err)
	}
	if err := json.Unmarshal(line, &p.Addrs); err != nil {
		return fmt.Errorf("read where it listens: %w", err)
	}
	return nil
}

// Result waits for the process and decodes what it printed into v.
func (p *Process) Result(v any) error {
	out, readErr := io.ReadAll(p.out)
	if err := errors.Join(readErr, p.Wait()); err != nil {
		return fmt.Errorf("run traffic %q: %w%s", p.Args[1:], err, p.errors)
	}
	if err := json.Unmarshal(out, v); err != nil {
		return fmt.Errorf("run traffic %q: read result %q: %w", p.Args[1:], out, err)
	}
	return nil
}

// Run is Start and Result.
func Run(ctx context.Context, n *lab.NS, v any, args ...string) error {
	p, err := Start(ctx, n, args...)
	if err != nil {
		return err
	}
	return p.Result(v)
}

// Child runs Main if this process was started by Start, and says so; the caller then
// exits with status.
func Child() (status int, isChild bool) {
	if os.Getenv(childEnv) == "" {
		return 0, false
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return Main(ctx, os.Args[1:], os.Stdout, os.Stderr), true
}

const usage = `usage: http-server ADDR...
       tcp-server [-mode "VERB [N]"] ADDR...
       load [-kind http|source|sink] [-path P] [-close] [-conns N] [-bytes N] [-requests N] [-duration D] ADDR
       check whoami|bytes|chunked|echo|upload|tcp-whoami|tcp-echo|tcp-discard|tcp-source|tcp-reset [-bytes N] ADDR
`

// Main is this package as a command: servers print the addresses they listen on as a
// JSON list and run until ctx ends, the others print their result as JSON. It returns
// the exit status: 0 done, 1 it ran and went wrong, 2 the arguments are wrong.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fail := func(status int, why any) int {
		fmt.Fprintln(stderr, why)
		return status
	}
	if len(args) == 0 {
		return fail(2, usage)
	}
	name, args := args[0], args[1:]
	what := ""
	if name == "check" && len(args) > 0 {
		what, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	var o LoadOptions
	mode := flags.String("mode", "", "")
	closing := flags.Bool("close", false, "")
	flags.StringVar(&o.Kind, "kind", "http", "")
	flags.StringVar(&o.Path, "path", "", "")
	flags.IntVar(&o.Conns, "conns", 1, "")
	flags.Int64Var(&o.Bytes, "bytes", 0, "")
	flags.Int64Var(&o.Requests, "requests", 0, "")
	flags.DurationVar(&o.Duration, "duration", 0, "")
	if err := flags.Parse(args); err != nil {
		return 2 // flag has said why
	}
	addrs := flags.Args()
	if len(addrs) == 0 {
		return fail(2, usage)
	}
	o.KeepAlive, o.Address = !*closing, addrs[0]

	var result any
	var err error
	switch name {
	case "http-server":
		err = serveAll(ctx, addrs, stdout, ServeHTTP)
	case "tcp-server":
		err = serveAll(ctx, addrs, stdout, (&TCPServer{Mode: *mode}).Serve)
	case "load":
		result, err = Load(ctx, o)
	case "check":
		result, err = runCheck(ctx, what, addrs[0], o.Bytes)
	default:
		return fail(2, usage)
	}
	if err != nil {
		return fail(1, err)
	}
	if result != nil {
		if err := json.NewEncoder(stdout).Encode(result); err != nil {
			return fail(1, fmt.Errorf("print result: %w", err))
		}
	}
	return 0
}

// serveAll listens on every address, says so, and serves until ctx ends.
func serveAll(ctx context.Context, addrs []string, stdout io.Writer, serve func(context.Context, net.Listener) error) error {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	var listening []string
	var lns []net.Listener
	for _, a := range addrs {
		ln, err := lc.Listen(ctx, "tcp", a)
		if err != nil {
			return err
		}
		defer ln.Close()
		lns, listening = append(lns, ln), append(listening, ln.Addr().String())
	}
	if err := json.NewEncoder(stdout).Encode(listening); err != nil {
		return fmt.Errorf("print addresses: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, len(lns))
	for i, ln := range lns {
		wg.Go(func() {
			errs[i] = serve(ctx, ln)
			cancel() // one that cannot go on ends all
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func runCheck(ctx context.Context, what, addr string, n int64) (any, error) {
	var c Client
	check := map[string]func() error{
		"bytes":       func() error { return c.Bytes(ctx, addr, n, false) },
		"chunked":     func() error { return c.Bytes(ctx, addr, n, true) },
		"echo":        func() error { return c.Echo(ctx, addr, n) },
		"upload":      func() error { return c.Upload(ctx, addr, n) },
		"tcp-echo":    func() error { return c.TCPEcho(ctx, addr, n) },
		"tcp-discard": func() error { return c.TCPDiscard(ctx, addr, n) },
		"tcp-source":  func() error { return c.TCPSource(ctx, addr, n) },
		"tcp-reset":   func() error { return c.TCPReset(ctx, addr, n) },
	}[what]
	switch {
	case what == "whoami":
		return c.Whoami(ctx, addr)
	case what == "tcp-whoami":
		peer, local, err := c.TCPWhoami(ctx, addr)
		return Whoami{Peer: peer, Local: local}, err
	case check == nil:
		return nil, fmt.Errorf("run check: unknown check %q", what)
	}
	return Received{Bytes: n, SHA256: Sum(Seed, n)}, check()
}

// tail keeps the end of what a process writes to its standard error.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const maxTail = 4 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if extra := len(t.buf) - maxTail; extra > 0 {
		t.buf = append(t.buf[:0], t.buf[extra:]...)
	}
	return len(b), nil
}

// String returns it as the end of an error message.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if b := bytes.TrimSpace(t.buf); len(b) > 0 {
		return ": " + string(b)
	}
	return ""
}
