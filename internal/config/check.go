package config

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"penstock/internal/record"
	"penstock/pipeline"
	"penstock/pipeline/fault"
)

// Bounds of what a configuration may hold.
const (
	MaxPorts  = 32   // [[port]] tables
	MaxChains = 1024 // [[chain]] tables
	MaxSinks  = 64   // [[record]] tables
	MaxStages = 64   // stages in a chain
	MaxQueues = 256  // queues of a port
	// MaxRules is how many entries the XDP program's rule table has: each rule
	// takes one for every combination of its prefixes and port ranges.
	MaxRules = 256
)

// checker turns a document into a Config and reports what does not hold.
type checker struct {
	*decoder
	reg    *pipeline.Registry
	config *Config
	doc    document
	warn   report

	elsewhere Problems // in files that the configuration names
}

func (c *checker) check() {
	name := "penstock"
	if t, ok := c.root["appliance"].(map[string]any); ok {
		if s, ok := t["name"].(string); ok && nameProblem(s) == "" {
			name = s
		}
	}
	c.doc.Appliance, c.doc.Gate = defaultAppliance(name), defaultGate(name)
	c.doc.OTLP = defaultOTLP()
	c.value("", c.root, reflect.ValueOf(&c.doc).Elem(), "")
	c.appliance()
	c.gate()
	c.sets()
	c.ports()
	c.chains()
	c.steers()
	c.records()
	c.ipfix()
	c.otlp()
}

// atMost reports a list of tables that is too long and returns what of it is
// looked at further.
func atMost[T any](c *checker, path, what string, list []T, most int) []T {
	if len(list) <= most {
		return list
	}
	c.addIn(element(path, most), "", "want at most %d %s, got %d", most, what, len(list))
	return list[:most]
}

// missing reports a required key that is absent, and what it should hold.
func (c *checker) missing(table, key, want string) bool {
	if c.has(table, key) {
		return false
	}
	if !c.isBad(table) { // else it is not a table at all
		c.add(table, "%s is missing: want %s", key, want)
		delete(c.bad, table) // another key may be missing too
	}
	return true
}

// has reports whether an element of a list of tables has the key.
func (c *checker) has(path, key string) bool {
	kind, i, _, _ := cutElement(path)
	_, ok := tableAt(c.root[kind], i)[key]
	return ok
}

// nameProblem says what is wrong with a name, or "".
func nameProblem(s string) string {
	ok := s != "" && len(s) <= 32 && s[0] != '-' && s[0] != '_' && isBare(s)
	if ok {
		return ""
	}
	return fmt.Sprintf("want a name of up to 32 letters, digits, \"_\" and \"-\" that begins with a letter or digit, got %q", shorten(s))
}

// unique reports a second use of a value; seen maps values to the path of the
// table that used them first.
func (c *checker) unique(seen map[string]string, path, value, table string) {
	if first, dup := seen[value]; dup {
		where, _ := c.where(first)
		c.add(path, "%q is taken already by %s in line %d", shorten(value), where, c.ix.line(first))
		return
	}
	seen[value] = table
}

func (c *checker) appliance() {
	a := &c.doc.Appliance
	check := func(key, problem string) {
		if p := "appliance." + key; problem != "" && !c.isBad(p) {
			c.add(p, "%s", problem)
		}
	}
	check("name", nameProblem(a.Name))
	check("control", pathProblem(a.Control, 107)) // sun_path holds 108 bytes with the final zero
	check("pins", pathProblem(a.Pins, 4000))
	check("metrics", addressProblem(a.Metrics))
	if a.FrameSize != 2<<10 && a.FrameSize != 4<<10 {
		check("frame_size", fmt.Sprintf(`want "2KiB" or "4KiB", got %q`, a.FrameSize))
	}
	if a.RingSize&(a.RingSize-1) != 0 {
		check("ring_size", fmt.Sprintf("want a power of two from 64 to 32768, got %d", a.RingSize))
	}
	if a.FramesPerQueue < 2*a.RingSize && !c.isBad("appliance.ring_size") {
		check("frames_per_queue", fmt.Sprintf("want at least twice ring_size (%d), so that a full receive ring leaves frames to send, got %d", 2*a.RingSize, a.FramesPerQueue))
	}
	c.api(&a.API)
	c.config.Appliance = *a
}

