package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"penstock/internal/control"
)

const topArgs = "[--control PATH] [--json] [--once] [--interval TIME]"

// manyFlows is from how many flows on the list of them is not read each second.
const manyFlows = 20_000

func topCommand(args []string) error {
	fs, path, asJSON := clientFlags("top", topArgs)
	once := fs.Bool("once", false, "print once, and end; so it does where its output is no terminal")
	interval := fs.Duration("interval", time.Second, "`time` between two looks")
	if err := parseAll(fs, args); err != nil {
		return err
	}
	if *interval < 100*time.Millisecond || *interval > time.Hour {
		return usagef("--interval: want 100ms to 1h, got %v", *interval)
	}
	client := control.NewClient(*path)
	before, err := takeLook(client)
	if err != nil {
		return err
	}
	t := openTerminal(os.Stdin, os.Stdout)
	if *once || *asJSON || t == nil {
		time.Sleep(*interval)
		now, err := takeLook(client)
		if err != nil {
			return err
		}
		v := compare(before, now)
		if *asJSON {
			return printJSON(v)
		}
		_, err = os.Stdout.WriteString(strings.Join(v.render(160, 0, topOptions{}), "\n") + "\n")
		return err
	}
	return watch(client, t, before, *interval)
}

// look is what top has asked for at one moment.
type look struct {
	at     time.Time
	status control.Status
	flows  []control.Flow
	few    bool // flows were read
}

func takeLook(c *control.Client) (l look, err error) {
	if l.status, err = c.Sample(); err != nil {
		return l, err
	}
	l.at = time.Now()
	if l.few = l.status.Flows.Steered <= manyFlows; l.few {
		l.flows, err = c.Flows()
	}
	return l, err
}

// topOptions are what keys change.
type topOptions struct {
	sort   int
	filter string
	typing bool // of the filter
	paused bool
	gone   string // why there is no answer; "": there is one
	since  time.Time
}

func watch(client *control.Client, t *terminal, last look, interval time.Duration) error {
	if err := t.begin(); err != nil {
		return fmt.Errorf("set up terminal: %w", err)
	}
	defer t.end()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGWINCH)
	defer signal.Stop(signals)
	keys := make(chan byte, 16)
	go func() {
		defer close(keys)
		b := make([]byte, 16)
		for {
			n, err := t.in.Read(b)
			if err != nil {
				return
			}
			for _, k := range b[:n] {
				keys <- k
			}
		}
	}()
	// One question at a time, asked beside the keys: an appliance that is slow to
	// answer does not keep anyone from leaving.
	type answer struct {
		look look
		err  error
	}
	answers := make(chan answer, 1)
	ask := func() {
		go func() {
			l, err := takeLook(client)
			answers <- answer{l, err}
		}()
	}
	timer := time.NewTimer(min(interval, 500*time.Millisecond))
	defer timer.Stop()
	v, o := compare(last, last), topOptions{}
	for {
		t.draw(v, o)
		select {
		case <-timer.C:
			ask()
		case a := <-answers:
			timer.Reset(interval)
			switch {
			case o.paused:
			case a.err != nil:
				if o.gone == "" {
					o.since = last.at
				}
				o.gone = a.err.Error()
			default:
				if a.look.status.PID != last.status.PID {
					last = a.look // another process: its counters begin anew
				}
				o.gone = ""
				v, last = compare(last, a.look), a.look
			}
		case k, ok := <-keys:
			if !ok || o.key(k) {
				return nil
			}
		case s := <-signals:
			if s == syscall.SIGWINCH {
				_, _ = t.out.WriteString("\x1b[2J")
				continue
			}
			if s == syscall.SIGINT {
				return nil
			}
			return errors.New("ended by " + s.String())
		}
	}
}

// key does what a key says, and reports whether that is to quit.
func (o *topOptions) key(k byte) (quit bool) {
	if o.typing {
		switch {
		case k == '\r' || k == '\n':
			o.typing = false
		case k == 0x1b:
			o.typing, o.filter = false, ""
		case k == 0x7f || k == 8:
			_, n := utf8.DecodeLastRuneInString(o.filter)
			o.filter = o.filter[:len(o.filter)-n]
		case k >= ' ' && k < 0x7f && len(o.filter) < 40:
			o.filter += string(rune(k))
		}
		return false
	}
	switch k {
	case 'q', 'Q', 4:
		return true
	case 's':
		o.sort = (o.sort + 1) % len(flowSorts)
	case '/':
		o.typing = true
	case 'c', 0x1b:
		o.filter = ""
	case ' ', 'p':
		o.paused = !o.paused
	}
	return false
}

// draw shows lines from the top left corner on, and clears what is behind them.
func (t *terminal) draw(v topView, o topOptions) {
	width, height := t.size()
	lines := v.render(width, height, o)
	var b strings.Builder
	b.WriteString("\x1b[H")
	for i, l := range lines {
		if i > 0 {
			b.WriteString("\r\n")
		}
		title := l != "" && l == strings.ToUpper(l) && strings.Trim(l, " ") != ""
		switch {
		case i == 0, title:
			b.WriteString("\x1b[1m" + l + "\x1b[0m")
		case i == len(lines)-1:
			b.WriteString("\x1b[7m" + l + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(l))) + "\x1b[0m")
		default:
			b.WriteString(l)
		}
		b.WriteString("\x1b[K")
	}
	b.WriteString("\x1b[J")
	_, _ = t.out.WriteString(b.String())
}
