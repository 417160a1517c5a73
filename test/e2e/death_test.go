package e2e

import (
	be "encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"penstock/internal/control"
	"penstock/internal/lab"
)

// trapBinary builds penstock with the stage of testdata/trap in it.
func trapBinary(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(root, "stages", "builtin.go")
	src, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(src), "\t\"penstock/stages/tls\"\n", "\t\"penstock/stages/tls\"\n\t\"penstock/stages/trap\"\n", 1)
	text = strings.Replace(text, "\treturn r\n", "\tpipeline.Register(r, trap.Descriptor())\n\treturn r\n", 1)
	dir := t.TempDir()
	with := filepath.Join(dir, "builtin.go")
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {
		list: with, filepath.Join(root, "stages", "trap", "trap.go"): filepath.Join(root, "test", "e2e", "testdata", "trap", "trap.go"),
	}})
	if err == nil {
		err = os.WriteFile(with, []byte(text), 0o644)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "penstock")
	if out, err := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", bin, "penstock/cmd/penstock").CombinedOutput(); err != nil {
		t.Fatalf("build with the trap: %v: %s", err, out)
	}
	return bin
}

// pulse sends a datagram every 2 ms to an echo and notes what comes back, and when.
type pulse struct {
	conn net.Conn
	stop chan struct{}
	done sync.WaitGroup

	mu       sync.Mutex
	sent     uint32
	received map[uint32]bool
	last     time.Time
	gap      time.Duration // the longest between two answers
}

const pulseInterval = 2 * time.Millisecond

func (r *rig) pulse(port uint16) *pulse {
	r.t.Helper()
	conn, err := r.Client.Dial("udp", r.addr(false, port))
	if err != nil {
		r.t.Fatal(err)
	}
	p := &pulse{conn: conn, stop: make(chan struct{}), received: map[uint32]bool{}}
	p.done.Go(func() {
		tick := time.NewTicker(pulseInterval)
		defer tick.Stop()
		for {
			p.mu.Lock()
			_, _ = conn.Write(be.BigEndian.AppendUint32(nil, p.sent))
			p.sent++
			p.mu.Unlock()
			select {
			case <-p.stop:
				return
			case <-tick.C:
			}
		}
	})
	p.done.Go(func() {
		b := make([]byte, 2000)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return // closed by end
			}
			if n < 4 {
				continue
			}
			p.mu.Lock()
			now := time.Now()
			if !p.last.IsZero() {
				p.gap = max(p.gap, now.Sub(p.last))
			}
			p.last = now
			p.received[be.BigEndian.Uint32(b)] = true
			p.mu.Unlock()
		}
	})
	return p
}

// beats waits for answers to what is sent from now on.
func (p *pulse) beats(r *rig) {
	r.t.Helper()
	p.mu.Lock()
	from := p.sent
	p.mu.Unlock()
	r.eventually("answers come again", func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		n := 0
		for s := from; s < p.sent; s++ {
			if p.received[s] {
				n++
			}
		}
		if n < 5 {
			return fmt.Errorf("%d have come", n)
		}
		return nil
	})
}

// end returns how many had no answer, and the longest time without any.
func (p *pulse) end() (lost int, gap time.Duration) {
	close(p.stop)
	time.AfterFunc(100*time.Millisecond, func() { p.conn.Close() }) // for the last answers
	p.done.Wait()
	return int(p.sent) - len(p.received), p.gap
}

// echoUDP answers datagrams on the server.
func (r *rig) echoUDP(port uint16) {
	r.t.Helper()
	conn, err := r.Server.ListenPacket("udp", netip.AddrPortFrom(r.ServerIP4, port).String())
	if err != nil {
		r.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 2000)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(b[:n], from)
		}
	}()
	r.t.Cleanup(func() {
		conn.Close()
		<-done
	})
}

// TestDeaths measures the wire while an appliance dies in every way: with
// on_exit = "open" what chains want is without answer for less than a second,
// and what goes past them loses nothing.
func TestDeaths(t *testing.T) {
	r := newRig(t, lab.InlineOptions{StaticNeigh: true})
	bin := trapBinary(t)
	r.config("open", "", `
[[steer]]
proto = "udp"
dst_port = [7000]
to = "all"
[[chain]]
name = "all"
offload = "never"
  [[chain.stage]]
  kind = "trap"
`)
	r.change(r.toml, "[[port]]", "stuck_timeout = \"1s\"\n[[port]]")
	r.echoUDP(7000)
	r.echoUDP(7001)
	tell := func(what string) func(*appliance) {
		return func(*appliance) {
			conn, err := r.Client.Dial("udp", r.addr(false, 7000))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write([]byte("TRAP:" + what)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name  string
		do    func(*appliance)
		lives bool
		limit string   // in front of the process
		log   []string // says so
	}{
		{name: "SIGKILL", do: func(a *appliance) { _ = a.cmd.Process.Signal(syscall.SIGKILL) }},
		{name: "SIGSTOP", do: func(a *appliance) { _ = a.cmd.Process.Signal(syscall.SIGSTOP) }, lives: true},
		{name: "panic in a stage", do: tell("panic"), lives: true, log: []string{"stage panicked"}},
		{name: "panic elsewhere", do: tell("crash"), log: []string{"panic: the trap was told to, where nobody recovers"}},
		{name: "stuck in a stage", do: tell("hang"), log: []string{
			"worker is stuck: the process ends", "worker=0", "stage=trap", "penstock/stages/trap.(*stage).Process", "has made no progress for 1s (stage trap)",
		}},
		{name: "out of memory", do: tell("eat"), limit: "ulimit -v 4000000; ", log: []string{"out of memory"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := &appliance{r: r, cmd: r.Appliance.Command(t.Context(), "sh", "-c", c.limit+`exec "$0" run "$1"`, bin, r.toml), log: &lockedBuffer{}}
			a.cmd.Stderr = a.log
			if err := a.cmd.Start(); err != nil {
				t.Fatal(err)
			}
			r.eventually("the appliance answers", func() error {
				_, err := control.NewClient(r.control()).Status()
				return err
			})
			steered, bypassed := r.pulse(7000), r.pulse(7001)
			r.eventually("the pulse goes through the stage", func() error {
				if n := a.status().Totals.Packets; n < 20 {
					return fmt.Errorf("%d packets", n)
				}
				return nil
			})
			c.do(a)
			if c.lives {
				time.Sleep(1200 * time.Millisecond) // as long as a silent worker could be waited for
			} else {
				select {
				case <-a.cmd.Exited():
				case <-time.After(10 * time.Second):
					t.Errorf("it still runs:\n%s", a.log)
				}
			}
			steered.beats(r)
			lost, gap := steered.end()
			lostBeside, gapBeside := bypassed.end()
			t.Logf("%s: steered %v without answer, %d of %d lost; bypassed %v, %d of %d lost", c.name, gap.Round(time.Millisecond), lost, steered.sent,
				gapBeside.Round(time.Millisecond), lostBeside, bypassed.sent)
			if gap >= time.Second {
				t.Errorf("steered traffic had no answer for %v, want less than a second", gap)
			}
			if lostBeside > 0 {
				t.Errorf("bypassed traffic lost %d of %d", lostBeside, bypassed.sent)
			}
			_ = a.cmd.Process.Signal(syscall.SIGKILL)
			<-a.cmd.Exited()
			_ = a.cmd.Wait()
			for _, want := range c.log {
				if !strings.Contains(a.log.String(), want) {
					t.Errorf("the log has no %q:\n%s", want, a.log)
				}
			}
		})
	}
}
