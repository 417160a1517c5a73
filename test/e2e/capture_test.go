package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"penstock/internal/control"
	"penstock/internal/lab"
)

// shark is what tshark reads of a capture: a line "interface|comment|payload bytes" for each packet.
func (r *rig) shark(file string) []string {
	r.t.Helper()
	args := []string{"-n", "-r", file, "-T", "fields", "-E", "separator=|", "-e", "frame.interface_name", "-e", "frame.comment", "-e", "tcp.len"}
	cmd := r.Client.Command(r.t.Context(), "tshark", args...)
	out, err := cmd.Output()
	if err != nil {
		r.t.Fatalf("tshark %v: %v", args, err)
	}
	return strings.FieldsFunc(string(out), func(c rune) bool { return c == '\n' })
}

// need skips where a tool is missing.
func (r *rig) need(tools ...string) {
	r.t.Helper()
	for _, tool := range tools {
		r.run(r.Client, 10*time.Second, tool, "--version")
	}
}

// capturing is a running `penstock capture`.
type capturing struct {
	r    *rig
	cmd  *lab.Cmd
	text *lockedBuffer
}

// capture begins one and waits until it runs.
func (r *rig) capture(args ...string) *capturing {
	r.t.Helper()
	c := &capturing{r: r, text: &lockedBuffer{}, cmd: r.penstock(append([]string{"capture", "--control", r.control()}, args...)...)}
	c.cmd.Stderr = c.text
	if err := c.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.eventually("the capture runs", func() error {
		if !strings.Contains(c.text.String(), "is not seen") {
			return fmt.Errorf("it said %q", c.text)
		}
		return nil
	})
	return c
}

// wait waits for its end, and returns what it said.
func (c *capturing) wait() string {
	c.r.t.Helper()
	select {
	case <-c.cmd.Exited():
	case <-time.After(20 * time.Second):
		c.r.t.Fatalf("the capture does not end: %s", c.text)
	}
	if err := c.cmd.Wait(); err != nil {
		c.r.t.Errorf("capture: %v: %s", err, c.text)
	}
	return c.text.String()
}

func (c *capturing) interrupt(s syscall.Signal) {
	c.r.t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		c.r.t.Fatal(err)
	}
}

// echo sends a line over a connection to the raw server and reads it back.
func (r *rig) echo(c io.ReadWriter, text string) {
	r.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		r.t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		r.t.Fatalf("sent %q, got %q, %v", text, got, err)
	}
}

