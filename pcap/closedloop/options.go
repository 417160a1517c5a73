package closedloop

import (
	"io"
	"log/slog"
	"time"

	"penstock/pcap"
	"penstock/pipeline"
	"penstock/pipeline/fault"
)

// Options configure a Run. The zero value of each field but Name or In, and
// Chain, is a good one.
type Options struct {
	Name  string              // of the capture; pcap.Open takes it if In is nil
	In    io.Reader           // the capture itself
	Out   io.Writer           // pcapng of both wires, an interface for each, as their ends see them
	Chain *pipeline.ChainSpec // nil: no stages
	Ports [2]string           // names; "client" and "server" if empty

	// AcceptBadChecksums takes packets of the capture with wrong checksums as
	// they are.
	AcceptBadChecksums bool

	// Speed is 0 for as fast as the order of the capture allows, 1 for the
	// pauses that the ends made in the capture, 2 for half of them. The time is
	// virtual in any case.
	Speed float64

	Window    int   // connections that are played at once; 64 if 0
	MaxFlows  int   // connections of the capture that are followed at once; 65536 if 0
	MaxMemory int64 // bytes of payload of connections that wait or have not ended; 256 MiB if 0
	Frames    int   // packets of the worker; 8192 if 0

	Latency time.Duration // of each wire, one way; 100 us if 0
	Seed    uint64        // of netstack's chance
	Faults  fault.Options // of both wires, in each direction

	Clock    *pcap.Clock       // shows the virtual time; may be nil
	Recorder pipeline.Recorder // takes events; may be nil
	Log      *slog.Logger      // of the stages; may be nil
	Progress func(Progress)    // called now and then, and at the end; may be nil
	Flow     func(*Flow)       // called for every connection, as it ends; may be nil
}

// Progress says how far a run has come.
type Progress struct {
	Packets uint64 // read from the capture
	Offset  int64  // bytes of it
	Played  int    // connections
	Active  int
	Time    time.Time // virtual
}

// The statuses of a Flow.
const (
	Equal     = "equal"      // each end received what the capture has
	Differs   = "differs"    // one did not
	Denied    = "denied"     // a stage has refused the connection or a part of it
	NotPlayed = "not_played" // the capture does not have what is needed
)

// Flow is what became of a connection of the capture.
type Flow struct {
	Number   uint64   `json:"number"` // of its first packet in the capture
	Client   string   `json:"client"`
	Server   string   `json:"server"`
	Status   string   `json:"status"`
	Why      string   `json:"why,omitempty"`    // why it was not played, the reason it was denied for, or what went wrong
	By       string   `json:"by,omitempty"`     // the stage that denied it, where that is known
	Detail   string   `json:"detail,omitempty"` // a sentence
	ToServer Delivery `json:"to_server"`
	ToClient Delivery `json:"to_client"`
	End      string   `json:"end,omitempty"`     // fin, client_reset, server_reset or refused, as in the capture
	Relaxed  int      `json:"relaxed,omitempty"` // times that the order of the capture could not be kept
	Dropped  uint64   `json:"dropped,omitempty"` // packets of it that packet stages dropped
	Seconds  float64  `json:"seconds"`           // of virtual time
}

// Delivery is one direction of a connection.
type Delivery struct {
	Captured uint64 `json:"captured"` // bytes that the capture has
	Received uint64 `json:"received"` // bytes that the end has received in order
	Equal    bool   `json:"equal"`
	Differs  *int64 `json:"differs_at,omitempty"` // offset of the first byte that is another one
}

// Result is what a Run did. Played = Equal + Differs + Denied; Flows = Played +
// NotPlayed; Packets = Forwarded + Consumed + the sum of Dropped.
type Result struct {
	Captured  uint64 `json:"captured"`     // packets of the capture
	TCP       uint64 `json:"captured_tcp"` // of those, TCP
	First     string `json:"first,omitempty"`
	Last      string `json:"last,omitempty"` // RFC 3339, UTC
	Flows     int    `json:"flows"`
	Played    int    `json:"played"`
	Equal     int    `json:"equal"`
	Differs   int    `json:"differs"`
	Denied    int    `json:"denied"`
	NotPlayed int    `json:"not_played"`

	WhyNot   map[string]int `json:"not_played_by_reason"`
	DeniedBy map[string]int `json:"denied_by_reason"`

	BytesToServer uint64 `json:"bytes_to_server"` // received
	BytesToClient uint64 `json:"bytes_to_client"`

	Packets   uint64            `json:"packets"` // that the ends sent and the worker received
	Bytes     uint64            `json:"bytes"`
	Forwarded uint64            `json:"forwarded"`
	Consumed  uint64            `json:"consumed"`
	Dropped   map[string]uint64 `json:"dropped"`
	Emitted   uint64            `json:"emitted"` // packets of the stages' own making
	EmitLost  uint64            `json:"emit_lost"`
	Stray     uint64            `json:"stray"` // packets that reached an end which knew nothing of them

	Faults         map[string]map[string]uint64 `json:"faults,omitempty"` // by port
	Chain          *pipeline.ChainStats         `json:"chain,omitempty"`
	VirtualSeconds float64                      `json:"virtual_seconds"`
	Seconds        float64                      `json:"seconds"` // it took
	List           []Flow                       `json:"connections"`
	Error          string                       `json:"error,omitempty"`
}
