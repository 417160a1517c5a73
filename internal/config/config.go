// Package config reads the appliance's configuration: strict TOML in, a typed
// Config out, or every problem of the file at once, each with its line and
// column. It needs no root, no network interface and no kernel feature, and it
// is the only package that imports the TOML library.
//
// Its one trap: a Config holds stage configurations that their kinds made
// (pipeline.StageSpec.Config). They are shared by all chains built from it and
// must not be changed.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"penstock/internal/otlp"
	"penstock/internal/units"
	"penstock/pipeline"
	"penstock/pipeline/fault"
)

// Config is a configuration that holds together: every name in it resolves.
type Config struct {
	File      string
	Appliance Appliance
	Gate      Gate
	Sets      map[string][]netip.Prefix // by name
	Ports     []Port
	Steer     []Steer
	Chains    []Chain
	Record    []Record
	IPFIX     []IPFIX
	OTLP      *otlp.Spec // nil: none
	Warnings  Problems   // what is allowed and probably not meant
}

// Appliance is the [appliance] table.
type Appliance struct {
	Name           string         `toml:"name" help:"names this appliance on its machine: the lock, and the defaults of control and pins"`
	Mode           string         `toml:"mode" values:"bridge|router" help:"bridge: a bump in the wire between two ports, or in several wires; router: the kernel routes what is not steered, and XDP routes the rest by the kernel's tables"`
	Control        string         `toml:"control" help:"path of the local control socket; \"\" turns it off"`
	Metrics        string         `toml:"metrics" help:"address and port on which Prometheus metrics are served; \"\" turns them off"`
	OnExit         string         `toml:"on_exit" values:"open|closed" help:"what becomes of the wire without the appliance: open: it stays connected; closed: it does not"`
	Heartbeat      units.Duration `toml:"heartbeat" min:"200ms" max:"1m" help:"how long a worker may give no sign of life before its flows go the way on_exit says"`
	StuckTimeout   units.Duration `toml:"stuck_timeout" min:"1s" max:"10m" help:"how long a worker may make no progress before the process ends, with its stacks in the log: on_exit and the service manager do the rest"`
	Midstream      string         `toml:"midstream" values:"bypass|inspect|drop" help:"what happens to TCP flows whose beginning nobody saw"`
	Malformed      string         `toml:"malformed" values:"forward|drop" help:"what happens to packets whose headers cannot be parsed"`
	MaxFlows       int            `toml:"max_flows" min:"64" max:"16777216" help:"flows that are tracked at once; more are not steered"`
	Pins           string         `toml:"pins" help:"directory on a BPF file system where maps and links outlive the process; \"\" pins nothing"`
	FrameSize      units.Size     `toml:"frame_size" help:"packet memory for one frame: 2KiB carries an MTU of 1500 bytes, 4KiB one of 3500"`
	FramesPerQueue int            `toml:"frames_per_queue" min:"64" max:"1048576" help:"frames for each queue of each port"`
	SparePorts     int            `toml:"spare_ports" min:"0" max:"30" help:"for how many ports more than there are at the start packet memory is kept, so that reloads can add them; bridge mode only. Unless 0, the process does not give up the privileges that it takes to add one"`
	RingSize       int            `toml:"ring_size" min:"64" max:"32768" help:"slots in each of a queue's four rings; a power of two"`
	Drain          units.Duration `toml:"drain" min:"0s" max:"168h" help:"how long flows of a chain that a reload has changed or removed may go on in it; \"0s\": not at all"`
	DrainTimeout   units.Duration `toml:"drain_timeout" help:"how long connections may take to finish when the appliance stops"`
	API            API            `toml:"api" help:"the control API over TCP too, for clients with a certificate"`
}

// API is the [appliance.api] table. Listen is "" if the API is on the control
// socket only; else all are set.
type API struct {
	Listen   string `toml:"listen" help:"address and port; \"\" is the control socket only"`
	Cert     string `toml:"cert" help:"file with the appliance's certificate, in PEM; read again when it changes, as the two below"`
	Key      string `toml:"key" help:"file with the key of cert, in PEM"`
	ClientCA string `toml:"client_ca" help:"file with the authority that issues the certificates of those who may ask, in PEM"`
}

// The modes of Appliance.Mode, OnExit, Midstream and Malformed.
const (
	ModeBridge = "bridge"
	ModeRouter = "router"

	OnExitOpen   = "open"
	OnExitClosed = "closed"

	MidstreamBypass  = "bypass"
	MidstreamInspect = "inspect"
	MidstreamDrop    = "drop"

	MalformedForward = "forward"
	MalformedDrop    = "drop"
)

