// Package traffic makes and checks TCP traffic: an HTTP origin, a raw TCP server,
// clients that verify every byte, and load generators. The demo, the end-to-end tests
// and the benchmarks use it, in their own process over NS.Dial and NS.Listen, or as
// processes inside a namespace (Start), whose CPU time can be told apart.
//
// Every byte of a stream is known from its position (Pattern), so a receiver knows
// the first wrong byte, not only that a sum differs. Everything is bounded: sizes,
// connections, times.
//
// The trap: a process that calls Start must call Child first thing in main or
// TestMain, because Start runs the same program again.
package traffic
