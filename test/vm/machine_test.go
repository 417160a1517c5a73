// Package vm runs the project on kernels and network drivers that this machine
// does not have, in QEMU with software emulation: kernels of Debian, old and new;
// a real driver (virtio_net) with zero-copy; another processor (arm64).
//
//	client namespace                 machine                server namespace
//	eth0 (a tap) ----- virtio NIC eth1 [ penstock ] eth2 virtio NIC ----- eth0 (a tap)
//	10.77.0.1                                                       10.77.0.2
//
// Its one trap: nothing here runs unless PENSTOCK_VM=1 is set, as `make test-vm`
// does, since it fetches some 350 MB and takes minutes. `make test` sets it for the
// smallest zero-copy case and a few rows on the oldest kernel.
package vm

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"penstock/internal/lab"
)

// request and answer are the lines that ./guest reads and writes.
type request struct {
	ID      int      `json:"id"`
	Args    []string `json:"args,omitempty"`
	Env     []string `json:"env,omitempty"`
	Dir     string   `json:"dir,omitempty"`
	Seconds int      `json:"seconds,omitempty"`
	Signal  int      `json:"signal,omitempty"`
	Write   string   `json:"write,omitempty"`
	Data    []byte   `json:"data,omitempty"`
}

type answer struct {
	ID     int    `json:"id"`
	PID    int    `json:"pid"`
	Output []byte `json:"output"`
	Done   bool   `json:"done"`
	Status int    `json:"status"`
	Error  string `json:"error"`
}

// machine is a running virtual machine.
type machine struct {
	t       *testing.T
	release string
	line    net.Conn
	console *buffer
	gone    chan struct{} // closed when QEMU has ended

	mu   sync.Mutex
	next int
	runs map[int]*run
}

