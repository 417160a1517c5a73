package control

import (
	"net/http"
	"time"
)

// Change is one difference between the configuration that runs and the one in
// the file, in the words of the file.
type Change struct {
	What string `json:"what"`          // `chain "web", stage 2 (http)`, "appliance", "steer"
	Key  string `json:"key,omitempty"` // "" for the whole of it
	Old  string `json:"old,omitempty"` // "" for what was not there
	New  string `json:"new,omitempty"`
	// Restart says that another process has to take over for this to count.
	Restart bool   `json:"restart,omitempty"`
	Text    string `json:"text"` // all of it in one line
}

// ReloadAsk asks for a reload.
type ReloadAsk struct {
	DryRun bool `json:"dry_run,omitempty"` // say what would change, and change nothing
}

// Reload is what became of one.
type Reload struct {
	Config  string   `json:"config"` // the file
	Applied bool     `json:"applied"`
	Changes []Change `json:"changes"`
	// Problems are what is wrong with the file, as file:line:col: text. Nothing has
	// changed.
	Problems []string `json:"problems,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
	// Refused says why nothing has changed, though the file holds together.
	Refused string `json:"refused,omitempty"`
	// Kept, Built and Leaving are names of chains: those that go on as they are,
	// those that are new or anew, and those whose flows finish.
	Kept    []string `json:"kept,omitempty"`
	Built   []string `json:"built,omitempty"`
	Leaving []string `json:"leaving,omitempty"`
	Seconds float64  `json:"seconds"` // it took
}

// Depths are live flows by what becomes of their packets.
type Depths struct {
	Forwarded  int `json:"forwarded"` // by packet stages
	Inspected  int `json:"inspected"`
	Terminated int `json:"terminated"`
	Spliced    int `json:"spliced"`   // offloaded, and were terminated before
	Offloaded  int `json:"offloaded"` // others
}

// InUserSpace is how many of the flows are in a chain.
func (d Depths) InUserSpace() int { return d.Forwarded + d.Inspected + d.Terminated }

// Leaving is a chain that a reload has changed or removed, and that still has
// flows.
type Leaving struct {
	Chain       string  `json:"chain"`
	ID          int     `json:"id"` // its number in XDP
	Flows       Depths  `json:"flows"`
	ForSeconds  float64 `json:"for_seconds"`
	LeftSeconds float64 `json:"left_seconds"` // then what is left of it is ended
}

// Reloads say what became of the configuration since the start.
type Reloads struct {
	Applied   int       `json:"applied"`
	Refused   int       `json:"refused"` // or failed
	At        time.Time `json:"at,omitzero"`
	LastError string    `json:"last_error,omitempty"` // of the last one, if it was not applied
}

// DrainAsk asks for chains to get no more new flows, or some again.
type DrainAsk struct {
	Chain string `json:"chain,omitempty"` // "": all
	Undo  bool   `json:"undo,omitempty"`
}

// Drain is how far a chain is with it.
type Drain struct {
	Chain   string `json:"chain"`
	Drained bool   `json:"drained"` // its new flows are bypassed
	Flows   Depths `json:"flows"`   // that it has, those of its former configurations included
}

// Handover is the answer to who takes over.
type Handover struct {
	DrainSeconds float64 `json:"drain_timeout_seconds"`
	Flows        Depths  `json:"flows"` // as of now
}

// Exit is what an appliance says when it has left.
type Exit struct {
	PID     int     `json:"pid"`
	Why     string  `json:"why"`
	Seconds float64 `json:"drain_seconds"`
	Flows   Depths  `json:"flows"` // when it began to drain
	// Finished are the terminated connections that ended by themselves meanwhile,
	// Cut those that were reset.
	Finished int    `json:"terminated_finished"`
	Cut      int    `json:"terminated_cut"`
	Wire     string `json:"wire"` // what becomes of packets from now on

	Packets   uint64            `json:"packets"`
	Forwarded uint64            `json:"forwarded"`
	Consumed  uint64            `json:"consumed"`
	Dropped   map[string]uint64 `json:"dropped"`
	Balanced  bool              `json:"balanced"` // packets = forwarded + consumed + dropped
}

// Inherited says what became of the flows of an instance before this one.
type Inherited struct {
	Offloaded int `json:"offloaded"` // never noticed
	Resumed   int `json:"resumed"`   // go on in a chain
	Bypassed  int `json:"bypassed"`  // were inspected, and pass from now on
	Forgotten int `json:"forgotten"`
	// Refused says why nothing was taken over.
	Refused string `json:"refused,omitempty"`
	// Before is what that instance said when it left; nil: it did not.
	Before *Exit `json:"before,omitempty"`
}

func reloadRoutes(src Source) []route {
	return []route{
		post(src, "/v1/reload", "reload", "read the configuration again, and change what is different", func(a ReloadAsk) (Reload, error) { return src.Reload(a.DryRun) }),
		get("/v1/drain", "what flows each chain has", src.Drains),
		post(src, "/v1/drain", "drain", "bypass new flows of chains, or take them again", src.Drain),
		post(src, "/v1/handover", "handover", "drain, leave XDP attached, and end: another process takes over", func(struct{}) (Handover, error) { return src.Handover() }),
	}
}

// reloadTimeout is how long an appliance may take to build its chains anew.
const reloadTimeout = 2 * time.Minute

// Reload has the configuration read again.
func (c *Client) Reload(dryRun bool) (r Reload, err error) {
	patient := &Client{path: c.path, http: c.http}
	patient.http.Timeout = reloadTimeout
	return r, patient.do(http.MethodPost, "/v1/reload", ReloadAsk{DryRun: dryRun}, &r)
}

// Drain has new flows of chains bypassed, or no more.
func (c *Client) Drain(a DrainAsk) (d []Drain, err error) {
	return d, c.do(http.MethodPost, "/v1/drain", a, &d)
}

// Drains asks what flows each chain has.
func (c *Client) Drains() (d []Drain, err error) { return d, c.get("/v1/drain", &d) }

// Handover asks the appliance to drain, to leave XDP attached, and to end. It
// returns at once; the answer says how long draining may take.
func (c *Client) Handover() (h Handover, err error) {
	return h, c.do(http.MethodPost, "/v1/handover", nil, &h)
}
