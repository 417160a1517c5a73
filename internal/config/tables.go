package config

import (
	"penstock/internal/units"
	"penstock/pipeline/fault"
)

// document is a file as decoded, before its names are resolved. Its tags are
// the one source for the keys there are: Keys reads them too.
type document struct {
	Appliance Appliance           `toml:"appliance" help:"the appliance as a whole"`
	Gate      gateTable           `toml:"gate" help:"what XDP drops before anything else"`
	Set       map[string]setTable `toml:"set" help:"a named set of addresses, for the expressions of rules"`
	Port      []portTable         `toml:"port" help:"a network interface; in bridge mode the first and the second are the ends of one wire, the third and the fourth of another one"`
	Steer     []steerTable        `toml:"steer" help:"a rule that says where a flow goes; in order, the first match wins, replies follow their flow"`
	Chain     []chainTable        `toml:"chain" help:"an ordered list of stages; one without stages forwards everything"`
	Record    []recordTable       `toml:"record" help:"a place where events go, as lines of JSON"`
	IPFIX     []ipfixTable        `toml:"ipfix" help:"a collector that is told of flows that have ended, by IPFIX"`
	OTLP      otlpTable           `toml:"otlp" help:"an OpenTelemetry collector that is sent metrics, and a trace of requests"`
}

// setTable is [set.NAME].
type setTable struct {
	Prefixes []string `toml:"prefixes" required:"" type:"list of prefixes and files" help:"what is in the set: prefixes, or \"file:PATH\" with one a line"`
}

type portTable struct {
	Name      string `toml:"name" required:"" help:"the port's name in rules, figures and events"`
	Interface string `toml:"interface" required:"" help:"the network interface"`
	Queues    any    `toml:"queues" type:"\"all\" or list of integers" help:"which of the interface's queues are used"`
	XDP       string `toml:"xdp" values:"auto|native|generic" help:"how the XDP program is attached; generic works everywhere and is slow"`
	ZeroCopy  string `toml:"zero_copy" values:"auto|on|off" help:"whether the network interface shares packet memory with the appliance"`

	Fault *faultTable `toml:"fault" help:"faults on purpose, for rehearsals: they strike what passes between the port above and user space"`
}

// faultTable is [port.fault].
type faultTable struct{ fault.Options }

func (t *faultTable) setDefaults() { t.Options = fault.Default() }

func (t *portTable) setDefaults() {
	*t = portTable{Queues: "all", XDP: "auto", ZeroCopy: "auto"}
}

type steerTable struct {
	From    string            `toml:"from" help:"the port where a flow's first packet arrives; absent: any port"`
	Proto   string            `toml:"proto" values:"tcp|udp|icmp|any" help:"the flow's protocol; icmp is that of IPv6 too"`
	Src     []units.Prefix    `toml:"src" type:"list of prefixes" help:"source addresses of the first packet; absent: any"`
	Dst     []units.Prefix    `toml:"dst" type:"list of prefixes" help:"destination addresses of the first packet; absent: any"`
	SrcPort []units.PortRange `toml:"src_port" type:"list of ports and ranges" help:"source ports of the first packet; absent: any"`
	DstPort []units.PortRange `toml:"dst_port" type:"list of ports and ranges" help:"destination ports of the first packet; absent: any"`
	To      string            `toml:"to" required:"" help:"the name of a chain, or \"bypass\" (to the other port without user space), or \"drop\""`
}

func (t *steerTable) setDefaults() { *t = steerTable{Proto: "any"} }

type chainTable struct {
	Name    string           `toml:"name" required:"" help:"the chain's name in rules, figures and events"`
	Offload string           `toml:"offload" values:"auto|never" help:"auto: a flow leaves user space when no stage wants it; never: it stays"`
	Stage   []map[string]any `toml:"stage" type:"list of tables" help:"the stages in order; kind names the stage, the other keys are its own"`
}

func (t *chainTable) setDefaults() { *t = chainTable{Offload: "auto"} }

type recordTable struct {
	To     string   `toml:"to" required:"" help:"file:PATH, unix:PATH or stdout"`
	Events []string `toml:"events" help:"which events; \"all\" for every one"`
}

func (t *recordTable) setDefaults() { *t = recordTable{Events: []string{"all"}} }

// known are the tables of a document.
var known = map[string]bool{"appliance": true, "gate": true, "set": true, "port": true, "steer": true, "chain": true, "record": true, "ipfix": true, "otlp": true}
