// Package tls is the stream stage that reads how TLS connections begin: server
// name, protocols, versions and fingerprints. It refuses connections by them,
// records them, and lets go. It decrypts nothing.
//
// Its one trap: whoever may read the hello differently than the server does can
// be evaded. What is not one well-formed ClientHello is refused as soon as there
// is a policy (on_bad).
package tls

import (
	_ "embed"

	"penstock/internal/dnsseen"
	"penstock/internal/policy"
	"penstock/internal/tlshello"
	"penstock/pipeline"
)

//go:embed README.md
var readme string

// Descriptor describes the stage to the registry.
func Descriptor() pipeline.Descriptor[Config] {
	return pipeline.Descriptor[Config]{
		Kind:      "tls",
		Summary:   "reads TLS hellos: refuses server names, fingerprints and versions, records handshakes",
		README:    readme,
		Reasons:   reasons(),
		Default:   defaults,
		Validate:  validate,
		Holds:     func(Config) string { return "" },
		Releases:  func(Config) string { return "after the ServerHello" },
		Describe:  func(c Config) []string { return policy.Describe(ruleVars, c.Rules, c.sets) },
		Needs:     needs,
		NewStream: func(c Config, env *pipeline.Env) (pipeline.StreamStage, error) { return newStage(c, env) },
	}
}

// needs says that connections wait only where something may be refused.
func needs(c Config) (pipeline.Need, string) {
	switch {
	case c.restricts():
		return pipeline.NeedDeny, "refuses connections by their hello"
	case c.denies():
		return pipeline.NeedDeny, `on_bad = "deny"`
	}
	return pipeline.NeedObserve, "only records handshakes"
}

// Buffers for hellos are kept for the next connection, but not more than this.
const (
	bufferSize  = 2 << 10 // a browser's hello
	keepBuffers = 64
	keepSize    = 16 << 10
	keepStreams = 1024
)

type stage struct {
	cfg      Config
	env      *pipeline.Env
	policy   lists
	rules    *policy.Judge[facts] // nil: none
	seen     *dnsseen.Table
	restrict bool // the policy refuses anything
	enforce  bool // what cannot be read is refused
	buffers  [][]byte
	spare    []*stream // for the next connections

	// Scratch of one call.
	hello    tlshello.ClientHello
	answer   tlshello.ServerHello
	ja4, ja3 []byte
	event    event // the one that is being recorded

	hosts *pipeline.Top

	hellos, answers, retries, ech, denied, released, lost, blind, unanswered, dnsOther, dnsUnknown *pipeline.Counter
}

func newStage(c Config, env *pipeline.Env) (*stage, error) {
	s := &stage{cfg: c, env: env, policy: newLists(&c), restrict: c.restricts(), enforce: c.denies()}
	var err error
	if s.rules, err = policy.Load(env, ruleVars, c.Rules, c.sets); err != nil {
		return nil, err
	}
	ctr := env.Counters.Counter
	s.hellos = ctr("client_hellos", "ClientHellos that were understood, second ones included")
	s.hosts = env.Counters.Top("hosts", "server names that clients ask for")
	s.answers = ctr("server_hellos", "ServerHellos that were understood; not looked for when nothing depends on them")
	s.retries = ctr("hello_retries", "HelloRetryRequests")
	s.ech = ctr("ech", "connections whose ClientHello has the extension of an encrypted one, or of an encrypted server name")
	s.denied = ctr("denied", "connections that were refused")
	s.released = ctr("released", "connections let go of because their beginning cannot be read")
	s.lost = ctr("server_lost", "connections whose server's hello cannot be read")
	s.blind = ctr("sight_lost", "connections that went on out of sight before their handshake was answered")
	s.seen = dnsseen.Appliance()
	s.dnsOther = ctr("dns_other", "hellos whose server name never led to their destination, where require_dns asks")
	s.dnsUnknown = ctr("dns_unknown", "hellos to a destination that no name was seen to lead to, where require_dns asks")
	s.unanswered = ctr("unanswered", "connections that ended after the ClientHello, before a ServerHello")
	return s, nil
}

// Open implements pipeline.StreamStage.
func (s *stage) Open(c *pipeline.Conn) pipeline.Stream {
	logs := s.cfg.Log && s.env.Recorder.Enabled("tls")
	if c.Midstream || !logs && !s.enforce && !s.restrict && s.rules == nil && s.cfg.RequireDNS == "off" {
		return nil // of a connection that was open before, the hello has passed
	}
	// Who does not terminate cannot acknowledge what it holds, and a client with
	// small segments would never send the rest of its hello. There, bytes pass
	// while the hello is incomplete: without its last ones it is of no use.
	hold := c.Depth == pipeline.DepthTerminate
	var st *stream
	if n := len(s.spare); n > 0 {
		st = s.spare[n-1]
		s.spare = s.spare[:n-1]
	} else {
		st = &stream{}
	}
	st.s, st.conn, st.logs = s, c, logs
	st.hold = [2]bool{hold && (s.enforce || s.restrict), hold && s.policy.minVersion > 0}
	return st
}

func (s *stage) buffer() []byte {
	if n := len(s.buffers); n > 0 {
		b := s.buffers[n-1]
		s.buffers = s.buffers[:n-1]
		return b
	}
	return make([]byte, 0, bufferSize)
}

func (s *stage) keep(b []byte) {
	if len(s.buffers) < keepBuffers && cap(b) > 0 && cap(b) <= keepSize {
		s.buffers = append(s.buffers, b)
	}
}
