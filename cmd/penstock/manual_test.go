package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"penstock/internal/config"
	"penstock/internal/control"
	"penstock/pipeline"
	"penstock/stages"
)

var update = flag.Bool("update", false, "write the manual pages and the completion anew")

// option is a flag of a command, as -h shows it.
type option struct{ name, value, help string }

var optionLine = regexp.MustCompile(`(?m)^  -([\w-]+)(?: (\S+))?\n    \t(.*)$`)

// options asks a command for its flags.
func options(t *testing.T, c command) (list []option) {
	t.Helper()
	if c.name == "version" {
		return nil // has none, and no -h either
	}
	status, stdout, stderr := invoke(t, c.name, "-h")
	if status != 0 || stderr != "" {
		t.Fatalf("%s -h: status %d, %s", c.name, status, stderr)
	}
	for _, m := range optionLine.FindAllStringSubmatch(stdout, -1) {
		list = append(list, option{m[1], m[2], m[3]})
	}
	return list
}

// roff escapes a text. What stands in quotes or backticks keeps them.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "`", `\(ga`, `'`, `\(aq`).Replace(text)
	if strings.HasPrefix(text, ".") {
		text = `\&` + text
	}
	return text
}

func bold(text string) string   { return `\fB` + roff(text) + `\fR` }
func italic(text string) string { return `\fI` + roff(text) + `\fR` }

// manDate is of the last change of what is written by hand below.
const manDate = "2026-11-22"

func pageHead(name, section, what string) string {
	return fmt.Sprintf(".\\\" Made by `make docs` from the help texts. Changes belong there.\n.TH %s %s %s Penstock \"Penstock manual\"\n.SH NAME\n%s \\- %s\n",
		strings.ToUpper(name), section, manDate, name, roff(what))
}

// para is a paragraph, one sentence a line.
func para(text string) string {
	return ".PP\n" + strings.ReplaceAll(roff(text), ". ", ".\n") + "\n"
}

func commandPage(t *testing.T) string {
	var b strings.Builder
	b.WriteString(pageHead("penstock", "1", "a transparent TCP gateway at NIC-queue level"))
	b.WriteString(".SH SYNOPSIS\n.B penstock\n.I COMMAND\n[\\fIARGUMENTS\\fR ...]\n.SH DESCRIPTION\n")
	b.WriteString(strings.TrimPrefix(para("An XDP program takes selected flows off a network interface into AF_XDP sockets. "+
		"A pipeline of stages, configured in TOML, filters them, inspects them, or terminates them, and gives them back at NIC-queue level. "+
		"Neither the client nor the server is configured, addressed or aware."), ".PP\n"))
	b.WriteString(para("`penstock run` is the appliance. What else talks to a running one does so over its control socket; where several run, --control says which. Flags are written -flag or --flag, before, behind or between other arguments."))
	b.WriteString(".SH COMMANDS\n")
	for _, c := range commands() {
		fmt.Fprintf(&b, ".SS penstock %s\n", roff(c.name))
		if c.args != "" {
			fmt.Fprintf(&b, "%s %s\n.PP\n", bold("penstock "+c.name), roff(c.args))
		}
		fmt.Fprintf(&b, "%s.\n", roff(strings.ToUpper(c.summary[:1])+c.summary[1:]))
		for _, o := range options(t, c) {
			fmt.Fprintf(&b, ".TP\n%s", bold("--"+o.name))
			if o.value != "" {
				fmt.Fprintf(&b, " %s", italic(o.value))
			}
			fmt.Fprintf(&b, "\n%s\n", roff(o.help))
		}
	}
	b.WriteString(".SH SIGNALS\nOf a process of \\fBpenstock run\\fR:\n")
	for _, s := range [][2]string{
		{"SIGHUP", "opens the files of records again, and reloads the configuration as `penstock reload` does; the log says what became of it"},
		{"SIGTERM, SIGINT", "lets terminated connections finish for drain_timeout, and ends; a second one ends the waiting"},
	} {
		fmt.Fprintf(&b, ".TP\n%s\n%s\n", bold(s[0]), roff(s[1]))
	}
	b.WriteString(".SH FILES\n")
	for _, f := range [][2]string{
		{"/etc/penstock/NAME.toml", "the configuration of the service penstock@NAME"},
		{"/run/NAME/control.sock", "the control socket (control in [appliance])"},
		{"/sys/fs/bpf/NAME", "maps and links that outlive the process (pins in [appliance])"},
		{"/var/lib/NAME/gate.jsonl", "what is denied at run time (state in [gate])"},
		{"/usr/share/doc/penstock", "the documents"},
	} {
		fmt.Fprintf(&b, ".TP\n%s\n%s\n", italic(f[0]), roff(f[1]))
	}
	b.WriteString(".SH EXIT STATUS\n.TP\n0\ndone\n.TP\n1\nit ran and failed; for \\fBdoctor\\fR: something is wrong\n.TP\n2\nthe command line or the configuration is wrong\n")
	b.WriteString(".SH EXAMPLES\n")
	for i, e := range [][2]string{
		{"penstock check /etc/penstock/edge.toml", "says what a configuration will do, or all that is wrong with it"},
		{"penstock doctor /etc/penstock/edge.toml", "says what of this machine is in its way, and the command that mends it"},
		{"penstock run /etc/penstock/edge.toml", "runs it, or takes over from one that runs"},
		{"penstock flows --control /run/edge/control.sock --depth terminate", "lists the connections that are terminated"},
		{"penstock deny add 192.0.2.0/24 --for 10m --why scan", "drops everything of these sources, in XDP, for ten minutes"},
	} {
		if i > 0 {
			b.WriteString(".PP\n")
		}
		fmt.Fprintf(&b, ".nf\n%s\n.fi\n.RS\n%s\n.RE\n", bold(e[0]), roff(e[1]))
	}
	b.WriteString(".SH SEE ALSO\n.BR penstock.toml (5),\n.BR ethtool (8),\n.BR ip (8),\n.BR systemctl (1)\n")
	return b.String()
}

