package main

import (
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"penstock/bpf"
	"penstock/internal/config"
)

// detachCommand removes the XDP program that an appliance has left behind with
// on_exit = "open".
func detachCommand(args []string) error {
	fs := newFlags("detach", "FILE")
	files, err := parse(fs, args)
	if err != nil {
		return err
	}
	if len(files) != 1 {
		return usagef("want the configuration file of the appliance that has gone, got %d files", len(files))
	}
	cfg, err := loadConfig(files[0])
	if err != nil {
		return err
	}
	name := cfg.Appliance.Name
	f, err := os.OpenFile(lockPath(name), os.O_RDONLY|os.O_CREATE, 0o644)
	if err == nil {
		defer f.Close()
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
			return fmt.Errorf("the appliance %q still runs: stop it first", name)
		}
	}
	if cfg.Appliance.Pins == "" {
		return nil
	}
	if err := bpf.Cleanup(cfg.Appliance.Pins, name); err != nil {
		return err
	}
	removePinRoot(cfg)
	for _, p := range cfg.Ports {
		if l, err := netlink.LinkByName(p.Interface); err == nil && cfg.Appliance.Mode == config.ModeBridge {
			n := &nic{name: p.Interface, ifindex: l.Attrs().Index, promisc: true} // that instance had turned it on
			if err := n.setPromisc(false); err != nil {
				return err
			}
		}
	}
	return nil
}

// removePinRoot removes the directory of the pins if nothing is in it any more.
// It was made for this appliance, unless others share it.
func removePinRoot(cfg *config.Config) {
	if cfg.Appliance.Pins != "" {
		_ = os.Remove(cfg.Appliance.Pins)
	}
}