// TestCaptureOnDemand: packets at every kind of point with what became of them, of flows in user space and of one that is
// offloaded, which comes up for the capture and is offloaded again afterwards.
func TestCaptureOnDemand(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{})
	r.need("tshark", "tcpdump")
	r.config("open", "", aclChain)
	r.tcpServer(7000)
	a := r.start()
	dial := func() io.ReadWriteCloser {
		c, err := r.Client.DialContext(t.Context(), "tcp", r.addr(false, 7000))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		t.Cleanup(func() { c.Close() })
		if _, err := io.WriteString(c, "echo\n"); err != nil {
			t.Fatal(err)
		}
		r.echo(c, "hello")
		return c
	}
	old := dial()
	offloaded := func(n int) {
		t.Helper()
		r.eventually("flows are offloaded", func() error {
			if got := a.status().Flows.Offloaded; got != n {
				return fmt.Errorf("%d are, want %d", got, n)
			}
			return nil
		})
	}
	offloaded(1)
	before := a.status().Totals.Packets
	r.echo(old, "in XDP")
	if n := a.status().Totals.Packets; n != before {
		t.Fatalf("an offloaded flow has sent %d packets up", n-before)
	}

	file := filepath.Join(r.dir, "out.pcapng")
	c := r.capture("--filter", "tcp port 7000 or tcp port 9999", "--at", "lan:rx,lan:tx,wan:rx,filter/acl:before,filter/1:after,wan:tx", file)
	if text := c.text.String(); !strings.Contains(text, "1 offloaded flows are in user space") {
		t.Errorf("it says %q", text)
	}
	r.echo(old, "twelve bytes")
	dial()
	if s := a.status(); s.Flows.Offloaded != 0 {
		t.Errorf("%d flows are offloaded while they are captured", s.Flows.Offloaded)
	}
	refused, stop := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer stop()
	if conn, err := r.Client.DialContext(refused, "tcp", r.addr(false, 9999)); err == nil {
		conn.Close()
		t.Error("a connection that a rule drops came about")
	}
	c.interrupt(syscall.SIGINT)
	if text := c.wait(); !regexp.MustCompile(`[1-9]\d* packets captured in .*; 0 dropped by the capture; ended: it was stopped`).MatchString(text) {
		t.Errorf("it says %q", text)
	}
	lines := r.shark(file)
	for _, want := range []string{
		"lan:rx|offloaded verdict=forward out=wan|12", "wan:tx|offloaded verdict=forward out=wan|12",
		"wan:rx|offloaded verdict=forward out=lan|12", "lan:tx|offloaded verdict=forward out=lan|12",
		"lan:rx|chain=filter stage=1 verdict=forward out=wan|0", "filter/acl:before|chain=filter stage=1 verdict=forward out=wan|0",
		"filter/1:after|chain=filter stage=1 verdict=forward out=wan|0", "wan:tx|chain=filter stage=1 verdict=forward out=wan|0",
		"lan:rx|chain=filter stage=1 verdict=drop reason=acl_denied|0", "filter/1:after|chain=filter stage=1 verdict=drop reason=acl_denied|0",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("%q is missing in\n%s", want, strings.Join(lines, "\n"))
		}
	}
	for _, l := range lines {
		if strings.HasPrefix(l, "wan:tx|") && strings.Contains(l, "verdict=drop") {
			t.Errorf("dropped and sent: %s", l)
		}
	}
	offloadedAgain := func() {
		t.Helper()
		r.eventually("flows are offloaded again", func() error {
			if f, err := a.flow(r.addr(false, 7000)); err != nil || f.Depth != "offload" {
				return fmt.Errorf("%+v, %v", f, err)
			}
			return nil
		})
		r.echo(old, "and again")
		before := a.status().Totals.Packets
		r.echo(old, "in XDP again")
		if n := a.status().Totals.Packets; n != before {
			t.Errorf("a flow that was captured sends %d packets up", n-before)
		}
	}
	offloadedAgain()

	// A reader that dies leaves nothing behind, and one that stops holds nobody up.
	c = r.capture(filepath.Join(r.dir, "killed.pcapng"))
	r.echo(old, "seen")
	c.interrupt(syscall.SIGKILL)
	<-c.cmd.Exited()
	_ = c.cmd.Wait()
	r.eventually("the capture has ended", func() error {
		l, err := control.NewClient(r.control()).Captures()
		if err != nil || len(l) > 0 {
			return fmt.Errorf("%+v, %v", l, err)
		}
		return nil
	})
	offloadedAgain()

	// Limits, into a pipe.
	out := r.run(r.Appliance, 20*time.Second, "sh", "-c", fmt.Sprintf(
		`%s capture --control %s --for 300ms --at lan:rx - 2>%s/err | tcpdump -n -r - 2>&1`, binary, r.control(), r.dir))
	if text, err := os.ReadFile(filepath.Join(r.dir, "err")); err != nil || !strings.Contains(string(text), "its time is over") {
		t.Errorf("for a time: %s, %s, %v", out, text, err)
	}
	small := filepath.Join(r.dir, "small.pcapng")
	c = r.capture("--limit", "64KiB", "--at", "lan:rx", small)
	if err := r.client().TCPEcho(t.Context(), r.addr(false, 7000), 1<<20); err != nil {
		t.Error(err)
	}
	if text := c.wait(); !strings.Contains(text, "--limit is reached") {
		t.Errorf("it says %q", text)
	}
	if fi, err := os.Stat(small); err != nil || fi.Size() > 64<<10 || fi.Size() < 50<<10 {
		t.Errorf("%+v, %v", fi, err)
	}
	c = r.capture("--count", "3", "--at", "lan:rx", "--snaplen", "64B", small)
	r.echo(old, "one")
	r.echo(old, "two")
	r.echo(old, "three")
	if text := c.wait(); !strings.Contains(text, "3 packets captured") || len(r.shark(small)) != 3 {
		t.Errorf("it says %q", text)
	}

	// Mistakes say what there is.
	for _, m := range []struct {
		args []string
		want string
	}{
		{[]string{"--filter", "prot tcp", "x"}, "syntax error"},
		{[]string{"--at", "web/http:before", "x"}, "there are lan:rx, lan:tx, wan:rx, wan:tx, filter/acl:before, filter/acl:after"},
		{[]string{"--limit", "1kB", "x"}, "want at least 64KiB"},
		{[]string{}, "want one FILE"},
		{[]string{"--stop", "99"}, "there is none of this number"},
	} {
		out, err := r.penstock(append([]string{"capture", "--control", r.control()}, m.args...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), m.want) {
			t.Errorf("%q: %v: %s", m.args, err, out)
		}
	}
	if _, err := os.Stat("x"); err == nil {
		t.Error("a capture that is refused makes a file")
	}
	a.stop()
}
