// Package control is how a running appliance is looked at and changed: an API of
// HTTP and JSON, over a local socket and over TCP with certificates, and Prometheus
// metrics. They render the same Status, so that no two views of one appliance
// disagree. routes is all that the API has; openapi.json describes it
// (`make docs` writes it anew), and what changes the
// appliance is audited there.
//
// Its one trap: a Status is gathered while packets go by. Sums over several
// sources may differ by the packets under way at that moment.
package control

import (
	"context"
	"io"
	"net/netip"
	"time"

	"penstock/pipeline"
)

// Status is a snapshot of an appliance.
type Status struct {
	Name          string    `json:"name"`
	Version       string    `json:"version"`
	PID           int       `json:"pid"`
	Config        string    `json:"config"`
	Mode          string    `json:"mode"`
	OnExit        string    `json:"on_exit"`
	Started       time.Time `json:"started"`
	UptimeSeconds float64   `json:"uptime_seconds"`
	Draining      bool      `json:"draining"`

	Ports   []Port                 `json:"ports"`
	Chains  []Chain                `json:"chains"`
	Totals  pipeline.Totals        `json:"totals"`
	Frames  Frames                 `json:"frames"`
	Flows   FlowCounts             `json:"flows"`
	Workers []pipeline.WorkerStats `json:"workers"`
	Records []Record               `json:"records,omitempty"`
	Exports []Export               `json:"exports,omitempty"`
	// RemovedRecords is the sum over sinks that reloads have removed.
	RemovedRecords *Record `json:"removed_records,omitempty"`
	// OffloadResults count flows given to XDP, by what became of that.
	OffloadResults map[string]uint64 `json:"offload_results,omitempty"`
	LostEvents     uint64            `json:"lost_events"` // of XDP, for records
	// Router counts the packets that XDP could not route by itself, by what
	// became of them. Router mode only.
	Router map[string]uint64 `json:"router,omitempty"`

	Reloads Reloads   `json:"reloads"`
	Leaving []Leaving `json:"leaving,omitempty"` // chains of earlier configurations that still have flows
	// Removed are the packets of chains that there are no more.
	Removed    Count      `json:"removed_chains"`
	Inherited  *Inherited `json:"inherited,omitempty"` // from an instance before this one
	Goroutines int        `json:"goroutines"`

	// Warnings are states that an operator wants to know of, in words.
	Warnings []string `json:"warnings,omitempty"`
}

// Port is one interface.
type Port struct {
	Name      string  `json:"name"`
	Interface string  `json:"interface"`
	Ifindex   int     `json:"ifindex"`
	MTU       int     `json:"mtu"`
	XDP       string  `json:"xdp"` // as the kernel has attached it: "native" or "generic"
	LinkUp    bool    `json:"link_up"`
	Leaving   bool    `json:"leaving,omitempty"` // a reload has removed it, and its flows finish
	Queues    []Queue `json:"queues"`
	// Reasons are the XDP program's counts of what it did with packets that
	// came in here, by reason.
	Reasons map[string]Count `json:"reasons"`
	// Verdicts are the same counts, by what it did and then by reason: "pass",
	// "peer", "socket", "drop", "tx".
	Verdicts map[string]map[string]Count `json:"verdicts"`
	// Stalls are how often packets went into one end of a way and none came out
	// of the other for some seconds: "xdp" (from the NIC to the XDP program),
	// "sockets" (from there to user space), "tx" (to the driver; the frame did not
	// come back).
	Stalls map[string]uint64 `json:"stalls"`
}

// Queue is one queue of a port, with its AF_XDP socket.
type Queue struct {
	pipeline.PortInfo
	pipeline.PortStats
}

// Count is packets and their bytes.
type Count struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Chain is a chain, summed over all workers.
type Chain struct {
	pipeline.ChainStats
	Depth   string `json:"depth"`
	Why     string `json:"why"`               // why it is that deep
	Drained bool   `json:"drained,omitempty"` // new flows are bypassed
	// Flows are those in XDP's table, by depth: the chain's, "offload", or
	// "drop" for those that XDP drops.
	Flows map[string]int `json:"flows,omitempty"`
}

// Terminated is how many connections are in the netstack.
func (c *Chain) Terminated() (n int) {
	if c.Depth != pipeline.DepthTerminate.String() {
		return 0 // flows_active is what is inspected
	}
	for _, st := range c.Stages {
		n += int(st.Counters["flows_active"])
	}
	return n
}

// Frames account for all packet memory: Free + InFlight = Total whenever no
// packet is being looked at.
type Frames struct {
	Total     int  `json:"total"`
	Free      int  `json:"free"`
	InFlight  int  `json:"in_flight"` // in the kernel's rings and the NIC
	Size      int  `json:"size"`      // bytes
	HugePages bool `json:"huge_pages"`
}