// api checks [appliance.api]: none of its keys, or all of them.
func (c *checker) api(a *API) {
	const table = "appliance.api"
	parent, _ := c.root["appliance"].(map[string]any)
	t, ok := parent["api"].(map[string]any)
	if !ok {
		return
	}
	if t["listen"] == nil {
		c.add(table, `listen is missing: want an address and a port such as "127.0.0.1:9478", or "" to turn it off`)
		delete(c.bad, table)
		return
	}
	if p := addressProblem(a.Listen); p != "" && !c.isBad(table+".listen") {
		c.add(table+".listen", "%s", p)
	}
	if a.Listen == "" {
		return // off
	}
	for _, k := range []struct{ key, path, want string }{
		{"cert", a.Cert, "a file with the appliance's certificate, in PEM"},
		{"key", a.Key, "a file with the key of cert, in PEM"},
		{"client_ca", a.ClientCA, "a file with the authority of the clients' certificates, in PEM: without it anybody could change the appliance"},
	} {
		at := table + "." + k.key
		if c.isBad(at) {
			continue
		}
		if k.path == "" {
			c.add(table, "%s is missing: want %s", k.key, k.want)
			delete(c.bad, table) // another key may be missing too
		} else if p := pathProblem(k.path, 4000); p != "" {
			c.add(at, "%s", strings.Replace(p, `, or "" for none`, "", 1))
		}
	}
}

func pathProblem(path string, most int) string {
	switch {
	case path == "":
		return ""
	case !filepath.IsAbs(path) || strings.ContainsRune(path, 0):
		return fmt.Sprintf(`want an absolute path, or "" for none, got %q`, shorten(path))
	case len(path) > most:
		return fmt.Sprintf("want a path of at most %d bytes, got %d", most, len(path))
	}
	return ""
}

func addressProblem(addr string) string {
	if addr == "" {
		return ""
	}
	host, port, err := net.SplitHostPort(addr)
	if err == nil {
		if host != "" && host != "localhost" {
			_, err = netip.ParseAddr(host)
		}
		if n, perr := strconv.ParseUint(port, 10, 16); perr == nil && err == nil && n > 0 {
			return ""
		}
	}
	return fmt.Sprintf(`want an address and a port such as "127.0.0.1:9477", or "" for none, got %q`, shorten(addr))
}

func (c *checker) ports() {
	names, interfaces := map[string]string{}, map[string]string{}
	n := len(c.doc.Port)
	c.doc.Port = atMost(c, "port", "[[port]] tables", c.doc.Port, MaxPorts)
	for i, t := range c.doc.Port {
		path := element("port", i)
		p := Port{Name: t.Name, Interface: t.Interface, XDP: t.XDP, ZeroCopy: t.ZeroCopy, Line: c.ix.line(path)}
		c.name(names, path, t.Name, "the port's name, for use in rules and figures")
		if at := path + ".interface"; !c.missing(path, "interface", "the name of a network interface") && !c.isBad(at) {
			if !interfaceOK(t.Interface) {
				c.add(at, "want the name of a network interface (1 to 15 characters, no space, no \"/\"), got %q", shorten(t.Interface))
			} else {
				c.unique(interfaces, at, t.Interface, path)
			}
		}
		p.Queues = c.queues(path+".queues", t.Queues)
		if t.XDP == "generic" && t.ZeroCopy == "on" {
			c.add(path+".zero_copy", `"on" needs native XDP, but xdp is "generic"`)
		}
		p.Fault = c.fault(path+".fault", t.Fault)
		c.config.Ports = append(c.config.Ports, p)
	}
	router := c.doc.Appliance.Mode == ModeRouter
	if n > 0 && (n%2 == 0 || router) || n > MaxPorts || c.isBad("port") {
		return
	}
	at, want := "port", "bridge mode wants [[port]] tables in pairs, the two ends of a wire one after the other"
	if router {
		want = "router mode wants at least one [[port]] table"
	}
	if n > 2 {
		at = element("port", n-1)
	}
	line, col := c.ix.find(at)
	c.bad["port"] = true
	c.problems = append(c.problems, Problem{File: c.file, Line: line, Col: col, Text: fmt.Sprintf("%s, got %d", want, n)})
}

