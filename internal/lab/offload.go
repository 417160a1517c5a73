package lab

import (
	"fmt"
	"sort"
	"strings"

	"github.com/safchain/ethtool"
)

// offloadGroups are the short names that ethtool(8) uses, by the kernel's names.
var offloadGroups = map[string]func(feature string) bool{
	"tx":  func(f string) bool { return strings.HasPrefix(f, "tx-checksum-") },
	"rx":  func(f string) bool { return f == "rx-checksum" },
	"sg":  func(f string) bool { return strings.HasPrefix(f, "tx-scatter-gather") },
	"tso": func(f string) bool { return strings.HasPrefix(f, "tx-tcp") && strings.HasSuffix(f, "segmentation") },
	"gso": func(f string) bool { return f == "tx-generic-segmentation" },
	"gro": func(f string) bool { return f == "rx-gro" },
	"lro": func(f string) bool { return f == "rx-lro" },
}

// SetOffload turns offloads of an interface on or off and reads them back: one that
// did not change is an error. Names are ethtool's short ones (tx, rx, sg, tso, gso,
// gro, lro) or the kernel's full ones (`ethtool -k` shows both).
func (n *NS) SetOffload(name string, want map[string]bool) error {
	err := n.withEthtool(func(e *ethtool.Ethtool) error {
		state, err := e.FeaturesWithState(name)
		if err != nil {
			return fmt.Errorf("read features: %w", err)
		}
		full, err := expandOffloads(state, want)
		if err != nil {
			return err
		}
		if err := e.Change(name, full); err != nil {
			return fmt.Errorf("change features: %w", err)
		}
		// The ioctl succeeds even when a driver or a dependency keeps a feature as it was.
		now, err := e.Features(name)
		if err != nil {
			return fmt.Errorf("read features: %w", err)
		}
		var kept []string
		for f, on := range full {
			if now[f] != on {
				kept = append(kept, fmt.Sprintf("%s stayed %s", f, onOff(now[f])))
			}
		}
		if len(kept) > 0 {
			sort.Strings(kept)
			return fmt.Errorf("%s", strings.Join(kept, ", "))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("set offloads of %s in %s: %w", name, n.name, err)
	}
	return nil
}

// Offloads returns the interface's active features under the kernel's names.
func (n *NS) Offloads(name string) (map[string]bool, error) {
	var features map[string]bool
	err := n.withEthtool(func(e *ethtool.Ethtool) (err error) {
		features, err = e.Features(name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read offloads of %s in %s: %w", name, n.name, err)
	}
	return features, nil
}

// expandOffloads maps short names to the features that this device can change.
func expandOffloads(state map[string]ethtool.FeatureState, want map[string]bool) (map[string]bool, error) {
	full := map[string]bool{}
	for name, on := range want {
		match, short := offloadGroups[name]
		if !short {
			match = func(f string) bool { return f == name }
		}
		found := false
		for f, s := range state {
			if !match(f) {
				continue
			}
			if s.Available && !s.NeverChanged {
				full[f] = on
				found = true
			} else if !on && !s.Active {
				found = true // fixed, and off as wanted
			}
		}
		if !found {
			return nil, fmt.Errorf("the device cannot turn %q %s", name, onOff(on))
		}
	}
	return full, nil
}

func (n *NS) withEthtool(fn func(*ethtool.Ethtool) error) error {
	return n.Do(func() error {
		e, err := ethtool.NewEthtool()
		if err != nil {
			return fmt.Errorf("open ethtool: %w", err)
		}
		defer e.Close()
		return fn(e)
	})
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
