// Command penstock is a transparent TCP gateway at NIC-queue level.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
)

// version is set by the release build; elsewhere it is what the Go toolchain
// knows of the checkout.
var version = ""

// A command is one subcommand.
type command struct {
	name, args, summary string
	run                 func(args []string) error
}

func commands() []command {
	return []command{
		{"run", "[--log-level LEVEL] FILE", "run the appliance in the foreground", runCommand},
		{"check", "FILE...", "validate configurations and print what they will do", checkCommand},
		{"replay", "--in A.pcap [--out B.pcapng] [--json] FILE", "run a chain of a configuration over a capture, without root", replayCommand},
		{"demo", "", "build client, appliance and server in namespaces here, and show real traffic through it", demoCommand},
		{"stages", "[KIND]", "list the stages, or print the manual of one", stagesCommand},
		{"status", "[--control PATH] [--json]", "what a running appliance does", statusCommand},
		{"top", topArgs, "what a running appliance does, live: queues, chains, drops, flows", topCommand},
		{"flows", flowsArgs, "the live flows of a running appliance", flowsCommand},
		{"reload", reloadArgs, "have a running appliance read its configuration again; --dry-run only says what would change", reloadCommand},
		{"drain", drainArgs, "bypass new flows of a chain, or of all, and wait for those that there are", drainCommand},
		{"deny", denyArgs, "deny sources in XDP on a running appliance, for a time or for good", denyCommand},
		{"capture", captureArgs, "capture packets of a running appliance, with what became of each, as pcapng", captureCommand},
		{"doctor", doctorArgs, "what this machine and its interfaces can do, what is wrong, and the command that mends it; status 1 if anything is wrong", doctorCommand},
		{"detach", "FILE", "remove what an appliance that has gone left attached (on_exit = \"open\")", detachCommand},
		{"version", "", "print the version", versionCommand},
	}
}

// usageError is a mistake on the command line or in a configuration: exit
// status 2. An empty text means that it has been printed already.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return usageError{fmt.Sprintf(format, args...)} }

func main() { os.Exit(dispatch(os.Args[1:], os.Stderr)) }

// dispatch runs a subcommand and returns the exit status: 0 done, 1 it ran and
// failed, 2 the command line or the configuration is wrong.
func dispatch(args []string, stderr io.Writer) int {
	if len(args) == 0 {
		usage(stderr)
		return 2
	}
	if args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
		usage(os.Stdout)
		return 0
	}
	for _, c := range commands() {
		if c.name != args[0] {
			continue
		}
		err := c.run(args[1:])
		var ue usageError
		switch {
		case err == nil, errors.Is(err, flag.ErrHelp):
			return 0
		case errors.As(err, &ue):
			if ue.text != "" {
				fmt.Fprintf(stderr, "penstock %s: %s\n", c.name, ue.text)
			}
			return 2
		default:
			fmt.Fprintf(stderr, "penstock %s: %v\n", c.name, err)
			return 1
		}
	}
	fmt.Fprintf(stderr, "penstock: unknown command %q; `penstock help` lists the commands\n", args[0])
	return 2
}

func usage(w io.Writer) {
	fmt.Fprintln(w, "penstock: a transparent TCP gateway at NIC-queue level")
	fmt.Fprintln(w, "\nusage: penstock COMMAND ...")
	fmt.Fprintln(w)
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-8s %s\n", c.name, c.summary)
		if c.args != "" {
			fmt.Fprintf(w, "  %-8s   penstock %s %s\n", "", c.name, c.args)
		}
	}
	fmt.Fprintln(w, "\nexit status: 0 done, 1 it ran and failed, 2 the command line or the configuration is wrong")
}

// newFlags returns the flag set of a subcommand.
func newFlags(name, args string) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {
		fs.SetOutput(os.Stdout)
		fmt.Printf("usage: penstock %s %s\n", name, args)
		fs.PrintDefaults()
		fs.SetOutput(io.Discard)
	}
	return fs
}

// parse reads flags wherever they stand among the arguments.
func parse(fs *flag.FlagSet, args []string) (rest []string, err error) {
	for {
		if err := fs.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, err
			}
			return nil, usageError{strings.TrimPrefix(err.Error(), "flag ")}
		}
		if fs.NArg() == 0 {
			return rest, nil
		}
		rest = append(rest, fs.Arg(0))
		args = fs.Args()[1:]
	}
}

func versionCommand(args []string) error {
	if len(args) > 0 {
		return usagef("want no arguments, got %q", args)
	}
	fmt.Println("penstock", versionText())
	return nil
}

func versionText() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	revision, modified := "", ""
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			revision = s.Value[:min(12, len(s.Value))]
		case "vcs.modified":
			if s.Value == "true" {
				modified = "+"
			}
		}
	}
	if revision == "" {
		return "devel (" + info.GoVersion + ")"
	}
	return revision + modified + " (" + info.GoVersion + ")"
}
