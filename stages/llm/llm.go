// Package llm is the stream stage that watches requests to language models:
// which model, how many tokens, how fast, how it ended. It knows the dialects of
// OpenAI, Anthropic and Ollama over HTTP/1, reads bodies as they pass without
// keeping them, and changes nothing. It refuses requests only by rules.
//
// Its one trap: the numbers of tokens are what the server says. Nobody counts
// here, and where a server says nothing there is no number.
package llm

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"hash"

	"penstock/internal/http1"
	"penstock/internal/policy"
	"penstock/pipeline"
)

//go:embed README.md
var readme string

// Descriptor describes the stage to the registry.
func Descriptor() pipeline.Descriptor[Config] {
	return pipeline.Descriptor[Config]{
		Kind:      "llm",
		Summary:   "watches requests to language models: model, tokens, times, how they end",
		README:    readme,
		Reasons:   reasons(),
		Default:   defaults,
		Validate:  validate,
		Needs:     func(c Config) (pipeline.Need, string) { return c.needs() },
		Describe:  func(c Config) []string { return policy.Describe(ruleVars(&c), c.Rules, c.sets) },
		Holds:     func(Config) string { return "follows requests to the end of their connection" },
		NewStream: func(c Config, env *pipeline.Env) (pipeline.StreamStage, error) { return newStage(c, env) },
	}
}

const (
	maxPipelined  = 64      // requests of a connection without a response
	exchangeCost  = 1 << 10 // bytes that a request takes until it is recorded, about
	readerCost    = 1 << 10 // and what reads a body
	keepReaders   = 256
	keepInflaters = 8
	keepHeads     = 64
	headSize      = 4 << 10
	keepHeadSize  = 16 << 10
)

type stage struct {
	cfg       Config
	env       *pipeline.Env
	endpoints []endpoint
	n         counters
	metrics   metrics
	rules     *policy.Judge[facts] // nil: none
	refuses   bool                 // rules may
	logs      bool
	mac       hash.Hash // nil: identity is off

	used      int // bytes of Config.Memory
	readers   []*bodyReader
	inflaters []*inflater
	heads     [][]byte

	// Scratch of one head.
	requestRules, responseRules http1.Rules
	credential                  []byte
	encoding                    string
	sum                         [sha256.Size]byte
}

func newStage(c Config, env *pipeline.Env) (*stage, error) {
	s := &stage{cfg: c, env: env, endpoints: c.endpointList(), n: newCounters(env.Counters), logs: c.Log}
	s.metrics = newMetrics(env, c.MaxModels)
	var err error
	if s.rules, err = policy.Load(env, ruleVars(&c), c.Rules, c.sets); err != nil {
		return nil, err
	}
	s.refuses = policy.Refuse(c.Rules)
	if c.Identity == "credential" {
		key, err := identityKey(&c, env.Shared)
		if err != nil {
			return nil, err
		}
		s.mac = hmac.New(sha256.New, key)
	}
	s.requestRules = http1.Rules{MaxFields: 1000, Field: s.requestField, RefuseH2C: s.refuses}
	s.responseRules = http1.Rules{MaxFields: 1000, Field: s.responseField}
	return s, nil
}

// identityKey returns the key that all workers share.
func identityKey(c *Config, shared *pipeline.Shared) ([]byte, error) {
	if c.IdentityKey != "" {
		return readKey(c.IdentityKey)
	}
	return shared.Get("identity_key", func() any {
		key := make([]byte, sha256.Size)
		rand.Read(key) // does not fail
		return key
	}).([]byte), nil
}

// Open implements pipeline.StreamStage.
func (s *stage) Open(c *pipeline.Conn) pipeline.Stream {
	if c.Midstream {
		return nil // its bytes begin anywhere
	}
	return &stream{s: s, conn: c}
}

