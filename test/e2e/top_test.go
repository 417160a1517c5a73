package e2e

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"penstock/internal/lab"
)

// screen is a terminal, by tmux, with a shell's command in it.
type screen struct {
	r             *rig
	socket        string
	width, height int
}

func (r *rig) screen(width, height int, command string) *screen {
	r.t.Helper()
	if _, err := exec.LookPath("tmux"); err != nil {
		r.try(r.Client, time.Second, "tmux") // skips, or fails
	}
	s := &screen{r: r, socket: filepath.Join(r.t.TempDir(), "tmux"), width: width, height: height}
	s.tmux("-u", "-f", "/dev/null", "new-session", "-d", "-x", fmt.Sprint(width), "-y", fmt.Sprint(height), command, ";", "set", "status", "off")
	r.t.Cleanup(func() { s.tmux("kill-server") })
	return s
}

func (s *screen) tmux(args ...string) string {
	s.r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "tmux", append([]string{"-S", s.socket}, args...)...).CombinedOutput()
	if err != nil {
		s.r.t.Fatalf("tmux %v: %v: %s", args, err, out)
	}
	return string(out)
}

func (s *screen) press(keys ...string) { s.tmux(append([]string{"send-keys"}, keys...)...) }

// lines is what it shows.
func (s *screen) lines() []string {
	return strings.Split(strings.TrimSuffix(s.tmux("capture-pane", "-p"), "\n"), "\n")
}

// until waits for a screen on which fn finds nothing wrong, and returns it.
func (s *screen) until(what string, fn func(lines []string) error) (lines []string) {
	s.r.t.Helper()
	s.r.eventually(what, func() error {
		lines = s.lines()
		if err := fn(lines); err != nil {
			return fmt.Errorf("%w:\n%s", err, strings.Join(lines, "\n"))
		}
		return nil
	})
	return lines
}

// shows waits for a text.
func (s *screen) shows(text string) []string {
	s.r.t.Helper()
	return s.until(text, func(lines []string) error {
		if !strings.Contains(strings.Join(lines, "\n"), text) {
			return errors.New("it does not show that")
		}
		return nil
	})
}

// flowLines are the lines below that which begins with CLIENT, but the last.
func flowLines(lines []string) []string {
	i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "CLIENT ") })
	return slices.DeleteFunc(slices.Clone(lines[i+1:len(lines)-1]), func(l string) bool { return l == "" })
}

