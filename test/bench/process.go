package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"penstock/internal/lab"
)

// process is a program of the bench: a gateway, a server or a load.
type process struct {
	*lab.Cmd
	log *tail // of standard error
}

// prepare makes a command that will run in a namespace on one CPU.
func prepare(ctx context.Context, ns *lab.NS, cpu int, env []string, name string, args ...string) (*process, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, err
	}
	p := &process{Cmd: ns.Command(ctx, "taskset", append([]string{"-c", strconv.Itoa(cpu), path}, args...)...), log: &tail{}}
	p.Env = append(os.Environ(), env...)
	p.Stderr = p.log
	return p, nil
}

func start(ctx context.Context, ns *lab.NS, cpu int, env []string, name string, args ...string) (*process, error) {
	p, err := prepare(ctx, ns, cpu, env, name, args...)
	if err != nil {
		return nil, err
	}
	p.Stdout = p.log
	return p, p.Start()
}

// startSelf starts this program again, in one of the modes of runChild.
func startSelf(ctx context.Context, ns *lab.NS, cpu int, env []string, args ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return start(ctx, ns, cpu, append(env, childEnv+"=1"), self, args...)
}

// output runs a program to its end and returns its standard output.
func output(ctx context.Context, ns *lab.NS, env []string, name string, args ...string) ([]byte, error) {
	p, err := prepare(ctx, ns, endpointCPU, env, name, args...)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	p.Stdout = &out
	if err := p.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("run %s: %w%s", name, err, p.log)
	}
	return out.Bytes(), nil
}

// alive returns an error if the process has ended.
func (p *process) alive() error {
	select {
	case <-p.Exited():
		return fmt.Errorf("%s has ended (%v)%s", p.Args[3], p.Wait(), p.log)
	default:
		return nil
	}
}

// stop ends the process. How it exits is of no interest any more.
func (p *process) stop() error {
	if err := p.Terminate(5 * time.Second); err != nil && p.ProcessState == nil {
		return err
	}
	return nil
}

// childEnv tells this program that it is one of its own children.
const childEnv = "PENSTOCK_BENCH_CHILD"

// runChild runs a child's mode and says so.
func runChild(args []string) (status int, child bool) {
	if os.Getenv(childEnv) == "" || len(args) < 2 {
		return 0, false
	}
	var err error
	switch args[0] {
	case "serve-bulk":
		err = serveBulk(args[1])
	case "serve-idle":
		err = serveIdle(args[1])
	case "load-idle":
		err = loadIdle(args[1:], os.Stdin, os.Stdout)
	case "load-bulk":
		err = loadBulk(args[1:], os.Stdout)
	case "serve-tls":
		err = serveTLS(args[1])
	case "load-tls":
		err = loadTLS(args[1:], os.Stdout)
	case "serve-played":
		err = servePlayed(args[1], args[len(args)-1])
	case "load-played":
		err = loadPlayed(args[1:], os.Stdout)
	case "proxy":
		err = proxy(args[1])
	default:
		err = fmt.Errorf("unknown mode %q", args[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1, true
	}
	return 0, true
}

// tail keeps the end of what a process writes.
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
	if s := strings.TrimSpace(string(t.buf)); s != "" {
		return ": " + s
	}
	return ""
}
