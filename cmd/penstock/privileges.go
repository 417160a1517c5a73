package main

import (
	"strings"

	"kernel.org/pub/linux/libs/security/libcap/cap"

	"penstock/internal/privilege"
)

// keptPrivileges are what is done after the start takes, of those that the process
// has: making maps at a reload and running programs in the kernel (BPF); turning
// promiscuous mode off (NET_ADMIN); and, where root starts it by hand, reading and
// writing files of others again, such as records of the unit's user (DAC_OVERRIDE).
//
// Those of portPrivileges are set aside where ports may be added, and in effect only
// in the thread that does it, for as long as it does.
var keptPrivileges = []cap.Value{cap.NET_ADMIN, cap.BPF, cap.DAC_OVERRIDE}

// dropPrivileges gives up what only the start takes.
func (a *appliance) dropPrivileges() {
	var aside []cap.Value
	if a.cfg.Appliance.SparePorts > 0 && a.router == nil {
		aside = portPrivileges
	}
	left, err := privilege.Keep(keptPrivileges, aside)
	if err != nil {
		a.log.Error("privileges are not given up", "err", err)
		return
	}
	var names []string
	for _, c := range left {
		names = append(names, c.String())
	}
	a.log.Info("privileges are given up", "kept", strings.Join(names, ","))
}