// TestTop runs penstock top in terminals of two sizes, at an appliance with
// traffic, and presses its keys.
func TestTop(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{StaticNeigh: true})
	r.config("open", "", `
[[steer]]
proto = "udp"
to = "filter"
[[chain]]
name = "filter"
offload = "never"
  [[chain.stage]]
  kind = "acl"
  rules = [{ action = "drop", dst_port = [9999] }]
[[chain]]
name = "idle"
`)
	r.echoUDP(7000)
	a := r.start()
	// Sixty flows, the first of them the slowest.
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var first, last string
	for i := range 60 {
		port := uint16(7000)
		if i == 30 {
			port = 9999
		}
		conn, err := r.Client.Dial("udp", r.addr(false, port))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if last = conn.LocalAddr().String(); i == 0 {
			first = last
		}
		packet := make([]byte, 20+10*i)
		go func() {
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				_, _ = conn.Write(packet)
				<-tick.C
			}
		}()
	}
	for _, size := range [][2]int{{80, 24}, {200, 50}} {
		t.Run(fmt.Sprintf("%dx%d", size[0], size[1]), func(t *testing.T) {
			s := r.screen(size[0], size[1], fmt.Sprintf("echo before; %s top --interval 300ms --control %s; echo ended with $?; stty -a; exec sleep 60", binary, r.control()))
			whole := func(lines []string) error {
				if len(lines) != s.height {
					return fmt.Errorf("%d lines, want %d", len(lines), s.height)
				}
				for _, l := range lines {
					if utf8.RuneCountInString(l) > s.width {
						return fmt.Errorf("too wide: %q", l)
					}
				}
				// Lines that a terminal has wrapped are joined by -J.
				if n := strings.Count(s.tmux("capture-pane", "-p", "-J"), "\n"); n != s.height {
					return fmt.Errorf("%d lines of %d are not wrapped", n, s.height)
				}
				if !strings.HasPrefix(lines[0], r.name+"  bridge, up ") || !strings.HasSuffix(lines[0], "  live") {
					return fmt.Errorf("its first line is %q", lines[0])
				}
				if l := lines[len(lines)-1]; !strings.HasPrefix(l, "q quit  p pause  s sort: bits  / filter") {
					return fmt.Errorf("its last line is %q", l)
				}
				text := strings.Join(lines, "\n")
				for _, want := range []string{"flows 60  forward 60 (100.0%)", "\nPORT ", "\nlan ", "\nwan ", "\nCHAIN, STAGE", "\nfilter ", "\n  1 acl ", "\nidle ", "\nDROPPED, REASON", "\nacl_denied ", "\nCLIENT "} {
					if !strings.Contains(text, want) {
						return fmt.Errorf("no %q", want)
					}
				}
				if f := flowLines(lines); len(f) < s.height/5 || !strings.HasPrefix(f[0], last) {
					return fmt.Errorf("%d flows, and the fastest is not the first", len(f))
				}
				return nil
			}
			t.Logf("\n%s", strings.Join(s.until("everything is there", whole), "\n"))

			for _, by := range []string{"packets", "age", "client"} {
				s.press("s")
				s.shows("s sort: " + by)
			}
			if f := flowLines(s.lines()); !slices.IsSorted(f) {
				t.Errorf("sorted by client:\n%s", strings.Join(f, "\n"))
			}
			s.press("s")
			s.shows("s sort: bits")
			s.press("/")
			s.shows("filter: _")
			s.press("-l", first+"x")
			s.shows("filter: " + first + "x_")
			s.shows("no flow matches the filter")
			s.press("BSpace", "Enter")
			s.until("the filter has one flow", func(lines []string) error {
				if f := flowLines(lines); len(f) != 1 || !strings.HasPrefix(f[0], first+" ") {
					return errors.New("it has not")
				}
				return nil
			})
			s.shows("/ filter: " + first + "  c clear")
			s.press("c")
			s.until("everything is there again", whole)

			s.press("p")
			paused := s.shows("  paused")
			for range 4 {
				time.Sleep(100 * time.Millisecond) // more than an interval in all
				if now := s.lines(); !slices.Equal(now[1:], paused[1:]) {
					t.Errorf("it changes while it is paused:\n%s\n%s", strings.Join(paused, "\n"), strings.Join(now, "\n"))
				}
			}
			s.press("p")
			s.until("it goes on", whole)

			// Another size while it runs.
			s.width, s.height = 120, 30
			s.tmux("resize-window", "-x", "120", "-y", "30")
			s.until("everything is there in another size", whole)

			s.press("q")
			ended := strings.Join(s.shows("ended with 0"), "\n")
			if !strings.HasPrefix(ended, "before\nended with 0\n") {
				t.Errorf("the screen is not as it was before:\n%s", ended)
			}
			ended = strings.Join(s.shows(" icanon "), "\n")
			if !strings.Contains(ended, " echo ") {
				t.Errorf("the terminal is not as it was before:\n%s", ended)
			}
		})
	}
	t.Run("without an answer", func(t *testing.T) {
		s := r.screen(80, 24, fmt.Sprintf("%s top --interval 300ms --control %s; echo ended with $?; exec sleep 60", binary, r.control()))
		s.shows("  live")
		a.kill()
		lines := s.shows("NO ANSWER since ")
		if !strings.Contains(strings.Join(lines, "\n"), "ask control socket ") || len(flowLines(lines)) == 0 {
			t.Errorf("what was known is gone, or the reason:\n%s", strings.Join(lines, "\n"))
		}
		a = r.start()
		s.shows("  live")
		s.press("C-c")
		s.shows("ended with 0")
	})
	a.stop()
}
