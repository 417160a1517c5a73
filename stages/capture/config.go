package capture

import (
	"fmt"
	"path/filepath"
	"strings"

	"penstock/internal/match"
	"penstock/internal/units"
	"penstock/pcap"
	"penstock/pipeline"
)

// Config is the TOML of the stage.
type Config struct {
	// Directory of the files; it is made if it is not there.
	Dir string `toml:"dir"`
	// Beginning of the files' names; "" for the chain's name and the stage's
	// number, "web-1".
	Prefix string `toml:"prefix"`
	// A file ends before it would grow larger.
	FileSize units.Size `toml:"file_size"`
	// How many files are kept.
	Files int `toml:"files"`
	// How many bytes are kept of each packet; 0: all.
	SnapLen units.Size `toml:"snaplen"`
	// If given, only packets that meet one of them are captured.
	Match []match.Fields `toml:"match"`
	// Memory of each worker for packets that are not written yet.
	Buffer units.Size `toml:"buffer"`
	// While the buffer is full the worker waits, instead of going on without
	// capturing.
	Lossless bool `toml:"lossless"`
}

const (
	minFileSize = units.Size(1 << 20) // what pcap.NewRing accepts
	maxFileSize = units.Size(1 << 40)
	maxFiles    = 10000
	minBuffer   = units.Size(64 << 10)
	maxBuffer   = units.Size(1 << 30)
	maxPrefix   = 200 // bytes; a file name has 255
)

func defaults() Config {
	return Config{FileSize: 100 << 20, Files: 10, Buffer: 4 << 20}
}

func validate(c *Config, issues *pipeline.Issues) {
	switch {
	case c.Dir == "":
		issues.Add("dir", "is missing: want the directory that the files go to")
	case strings.ContainsRune(c.Dir, 0):
		issues.Add("dir", "want a path, got %q", c.Dir)
	}
	if c.Prefix != "" && (c.Prefix != filepath.Base(c.Prefix) || c.Prefix == "." || c.Prefix == ".." ||
		strings.ContainsRune(c.Prefix, 0) || len(c.Prefix) > maxPrefix) {
		issues.Add("prefix", "want the beginning of a file name, without a directory, of at most %d bytes, got %q", maxPrefix, c.Prefix)
	}
	if c.FileSize < minFileSize || c.FileSize > maxFileSize {
		issues.Add("file_size", "must be from %s to %s, got %s", minFileSize, maxFileSize, c.FileSize)
	}
	if c.Files < 1 || c.Files > maxFiles {
		issues.Add("files", "must be from 1 to %d, got %d", maxFiles, c.Files)
	}
	if c.SnapLen < 0 || c.SnapLen > pcap.MaxPacket {
		issues.Add("snaplen", "must be at most %s, or 0B for all of a packet, got %s", units.Size(pcap.MaxPacket), c.SnapLen)
	}
	if c.Buffer < minBuffer || c.Buffer > maxBuffer {
		issues.Add("buffer", "must be from %s to %s, got %s", minBuffer, maxBuffer, c.Buffer)
	}
	before := len(issues.List)
	for i := range c.Match {
		c.Match[i].Validate(fmt.Sprintf("match[%d]", i), issues)
	}
	if len(issues.List) == before {
		match.Check(c.Match, "match", issues)
	}
}

// snapLen returns how many bytes of a packet are kept at most.
func (c *Config) snapLen() int {
	if c.SnapLen == 0 {
		return pcap.MaxPacket
	}
	return int(c.SnapLen)
}

// ring returns where the files are.
func (c *Config) ring(env *pipeline.Env) pcap.RingFiles {
	prefix := c.Prefix
	if prefix == "" {
		prefix = fmt.Sprintf("%s-%d", env.Chain, env.Index+1)
	}
	return pcap.RingFiles{Dir: c.Dir, Prefix: prefix, MaxBytes: int64(c.FileSize), Files: c.Files}
}
