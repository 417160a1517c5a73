package main

import (
	"penstock/internal/wire"
)

// PastWorkers implements pipeline.Passer.
func (a *appliance) PastWorkers(worker int) bool {
	if n := a.steerer.Past(); n != a.past[worker] {
		a.past[worker] = n
		return true
	}
	return false
}

// Passed implements pipeline.Passer.
func (a *appliance) Passed(f wire.Flow) bool { return a.steerer.Passed(bpfKey(f)) }