// name checks the name key of a table.
func (c *checker) name(seen map[string]string, path, name, want string) {
	at := path + ".name"
	if c.missing(path, "name", want) || c.isBad(at) {
		return
	}
	if p := nameProblem(name); p != "" {
		c.add(at, "%s", p)
		return
	}
	c.unique(seen, at, name, path)
}

// fault checks a [port.fault] table.
func (c *checker) fault(path string, t *faultTable) *fault.Options {
	if t == nil || c.isBad(path) {
		return nil
	}
	var issues pipeline.Issues
	t.Options.Validate(&issues)
	for _, i := range issues.List {
		if at := path + "." + i.Path; !c.isBad(at) {
			c.add(at, "%s", i.Text)
		}
	}
	if !t.Options.Active() {
		return nil
	}
	return &t.Options
}

// interfaceOK follows dev_valid_name of the kernel (net/core/dev.c).
func interfaceOK(s string) bool {
	if s == "" || len(s) > 15 || s == "." || s == ".." {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '/' || r == ':' || r == 0x7f })
}

func (c *checker) queues(path string, v any) Queues {
	list, isList := asList(v)
	if s, ok := v.(string); ok && s == "all" {
		return Queues{All: true}
	}
	if !isList || len(list) == 0 {
		got := describe(v)
		if isList {
			got = "an empty list"
		}
		c.add(path, `want "all" or a list of queue numbers such as [0, 1], got %s`, got)
		return Queues{}
	}
	var q Queues
	for i, e := range list {
		n, ok := e.(int64)
		switch {
		case !ok || n < 0 || n >= MaxQueues:
			c.add(element(path, i), "want a queue number from 0 to %d, got %s", MaxQueues-1, describe(e))
		case slices.Contains(q.List, int(n)):
			c.add(element(path, i), "queue %d is in the list already", n)
		default:
			q.List = append(q.List, int(n))
		}
	}
	slices.Sort(q.List)
	return q
}

func (c *checker) records() {
	seen := map[string]string{}
	for i, t := range atMost(c, "record", "[[record]] tables", c.doc.Record, MaxSinks) {
		path := element("record", i)
		if at := path + ".to"; !c.missing(path, "to", `"file:PATH", "unix:PATH" or "stdout"`) && !c.isBad(at) {
			if err := record.CheckTarget(t.To); err != nil {
				c.add(at, "%s", oneLine(err.Error()))
			} else {
				c.unique(seen, at, t.To, path)
			}
		}
		c.events(path+".events", t.Events)
		c.config.Record = append(c.config.Record, Record{To: t.To, Events: t.Events, Line: c.ix.line(path)})
	}
}

func (c *checker) events(path string, events []string) {
	if c.isBad(path) {
		return
	}
	if len(events) == 0 {
		c.add(path, `the list is empty, so nothing would be recorded: want "all" or the names of events`)
	}
	names := []string{record.All}
	for _, e := range record.Events {
		names = append(names, e.Name)
	}
	for i, e := range events {
		at := element(path, i)
		if c.isBad(at) {
			continue
		}
		if !slices.Contains(names, e) {
			c.add(at, "unknown event %q: %s", shorten(e), meant(e, names))
		} else if slices.Index(events, e) < i {
			c.add(at, "%q is in the list already", e)
		}
	}
}