func configPage() string {
	var b strings.Builder
	b.WriteString(pageHead("penstock.toml", "5", "configuration of penstock"))
	b.WriteString(".SH DESCRIPTION\nA configuration is a file in TOML.\n" +
		"\\fBpenstock check\\fR validates it without root and without a network interface, and names all mistakes at once, each as file:line:col.\n" +
		"Unknown keys are mistakes.\n")
	b.WriteString(para("Durations are written \"250ms\", \"30s\" or \"1h\"; sizes \"64KiB\" or \"2MiB\"; rates \"10Mbit/s\" or \"2000pkt/s\". Prefixes are \"10.0.0.0/8\", \"fd00::/8\" or an address. Port ranges are 80 or \"8000-8099\"."))
	b.WriteString(".SH TABLES\n")
	for _, t := range config.Tables() {
		name := "[" + t.Name + "]"
		if t.List {
			name = "[" + name + "]"
		}
		fmt.Fprintf(&b, ".SS %s\n%s.\n", roff(name), roff(strings.ToUpper(t.Help[:1])+t.Help[1:]))
		if t.List {
			b.WriteString("The table may stand several times.\n")
		}
		for _, k := range t.Keys {
			fmt.Fprintf(&b, ".TP\n%s", bold(k.Name))
			if k.Default != "" {
				fmt.Fprintf(&b, " = %s", roff(k.Default))
			}
			var facts []string
			switch {
			case len(k.Values) > 0:
				facts = append(facts, `"`+strings.Join(k.Values, `", "`)+`"`)
			default:
				facts = append(facts, k.Type)
			}
			if k.Min != "" {
				facts = append(facts, "from "+k.Min)
			}
			if k.Max != "" {
				facts = append(facts, "to "+k.Max)
			}
			if k.Required {
				facts = append(facts, "required")
			}
			fmt.Fprintf(&b, "\n(%s)\n.br\n%s\n", roff(strings.Join(facts, ", ")), roff(k.Help))
		}
	}
	b.WriteString(".SH STAGES\nThe stages of a chain run from the first to the last.\n" +
		"Stages of packets stand before \\fBtcp\\fR, stages of streams behind it.\n" +
		"\\fBpenstock stages\\fR \\fIKIND\\fR prints the manual of one, with all of its keys.\n")
	for _, k := range stages.Builtin().Kinds() {
		fmt.Fprintf(&b, ".TP\n%s (%s)\n%s\n", bold(k.Name), layerName(k.Layer), roff(k.Summary))
	}
	b.WriteString(".SH EXAMPLE\n.nf\n")
	for line := range strings.Lines(exampleConfig) {
		b.WriteString(roff(line))
	}
	b.WriteString(".fi\n.SH FILES\n.TP\n\\fI/etc/penstock/*.toml\\fR\nconfigurations; those of the package are examples\n.SH SEE ALSO\n.BR penstock (1)\n")
	return b.String()
}

