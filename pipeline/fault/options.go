package fault

import (
	"encoding"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"penstock/internal/units"
	"penstock/pipeline"
)

// Options say what is wrong with a wire. They are a table of the configuration
// and the argument of `penstock replay --fault`: both use the tags. The zero
// value has no faults.
type Options struct {
	Seed         int            `toml:"seed" min:"0" help:"of the generator: the same seed, the same faults"`
	On           string         `toml:"on" values:"both|receive|transmit" help:"which packets of the port meet faults"`
	Loss         units.Share    `toml:"loss" help:"share of packets that are lost"`
	Duplicate    units.Share    `toml:"duplicate" help:"share of packets that come twice"`
	Reorder      units.Share    `toml:"reorder" help:"share of packets that later ones overtake"`
	ReorderGap   int            `toml:"reorder_gap" min:"1" max:"1000" help:"how many later packets overtake one; it waits for them for at most 10ms"`
	Delay        units.Duration `toml:"delay" help:"how long every packet takes"`
	Jitter       units.Duration `toml:"jitter" help:"how much longer it may take, evenly spread; packets overtake each other"`
	Corrupt      units.Share    `toml:"corrupt" help:"share of packets of which one bit behind the Ethernet header is flipped"`
	FixChecksum  bool           `toml:"fix_checksum" help:"whether the checksums of damaged packets are made right, so that nobody notices"`
	MTU          int            `toml:"mtu" min:"0" max:"65535" help:"largest IP packet that passes, in bytes; 0: any"`
	PacketTooBig bool           `toml:"packet_too_big" help:"whether the sender of a packet that does not pass is told, by ICMP"`
	Hold         int            `toml:"hold" min:"1" max:"65536" help:"packets held back at once in each direction; more pass at once"`
}

// The values of Options.On.
const (
	OnBoth     = "both"
	OnReceive  = "receive"
	OnTransmit = "transmit"
)

const (
	defaultGap  = 3
	defaultHold = 1024
	reorderWait = 10 * time.Millisecond
)

// Default returns the options that hold where nothing is written: no faults.
func Default() Options { return Options{On: OnBoth, ReorderGap: defaultGap, Hold: defaultHold} }

// Active reports whether there are any faults.
func (o *Options) Active() bool {
	return o.Loss > 0 || o.Duplicate > 0 || o.Reorder > 0 || o.Delay > 0 || o.Jitter > 0 || o.Corrupt > 0 || o.MTU > 0
}

// MinMTU is the least MTU that a fault may make: what IPv4 asks for.
const MinMTU = 68

// Validate adds every problem of o that its tags do not tell.
func (o *Options) Validate(issues *pipeline.Issues) {
	if o.MTU != 0 && o.MTU < MinMTU {
		issues.Add("mtu", "want 0 or at least %d, got %d", MinMTU, o.MTU)
	}
	if o.PacketTooBig && o.MTU == 0 {
		issues.Add("packet_too_big", "want an mtu beside it")
	}
	if o.FixChecksum && o.Corrupt == 0 {
		issues.Add("fix_checksum", "want corrupt beside it")
	}
}

// String writes what is set, as Parse reads it.
func (o Options) String() string {
	var parts []string
	def := reflect.ValueOf(Default())
	v := reflect.ValueOf(o)
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("toml")
		if name != "" && !v.Field(i).Equal(def.Field(i)) {
			parts = append(parts, fmt.Sprintf("%s=%v", name, v.Field(i)))
		}
	}
	return strings.Join(parts, ",")
}

// Parse reads options as the command line has them: "loss=1%,seed=7". A switch
// may stand without a value.
func Parse(text string) (Options, error) {
	o := Default()
	v := reflect.ValueOf(&o).Elem()
	for part := range strings.SplitSeq(text, ",") {
		name, value, given := strings.Cut(strings.TrimSpace(part), "=")
		f, field := fieldOf(v, name)
		if f == nil {
			return o, fmt.Errorf("read faults: unknown key %q: want some of %s", name, strings.Join(names(v), ", "))
		}
		if !given && f.Kind() == reflect.Bool {
			value = "true"
		}
		if err := set(*f, field.Tag, strings.TrimSpace(value)); err != nil {
			return o, fmt.Errorf("read faults: %s: %w", name, err)
		}
	}
	var issues pipeline.Issues
	o.Validate(&issues)
	if len(issues.List) > 0 {
		return o, fmt.Errorf("read faults: %s: %s", issues.List[0].Path, issues.List[0].Text)
	}
	return o, nil
}

func fieldOf(v reflect.Value, name string) (*reflect.Value, reflect.StructField) {
	for i := range v.NumField() {
		if t := v.Type().Field(i); name != "" && t.Tag.Get("toml") == name {
			f := v.Field(i)
			return &f, t
		}
	}
	return nil, reflect.StructField{}
}

func names(v reflect.Value) (list []string) {
	for i := range v.NumField() {
		if name := v.Type().Field(i).Tag.Get("toml"); name != "" {
			list = append(list, name)
		}
	}
	return list
}

func set(f reflect.Value, tag reflect.StructTag, value string) error {
	if u, ok := f.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return u.UnmarshalText([]byte(value))
	}
	switch f.Kind() {
	case reflect.Bool:
		b, err := strconv.ParseBool(value)
		if err != nil {
			return fmt.Errorf("want true or false, got %q", value)
		}
		f.SetBool(b)
	case reflect.Int:
		n, err := strconv.Atoi(value)
		low, _ := strconv.Atoi(tag.Get("min"))
		high, herr := strconv.Atoi(tag.Get("max"))
		if err != nil || n < low || herr == nil && n > high {
			want := fmt.Sprintf("from %d", low)
			if herr == nil {
				want += fmt.Sprintf(" to %d", high)
			}
			return fmt.Errorf("want an integer %s, got %q", want, value)
		}
		f.SetInt(int64(n))
	default:
		for _, ok := range strings.Split(tag.Get("values"), "|") {
			if value == ok {
				f.SetString(value)
				return nil
			}
		}
		return fmt.Errorf("want one of %s, got %q", strings.ReplaceAll(tag.Get("values"), "|", ", "), value)
	}
	return nil
}