// FlowCounts say how full the tables of flows are.
type FlowCounts struct {
	Steered    int `json:"steered"`   // in XDP's table, both directions as one
	Offloaded  int `json:"offloaded"` // of those, forwarded or dropped by XDP itself
	Limit      int `json:"limit"`
	Terminated int `json:"terminated"` // in the netstack
}

// Record is a sink of events.
type Record struct {
	To      string `json:"to"`
	Written uint64 `json:"written"`
	Dropped uint64 `json:"dropped"` // the sink could not follow
	Failed  uint64 `json:"failed"`  // could not be encoded or written
	Queued  uint64 `json:"queued"`
	Error   string `json:"error,omitempty"` // the last one
}

// Export is a collector that the appliance sends to. What was to be sent is in
// one of Sent, Skipped, Dropped, Failed and Queued.
type Export struct {
	Kind    string `json:"kind"` // "ipfix": flows; "otlp_traces": spans; "otlp_metrics": data points
	To      string `json:"to"`
	Sent    uint64 `json:"sent"`
	Skipped uint64 `json:"skipped,omitempty"` // spans that sampling leaves out
	Dropped uint64 `json:"dropped"`           // the collector could not follow
	Failed  uint64 `json:"failed"`            // was not accepted
	Queued  uint64 `json:"queued"`
	Up      bool   `json:"up"`
	Error   string `json:"error,omitempty"` // the last one
}

// Flow is one live flow.
type Flow struct {
	Client     string  `json:"client"` // "addr:port"
	Server     string  `json:"server"`
	Proto      string  `json:"proto"`
	VLAN       []int   `json:"vlan,omitempty"`
	Chain      string  `json:"chain"`
	Depth      string  `json:"depth"`
	Why        string  `json:"why"` // why it is not higher up
	State      string  `json:"state,omitempty"`
	AgeSeconds float64 `json:"age_seconds"`
	// DepthSeconds is for how long the flow has been at this depth, if a stage knows.
	DepthSeconds float64 `json:"depth_seconds,omitempty"`
	Packets      uint64  `json:"packets"`
	Bytes        uint64  `json:"bytes"`
}

// DenyAdd asks for prefixes to be denied.
type DenyAdd struct {
	Prefixes   []netip.Prefix `json:"prefixes"`
	ForSeconds float64        `json:"for_seconds,omitempty"` // 0: for good
	Why        string         `json:"why,omitempty"`
}

// DenyDel asks for denies of run time to end.
type DenyDel struct {
	Prefixes []netip.Prefix `json:"prefixes"`
}

// Deny is an entry of the gate's deny list.
type Deny struct {
	Prefix         netip.Prefix `json:"prefix"`
	Origin         string       `json:"origin"`                    // "config" or "runtime"
	ExpiresSeconds float64      `json:"expires_seconds,omitempty"` // from now; 0: never
	Hits           uint64       `json:"hits"`                      // packets dropped
	Why            string       `json:"why,omitempty"`
	Added          time.Time    `json:"added,omitzero"`
}

// Source is the appliance.
type Source interface {
	Status() Status
	// Sample is Status for who asks again and again: what it costs does not grow
	// with the number of flows. How many there are is some seconds old.
	Sample() Status
	// Tops are the most frequent hosts and the like; a worker that does not
	// answer at once is left out.
	Tops() []pipeline.TopStats
	Flows() ([]Flow, error)
	// Evict forgets flows, each named by its ends, protocol and VLANs, and returns
	// how many there were.
	Evict(flows []Flow) (int, error)
	// Handover makes the appliance drain, leave XDP attached and end; it
	// returns at once, with how long draining may take.
	Handover() (Handover, error)
	// Reload reads the configuration again and changes what is different, or, if
	// anything is wrong with it, nothing. dryRun only says what is different.
	Reload(dryRun bool) (Reload, error)
	// Drain has new flows of a chain bypassed, or of all of them, or no more.
	Drain(DrainAsk) ([]Drain, error)
	Drains() ([]Drain, error)
	// DenyAdd denies prefixes, all or none, and returns how many were new.
	DenyAdd(DenyAdd) (int, error)
	DenyDel(prefixes []netip.Prefix) error
	DenyList() ([]Deny, error)
	// Audited keeps what a request has changed, or has not. It is told before the
	// one who asked is answered, and may be called by several at once.
	Audited(Audit)
	// Capture captures packets until a limit, StopCapture or the end of ctx. begun is
	// called when it runs, and returns where the pcapng stream goes; an error
	// before means that it never ran.
	Capture(ctx context.Context, a CaptureAsk, begun func(Capture) io.Writer) (Capture, error)
	Captures() ([]Capture, error)
	StopCapture(id int) error
}
