// Package flowtab is a table of flows with a fixed number of places, ordered by when each flow was last seen. Time is
// given by the caller, in nanoseconds of a monotonic clock; nothing allocates after New.
//
// One entry can serve both directions: look up with [wire.Flow.Canonical].
//
// The trap: a table has one owner. It has no locks; two goroutines that use it race, even if both only call Get, which
// moves the entry to the young end.
package flowtab