// run is one command in the machine.
type run struct {
	m    *machine
	id   int
	out  buffer
	pid  chan int
	done chan answer
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// options of a machine.
type options struct {
	kernel string            // series, or "newest"
	files  map[string]string // path in the machine: file here
	nics   []nic
	cpus   int
	memory int // MiB; 0: lowMemory
}

// lowMemory is as much as a machine may have, in MiB, for zero-copy of virtio_net to
// work: the driver is a module in the kernels of Debian, and has the device read the
// header of what is sent from a wrong address (internal/doctor, TxHeader). Without
// KASLR that is just above 1 GiB. With no memory there, QEMU reads zeros, which is
// what the header has.
const lowMemory = 1024

// boot starts a machine and waits until it takes commands.
func boot(t *testing.T, o options) *machine {
	t.Helper()
	dir := need(t, "qemu", o.kernel)
	kernel := filepath.Join(dir, "kernel-"+o.kernel)
	release, err := os.ReadFile(filepath.Join(kernel, "release"))
	if err != nil {
		t.Fatal(err)
	}
	tmp := t.TempDir()
	initrd := filepath.Join(tmp, "initrd")
	if err := writeInitrd(initrd, kernel, o.files); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(tmp, "serial")
	args := []string{
		"-L", filepath.Join(dir, "qemu/usr/share/qemu"), "-L", filepath.Join(dir, "qemu/usr/share/seabios"),
		// QEMU 7.2 emulates CMPXCHG16B wrongly, and kernels crash of it.
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "Nehalem,-cx16", "-smp", fmt.Sprint(max(o.cpus, 1)), "-m", fmt.Sprint(cmp.Or(o.memory, lowMemory)),
		"-nodefaults", "-no-reboot", "-display", "none", "-kernel", filepath.Join(kernel, "vmlinuz"), "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off nokaslr",
		"-serial", "stdio", "-chardev", "socket,id=line,path=" + socket + ",server=on,wait=off", "-serial", "chardev:line",
	}
	cmd := exec.Command(qemu(dir), args...)
	for i, n := range o.nics {
		var fds []string
		for _, f := range n.queues {
			cmd.ExtraFiles = append(cmd.ExtraFiles, f)
			fds = append(fds, fmt.Sprint(2+len(cmd.ExtraFiles)))
		}
		which, mq := "fds=", fmt.Sprintf(",mq=on,vectors=%d", 2*len(fds)+2)
		if len(fds) == 1 {
			which, mq = "fd=", ""
		}
		backend := fmt.Sprintf("tap,id=n%d,%s%s", i, which, strings.Join(fds, ":"))
		if n.socket != "" {
			backend, mq = fmt.Sprintf("stream,id=n%d,server=off,addr.type=unix,addr.path=%s", i, n.socket), ""
		}
		cmd.Args = append(cmd.Args, "-netdev", backend,
			"-device", fmt.Sprintf("virtio-net-pci,netdev=n%d,mac=%s,disable-legacy=on,iommu_platform=on,romfile=%s%s", i, n.mac, mq, n.extra))
	}
	lib := filepath.Join(dir, "qemu")
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+filepath.Join(lib, "usr/lib/x86_64-linux-gnu")+":"+filepath.Join(lib, "lib/x86_64-linux-gnu"))
	m := &machine{t: t, release: strings.TrimSpace(string(release)), console: &buffer{}, gone: make(chan struct{}), runs: map[int]*run{}}
	cmd.Stdout, cmd.Stderr = m.console, m.console
	started := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait() // killed
		close(m.gone)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-m.gone
		if m.line != nil {
			m.line.Close()
		}
		if t.Failed() {
			t.Logf("console of %s:\n%s", m.release, m.console)
		}
	})
	m.runs[0] = &run{m: m, done: make(chan answer, 1), pid: make(chan int, 1)}
	deadline := time.After(2 * time.Minute)
	for m.line == nil {
		if m.line, err = net.Dial("unix", socket); err != nil {
			m.line = nil
			select {
			case <-m.gone:
				t.Fatal("qemu has ended")
			case <-deadline:
				t.Fatal("qemu opens no serial line")
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	go m.listen()
	select {
	case <-m.runs[0].done:
	case <-m.gone:
		t.Fatalf("%s has ended before it took commands", m.release)
	case <-deadline:
		t.Fatalf("%s takes no commands after 2 minutes", m.release)
	}
	t.Logf("%s boots in %.1f s", m.release, time.Since(started).Seconds())
	return m
}

// listen sorts what arrives to the commands it belongs to.
func (m *machine) listen() {
	in := bufio.NewScanner(m.line)
	in.Buffer(make([]byte, 1<<16), 1<<26)
	for in.Scan() {
		at := bytes.IndexByte(in.Bytes(), '{')
		if at < 0 {
			continue
		}
		var a answer
		if err := json.Unmarshal(in.Bytes()[at:], &a); err != nil {
			fmt.Fprintf(m.console, "line: %v: %q\n", err, in.Bytes())
			continue
		}
		m.mu.Lock()
		r := m.runs[a.ID]
		m.mu.Unlock()
		if r == nil {
			continue
		}
		if a.PID > 0 {
			r.pid <- a.PID
		}
		_, _ = r.out.Write(a.Output)
		if a.Done {
			r.done <- a
		}
	}
}

// send gives the machine a request and returns where its answers go.
func (m *machine) send(q request) *run {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.runs[q.ID]
	if q.Signal == 0 {
		m.next++
		q.ID = m.next
		r = &run{m: m, id: q.ID, pid: make(chan int, 1), done: make(chan answer, 1)}
		m.runs[q.ID] = r
	}
	b, err := json.Marshal(q)
	if err == nil {
		_, err = m.line.Write(append(b, '\n'))
	}
	if err != nil {
		m.t.Fatalf("send to the machine: %v", err)
	}
	return r
}

// wait returns the end of a command.
func (r *run) wait(timeout time.Duration) (answer, error) {
	select {
	case a := <-r.done:
		if a.Error != "" {
			return a, errors.New(a.Error)
		}
		return a, nil
	case <-r.m.gone:
		return answer{}, errors.New("the machine has ended")
	case <-time.After(timeout):
		return answer{}, fmt.Errorf("no end after %v", timeout)
	}
}

// start runs a command in the background and returns its process id.
func (m *machine) start(args ...string) (*run, int) {
	m.t.Helper()
	r := m.send(request{Args: args})
	select {
	case pid := <-r.pid:
		return r, pid
	case a := <-r.done:
		m.t.Fatalf("start %q: %s", args, a.Error)
	case <-time.After(30 * time.Second):
		m.t.Fatalf("start %q: no answer", args)
	}
	return nil, 0
}

// try runs a command to its end.
func (m *machine) try(timeout time.Duration, q request) (string, error) {
	m.t.Helper()
	q.Seconds = int(timeout.Seconds())
	r := m.send(q)
	a, err := r.wait(timeout + 30*time.Second)
	if err == nil && a.Status != 0 {
		err = fmt.Errorf("exit status %d", a.Status)
	}
	return r.out.String(), err
}

// run is try for a command that must succeed.
func (m *machine) run(args ...string) string {
	m.t.Helper()
	out, err := m.try(60*time.Second, request{Args: args})
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (m *machine) write(path string, data []byte) {
	m.t.Helper()
	if _, err := m.try(30*time.Second, request{Write: path, Data: data}); err != nil {
		m.t.Fatalf("write %s: %v", path, err)
	}
}

func (m *machine) signal(r *run, signal int) {
	m.t.Helper()
	m.send(request{ID: r.id, Signal: signal})
}

// need returns the folder with the things named, fetched if they are not there.
func need(t *testing.T, what ...string) string {
	t.Helper()
	if os.Getenv("PENSTOCK_VM") != "1" {
		t.Skip("SKIPPED, NOT PASSED: run it with make test-vm")
	}
	unable := func(why error) {
		if os.Getenv("REQUIRE_VM") == "1" {
			t.Fatalf("REQUIRE_VM=1, but %v", why)
		}
		t.Skipf("SKIPPED, NOT PASSED: %v", why)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		unable(err)
	}
	dir = filepath.Join(dir, "penstock", "vm")
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "./fetch.sh", append([]string{dir}, what...)...).CombinedOutput()
	if err != nil {
		unable(fmt.Errorf("cannot fetch %s: %w\n%s", strings.Join(what, ", "), err, out))
	}
	if err := lab.Privileged(); err != nil {
		unable(err)
	}
	return dir
}

func qemu(dir string) string { return filepath.Join(dir, "qemu/usr/bin/qemu-system-x86_64") }

var binaries struct {
	once sync.Once
	dir  string
	err  error
}

func TestMain(m *testing.M) {
	status := m.Run()
	os.RemoveAll(binaries.dir) // "": nothing
	os.Exit(status)
}

// programs are the files of a machine with the appliance, built once.
func programs(t *testing.T) map[string]string {
	t.Helper()
	b := &binaries
	b.once.Do(func() {
		b.err = errors.New("another test could not build them")
		dir, err := os.MkdirTemp("", "penstock-vm")
		if err != nil {
			t.Fatal(err)
		}
		b.dir = dir
		build(t, dir, "init", "build", "./guest")
		build(t, dir, "penstock", "build", "../../cmd/penstock")
		b.err = nil
	})
	if b.err != nil {
		t.Fatal(b.err)
	}
	return map[string]string{"init": filepath.Join(b.dir, "init"), "penstock": filepath.Join(b.dir, "penstock")}
}

// build compiles without cgo: args are those of go, behind -o.
func build(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	out := filepath.Join(dir, name)
	cmd := exec.Command("go", append([]string{args[0], "-o", out}, args[1:]...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return out
}