// defaultAppliance returns what holds where the file says nothing. The paths
// follow the appliance's name.
func defaultAppliance(name string) Appliance {
	return Appliance{
		Name:           name,
		Mode:           ModeBridge,
		Control:        "/run/" + name + "/control.sock",
		Metrics:        "127.0.0.1:9477",
		OnExit:         OnExitOpen,
		Heartbeat:      units.Duration(800e6),
		StuckTimeout:   units.Duration(10e9),
		Midstream:      MidstreamBypass,
		Malformed:      MalformedForward,
		MaxFlows:       65536,
		Pins:           "/sys/fs/bpf/" + name,
		FrameSize:      2 << 10,
		FramesPerQueue: 8192,
		RingSize:       2048,
		Drain:          units.Duration(10 * 60e9),
		DrainTimeout:   units.Duration(10e9),
	}
}

// Defaults returns the [appliance] table of a file that has none.
func Defaults() Appliance { return defaultAppliance("penstock") }

// Port is a [[port]] table. Its index is its pipeline.PortID.
type Port struct {
	Name      string
	Interface string
	Queues    Queues
	XDP       string         // "auto", "native" or "generic"
	ZeroCopy  string         // "auto", "on" or "off"
	Fault     *fault.Options // nil: none
	Line      int
}

// Queues says which queues of an interface a port uses.
type Queues struct {
	All  bool
	List []int // ascending, unless All
}

// Steer is a [[steer]] table: a rule that decides where a flow goes by its
// first packet.
type Steer struct {
	From             pipeline.PortID // NoPort: any
	Proto            string          // "tcp", "udp", "icmp" or "any"
	Src, Dst         []units.Prefix  // nil: any
	SrcPort, DstPort []units.PortRange
	To               Target
	Line             int
}

// Action is what a steer rule does with a flow.
type Action uint8

// The actions.
const (
	ToChain  Action = iota
	ToBypass        // to the peer port in XDP, without user space
	ToDrop
)

// Target is where a steer rule sends a flow.
type Target struct {
	Action Action
	Chain  pipeline.ChainID // index in Config.Chains; NoChain unless ToChain
}

// Chain is a [[chain]] table. Its index is its pipeline.ChainID.
type Chain struct {
	Name    string
	Offload string // "auto" or "never"
	Spec    pipeline.ChainSpec
	Line    int
}

// Record is a [[record]] table: a sink for events.
type Record struct {
	To     string
	Events []string // "all" stands for every event
	Line   int
}

// Load reads and checks a file. It returns a Config and no problems, or no
// Config and at least one problem.
func Load(file string, reg *pipeline.Registry) (*Config, Problems) {
	src, err := readFile(file)
	if err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = fmt.Errorf("%s file: %w", pe.Op, pe.Err)
		}
		return nil, Problems{{File: file, Text: err.Error()}}
	}
	return Parse(file, src, reg)
}

func readFile(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxSize+1))
}

// Parse is Load on a document that is already in memory; name stands in the
// problems for the file.
func Parse(name string, src []byte, reg *pipeline.Registry) (*Config, Problems) {
	if len(src) > MaxSize {
		return nil, Problems{{File: name, Text: fmt.Sprintf("want a file of at most %d bytes", MaxSize)}}
	}
	text := strings.TrimPrefix(string(src), "\ufeff")
	d := &decoder{report{file: name, ix: newIndex(text), bad: map[string]bool{}}}
	if d.ix.tooDeep >= 0 {
		return nil, d.syntax(d.ix.tooDeep, fmt.Sprintf("want at most %d levels of nesting and keys of at most %d parts", maxNesting, maxKeyParts))
	}
	root, offset, problem := parseTOML(text)
	if problem != "" || d.ix.twice >= 0 {
		if at := d.ix.twice; at >= 0 && (problem == "" || at <= offset) {
			return nil, d.syntax(at, fmt.Sprintf("%s is defined already, in line %d", headerName(d.ix.first), d.ix.line(d.ix.first)))
		}
		return nil, d.syntax(offset, "syntax error: "+problem)
	}
	d.root = root
	c := &checker{decoder: d, reg: reg, config: &Config{File: name}}
	c.warn = report{file: name, ix: d.ix, root: root, bad: map[string]bool{}}
	c.check()
	if len(d.problems)+len(c.elsewhere) > 0 {
		return nil, append(d.sorted(), c.elsewhere...)
	}
	c.warnings()
	c.config.Warnings = c.warn.sorted()
	return c.config, nil
}

func (r *report) syntax(offset int, text string) Problems {
	line, col := r.ix.position(offset)
	return Problems{{File: r.file, Line: line, Col: col, Text: text}}
}
