package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// terminal is a terminal that shows keys as they are pressed.
type terminal struct {
	in, out *os.File
	before  unix.Termios
}

// openTerminal returns nil if in or out is none.
func openTerminal(in, out *os.File) *terminal {
	t := &terminal{in: in, out: out}
	state, err := unix.IoctlGetTermios(int(in.Fd()), unix.TCGETS)
	if err != nil {
		return nil
	}
	if _, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS); err != nil {
		return nil
	}
	t.before = *state
	return t
}

// The screen that was there before comes back at the end.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l\x1b[2J"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
)

// begin turns line editing and echo off. Ctrl-C stays a signal.
func (t *terminal) begin() error {
	raw := t.before
	raw.Lflag &^= unix.ICANON | unix.ECHO
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(int(t.in.Fd()), unix.TCSETS, &raw); err != nil {
		return err
	}
	_, err := t.out.WriteString(enterScreen)
	return err
}

func (t *terminal) end() {
	_, _ = t.out.WriteString(leaveScreen)
	_ = unix.IoctlSetTermios(int(t.in.Fd()), unix.TCSETS, &t.before)
}

// size is in characters.
func (t *terminal) size() (width, height int) {
	w, err := unix.IoctlGetWinsize(int(t.out.Fd()), unix.TIOCGWINSZ)
	if err != nil || w.Col == 0 || w.Row == 0 {
		return 80, 24
	}
	return int(w.Col), int(w.Row)
}
