package config

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// samples are values for keys that have no default.
var samples = map[string]string{
	"appliance.api.listen": `"127.0.0.1:9478"`, "appliance.api.cert": `"/c"`, "appliance.api.key": `"/k"`, "appliance.api.client_ca": `"/a"`,
	"port.name": `"NAME"`, "port.interface": `"NAME"`,
	"steer.from": `"A"`, "steer.src": `["10.0.0.0/8"]`, "steer.dst": `["::/0", "10.0.0.1"]`,
	"steer.src_port": `["1000-2000"]`, "steer.dst_port": `[80]`, "steer.to": `"C"`,
	"gate.deny": `["192.0.2.0/24", "2001:db8::1"]`, "gate.allow": `[]`, "gate.rate_packets": `"2000pkt/s"`,
	"gate.rate_bytes": `"10Mbit/s"`, "gate.rate_syns": `"200pkt/s"`, "chain.name": `"C"`, "chain.stage.kind": `"acl"`, "record.to": `"stdout"`, "ipfix.to": `"udp:192.0.2.9:4739"`, "otlp.endpoint": `"http://192.0.2.9:4318"`, "otlp.headers": `["a: b"]`,
	"set.NAME.prefixes": `["10.0.0.0/8", "fd00::/8"]`,
}

// TestKeysAreThere writes a file with every documented key, at its default or
// at a sample value, and wants it to be accepted.
func TestKeysAreThere(t *testing.T) {
	used := map[string]bool{}
	var file strings.Builder
	for _, table := range Tables() {
		copies := []string{"A"}
		if table.Name == "port" {
			copies = append(copies, "B")
		}
		for _, name := range copies {
			header := "[" + strings.Replace(table.Name, "NAME", "office", 1) + "]"
			if table.List {
				header = "[" + header + "]"
			}
			fmt.Fprintln(&file, header)
			for _, k := range table.Keys {
				value, id := k.Default, table.Name+"."+k.Name
				if s, ok := samples[id]; ok {
					value, used[id] = strings.Replace(s, "NAME", name, 1), true
				}
				if k.Name == "proto" {
					value = `"udp"`
				}
				fmt.Fprintf(&file, "%s = %s\n", k.Name, value)
			}
		}
	}
	c, problems := Parse("all.toml", []byte(file.String()), testRegistry())
	if problems != nil {
		t.Fatalf("%v\n%s", problems.Error(), file.String())
	}
	want := defaultAppliance("penstock")
	want.API = API{"127.0.0.1:9478", "/c", "/k", "/a"}
	if c.Appliance != want {
		t.Errorf("the documented defaults give %+v, want %+v", c.Appliance, want)
	}
	for id := range samples {
		if !used[id] {
			t.Errorf("%s is not documented", id)
		}
	}
}

// TestKeysHold checks each documented restriction against the decoder.
func TestKeysHold(t *testing.T) {
	for _, k := range Keys() {
		id := k.Table + "." + k.Name
		if k.Help == "" || k.Type == "" || strings.Contains(k.Help, "\n") {
			t.Errorf("%s: want a type and one line of help, got %+v", id, k)
		}
		if k.Required && k.Default != "" {
			t.Errorf("%s is required and has a default", id)
		}
		header := "[" + k.Table + "]"
		inside := ""
		if k.List {
			header = "[" + header + "]"
		} else if list, own, ok := strings.Cut(k.Table, "."); ok {
			header, inside = "[["+list+"]]\n"+header, own+"."
		}
		try := func(value string) (complaint string) {
			_, problems := Parse("x", []byte(header+"\n"+k.Name+" = "+value+"\n"), testRegistry())
			for _, p := range problems {
				if text := strings.TrimPrefix(p.Text, inside); strings.HasPrefix(text, k.Name+": want") {
					return text
				}
			}
			return ""
		}
		if len(k.Values) > 0 {
			if got := try(`"nonsense"`); !strings.HasPrefix(got, k.Name+": want "+choice(k.Values)) {
				t.Errorf("%s: a wrong value gives %q", id, got)
			}
			for _, v := range k.Values {
				if got := try(`"` + v + `"`); got != "" {
					t.Errorf("%s: the documented value %q gives %q", id, v, got)
				}
			}
		}
		if k.Max != "" {
			digits := strings.TrimRightFunc(k.Max, func(c rune) bool { return c < '0' || c > '9' })
			more, most := digits+"0"+k.Max[len(digits):], k.Max
			if digits != k.Max {
				more, most = strconv.Quote(more), strconv.Quote(most)
			}
			if got := try(more); got == "" {
				t.Errorf("%s: ten times the maximum is accepted", id)
			}
			if got := try(most); strings.Contains(got, "want an integer") || strings.Contains(got, "want at most") {
				t.Errorf("%s: the maximum gives %q", id, got)
			}
		}
	}
}

// TestDefaultsFollowName: two appliances on one machine do not meet.
func TestDefaultsFollowName(t *testing.T) {
	c := mustParse(t, "x", ports+"[appliance]\nname = \"edge2\"\n")
	if c.Appliance.Control != "/run/edge2/control.sock" || c.Appliance.Pins != "/sys/fs/bpf/edge2" {
		t.Errorf("got %+v", c.Appliance)
	}
	c = mustParse(t, "x", ports+"[appliance]\nname = \"edge2\"\npins = \"\"\ncontrol = \"/a\"\nmetrics = \"\"\n")
	if c.Appliance.Control != "/a" || c.Appliance.Pins != "" || c.Appliance.Metrics != "" {
		t.Errorf("got %+v", c.Appliance)
	}
}

const ports = "[[port]]\nname = \"lan\"\ninterface = \"eth1\"\n[[port]]\nname = \"wan\"\ninterface = \"eth2\"\n"

// TestDefaultsAreStated: what setDefaults sets is what Keys says.
func TestDefaultsAreStated(t *testing.T) {
	want := map[string]string{
		"port.queues": `"all"`, "port.xdp": `"auto"`, "port.zero_copy": `"auto"`, "steer.proto": `"any"`,
		"chain.offload": `"auto"`, "record.events": `["all"]`, "appliance.frame_size": `"2KiB"`,
		"appliance.drain_timeout": `"10s"`, "appliance.mode": `"bridge"`,
	}
	got := map[string]string{}
	for _, k := range Keys() {
		if _, ok := want[k.Table+"."+k.Name]; ok {
			got[k.Table+"."+k.Name] = k.Default
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
