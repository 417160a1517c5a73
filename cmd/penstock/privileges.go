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
var keptPrivileges = []cap.Value{cap.NET_ADMIN, cap.BPF, cap.DAC_OVERRIDE}

// dropPrivileges gives up what only the start takes.
func (a *appliance) dropPrivileges() {
	left, err := privilege.Keep(keptPrivileges...)
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