func (s *stage) requestField(name, value []byte) {
	switch len(name) {
	case 7:
		if http1.EqualFold(name, "api-key") {
			s.credential = append(s.credential[:0], value...)
		}
	case 9:
		if http1.EqualFold(name, "x-api-key") {
			s.credential = append(s.credential[:0], value...)
		}
	case 13:
		if http1.EqualFold(name, "authorization") && len(s.credential) == 0 {
			s.credential = append(s.credential, secret(value)...)
		}
	case 16:
		s.contentEncoding(name, value)
	}
}

func (s *stage) responseField(name, value []byte) {
	if len(name) == 16 {
		s.contentEncoding(name, value)
	}
}

func (s *stage) contentEncoding(name, value []byte) {
	if http1.EqualFold(name, "content-encoding") {
		switch {
		case http1.EqualFold(value, "identity") || len(value) == 0:
		case http1.EqualFold(value, "gzip"):
			s.encoding = "gzip"
		case http1.EqualFold(value, "x-gzip"):
			s.encoding = "x-gzip"
		case http1.EqualFold(value, "deflate"):
			s.encoding = "deflate"
		default:
			s.encoding = "unknown"
		}
	}
}

// secret takes the scheme off an Authorization field: a key is one identity
// whichever field it comes in.
func secret(value []byte) []byte {
	for i, c := range value {
		if c == ' ' {
			for i < len(value) && value[i] == ' ' {
				i++
			}
			return value[i:]
		}
	}
	return value
}

// identify returns the identity of the head's credential, "" if it has none.
func (s *stage) identify() string {
	if s.mac == nil || len(s.credential) == 0 {
		return ""
	}
	s.mac.Reset()
	s.mac.Write(s.credential)
	clear(s.credential)
	return hex.EncodeToString(s.mac.Sum(s.sum[:0])[:12])
}

// bodyReader returns a reader, nil if there is no memory for it.
func (s *stage) bodyReader() *bodyReader {
	if s.used+readerCost > int(s.cfg.Memory) {
		return nil
	}
	s.used += readerCost
	if n := len(s.readers); n > 0 {
		r := s.readers[n-1]
		s.readers = s.readers[:n-1]
		return r
	}
	return new(bodyReader)
}

func (s *stage) putBodyReader(r *bodyReader) {
	s.used -= readerCost
	if len(s.readers) < keepReaders {
		s.readers = append(s.readers, r)
	}
}

// inflater returns a decompressor, nil if there is no memory for it.
func (s *stage) inflater() *inflater {
	if s.used+inflaterCost > int(s.cfg.Memory) {
		return nil
	}
	s.used += inflaterCost
	if n := len(s.inflaters); n > 0 {
		f := s.inflaters[n-1]
		s.inflaters = s.inflaters[:n-1]
		return f
	}
	return new(inflater)
}

func (s *stage) putInflater(f *inflater) {
	f.close()
	s.used -= inflaterCost
	if len(s.inflaters) < keepInflaters {
		s.inflaters = append(s.inflaters, f)
	}
}

// growHead makes room for n more bytes of a head; false: there is no memory.
func (s *stage) growHead(head *[]byte, n int) bool {
	had := cap(*head)
	if len(*head)+n <= had {
		return true
	}
	if had == 0 && n <= headSize && len(s.heads) > 0 && s.used+headSize <= int(s.cfg.Memory) {
		last := len(s.heads) - 1
		*head, s.heads = s.heads[last], s.heads[:last]
		s.used += cap(*head)
		return true
	}
	size := max(headSize, 2*had)
	for size < len(*head)+n {
		size *= 2
	}
	if s.used+size-had > int(s.cfg.Memory) {
		return false
	}
	s.used += size - had
	*head = append(make([]byte, 0, size), *head...)
	return true
}

func (s *stage) putHead(head *[]byte) {
	b := *head
	*head = nil
	s.used -= cap(b)
	if cap(b) > 0 && cap(b) <= keepHeadSize && len(s.heads) < keepHeads {
		clear(b) // it may have a credential in it
		s.heads = append(s.heads, b[:0])
	}
}