const exampleConfig = `[[port]]
name      = "lan"
interface = "eth1"

[[port]]
name      = "wan"
interface = "eth2"

[[steer]]
from     = "lan"
proto    = "tcp"
dst_port = [80]
to       = "web"

[[chain]]
name = "web"
  [[chain.stage]]
  kind = "tcp"
  [[chain.stage]]
  kind       = "http"
  deny_hosts = ["*.ads.example"]
`

// generated compares a file with what it should be, or writes it.
func generated(t *testing.T, file, want string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != want {
		t.Errorf("%s is stale (%v): run make docs", file, err)
	}
}

// TestManualPages: the manual pages are what the help texts and the configuration's
// keys say now, and groff and mandoc have nothing against them.
func TestManualPages(t *testing.T) {
	if _, problems := config.Parse("example", []byte(exampleConfig), stages.Builtin()); problems != nil {
		t.Error(problems.Error())
	}
	for file, text := range map[string]string{"../../dist/man/penstock.1": commandPage(t), "../../dist/man/penstock.toml.5": configPage()} {
		generated(t, file, text)
		for _, check := range [][]string{{"groff", "-man", "-ww", "-z", "-Tutf8"}, {"mandoc", "-Tlint", "-Wwarning"}} {
			if _, err := exec.LookPath(check[0]); err != nil {
				t.Logf("%s is not installed: not checked with it", check[0])
				continue
			}
			if out, err := exec.Command(check[0], append(check[1:], file)...).CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("%v: %v: %s", check, err, out)
			}
		}
	}
	page := commandPage(t)
	for _, c := range commands() {
		if !strings.Contains(page, ".SS penstock "+c.name) {
			t.Errorf("penstock.1 has no %s", c.name)
		}
	}
	for _, want := range []string{`\fB\-\-dry\-run\fR`, `\fB\-\-control\fR`, `\fB\-\-evict\fR`} {
		if !strings.Contains(page, want) {
			t.Errorf("penstock.1 has no %s", want)
		}
	}
	for _, k := range config.Keys() {
		if !strings.Contains(configPage(), bold(k.Name)) {
			t.Errorf("penstock.toml.5 has no %s", k.Name)
		}
	}
}

// words are what may stand behind a flag, where there is a choice.
var words = map[string]string{
	"log-level": "debug info warn error", "depth": "offload forward inspect terminate", "loop": "auto open closed", "mode": "bridge router",
}

// completion is a completion for bash.
func completion(t *testing.T) string {
	var names, kinds []string
	var flags, values, files strings.Builder
	for _, c := range commands() {
		names = append(names, c.name)
		var list []string
		for _, o := range options(t, c) {
			list = append(list, "--"+o.name)
		}
		if len(list) > 0 {
			slices.Sort(list)
			fmt.Fprintf(&flags, "\t%s) flags='%s' ;;\n", c.name, strings.Join(list, " "))
		}
		if strings.Contains(c.args, "FILE") || strings.Contains(c.args, "CONFIG") {
			fmt.Fprintf(&files, "%s|", c.name)
		}
	}
	for _, k := range stages.Builtin().Kinds() {
		kinds = append(kinds, k.Name)
	}
	for _, name := range []string{"depth", "log-level", "loop", "mode"} {
		fmt.Fprintf(&values, "\t\t--%s|-%s) COMPREPLY=($(compgen -W '%s' -- \"$cur\")); return ;;\n", name, name, words[name])
	}
	return strings.NewReplacer("@COMMANDS@", strings.Join(names, " ")+" help", "@FLAGS@", flags.String(), "@VALUES@", values.String(),
		"@FILES@", strings.TrimSuffix(files.String(), "|"), "@KINDS@", strings.Join(kinds, " ")).Replace(completionText)
}

const completionText = `# Completion of penstock for bash; zsh takes it after "autoload -U bashcompinit; bashcompinit".
# Made by "make docs" from the help texts. Changes belong there.
_penstock() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command='' flags='' i
	COMPREPLY=()
	for ((i = 1; i < COMP_CWORD; i++)); do
		case ${COMP_WORDS[i]} in -*) ;; *) command=${COMP_WORDS[i]}; break ;; esac
	done
	if [[ -z $command ]]; then
		COMPREPLY=($(compgen -W '@COMMANDS@' -- "$cur"))
		return
	fi
	case $prev in
@VALUES@		--control|-control)
			COMPREPLY=($(compgen -W "$(compgen -G '/run/*/control.sock')" -- "$cur"))
			if [[ ${#COMPREPLY[@]} == 0 ]]; then
				compopt -o filenames 2>/dev/null
				COMPREPLY=($(compgen -f -- "$cur"))
			fi
			return ;;
		--in|-in|--out|-out)
			compopt -o filenames 2>/dev/null
			COMPREPLY=($(compgen -f -- "$cur"))
			return ;;
		--chain|-chain)
			COMPREPLY=($(compgen -W "$(_penstock_chains)" -- "$cur"))
			return ;;
	esac
	case $command in
@FLAGS@	esac
	if [[ $cur == -* ]]; then
		COMPREPLY=($(compgen -W "$flags" -- "$cur"))
		return
	fi
	case $command in
	@FILES@)
		compopt -o filenames 2>/dev/null
		COMPREPLY=($(compgen -o plusdirs -f -X '!*.toml' -- "$cur")) ;;
	stages) COMPREPLY=($(compgen -W '@KINDS@' -- "$cur")) ;;
	deny)
		for ((i++; i < COMP_CWORD; i++)); do
			case ${COMP_WORDS[i]} in add|del|list) return ;; esac
		done
		COMPREPLY=($(compgen -W 'add del list' -- "$cur")) ;;
	esac
}

# The names of the chains of the appliance that --control names.
_penstock_chains() {
	local i control=()
	for ((i = 1; i < COMP_CWORD; i++)); do
		case ${COMP_WORDS[i]} in --control|-control) control=(--control "${COMP_WORDS[i+1]}") ;; esac
	done
	"${COMP_WORDS[0]}" status --json "${control[@]}" 2>/dev/null |
		sed -n '/^  "chains": \[/,/^  \]/s/^      "name": "\(.*\)",$/\1/p'
}

complete -F _penstock penstock
`

// TestCompletion: bash completes what it should, from the file that is shipped.
func TestCompletion(t *testing.T) {
	file := "../../dist/completion/penstock"
	generated(t, file, completion(t))
	dir := t.TempDir()
	for _, name := range []string{"edge.toml", "other.toml", "notes.txt", "a.pcap"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "elsewhere"), 0o700); err != nil {
		t.Fatal(err)
	}
	file, err := filepath.Abs(file)
	if err != nil {
		t.Fatal(err)
	}
	// An appliance's status, in place of one.
	fake := filepath.Join(dir, "penstock")
	stats := func(name string) control.Chain {
		return control.Chain{ChainStats: pipeline.ChainStats{Name: name, Stages: []pipeline.StageStats{{Kind: "tcp"}}}}
	}
	text, err := json.MarshalIndent(control.Status{
		Name: "edge", Ports: []control.Port{{Name: "lan"}}, Chains: []control.Chain{stats("web"), stats("rest")},
		Workers: []pipeline.WorkerStats{{Chains: []pipeline.ChainStats{{Name: "no"}}}},
	}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\n[ \"$1 $2 $3 $4\" = 'status --json --control /x.sock' ] || exit 1\ncat <<'E'\n" + string(text) + "\nE\n"
	if err := os.WriteFile(fake, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"penstock re":                                "reload replay",
		"penstock doc":                               "doctor",
		"penstock run ":                              "edge.toml elsewhere other.toml",
		"penstock check edge.toml oth":               "other.toml",
		"penstock run --log-level ":                  "debug error info warn",
		"penstock run --l":                           "--log-level",
		"penstock flows --d":                         "--depth",
		"penstock flows --depth in":                  "inspect",
		"penstock flows --json --ev":                 "--evict",
		"penstock flows --control /x.sock --chain ":  "rest web",
		"penstock drain --control /x.sock --chain w": "web",
		"penstock deny ":                             "add del list",
		"penstock deny add ":                         "",
		"penstock deny add --w":                      "--why",
		"penstock stages ht":                         "http",
		"penstock replay --in ":                      "a.pcap edge.toml elsewhere notes.txt other.toml penstock",
		"penstock replay --in a.pcap e":              "edge.toml elsewhere",
		"penstock reload --dr":                       "--dry-run",
		"penstock nonsense --":                       "",
	} {
		parts := strings.Split(line, " ")
		parts[0] = fake
		cmd := exec.Command("bash", "--norc", "-c", `. "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _penstock; printf '%s\n' "${COMPREPLY[@]}"; complete -p penstock >&2`, file)
		cmd.Args = append(cmd.Args, parts...)
		cmd.Dir = dir
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		got := strings.Fields(string(out))
		slices.Sort(got)
		if err != nil || strings.Join(got, " ") != want || strings.TrimSpace(stderr.String()) != "complete -F _penstock penstock" {
			t.Errorf("%q: got %q, want %q (%v, %s)", line, got, want, err, stderr.String())
		}
	}
}
