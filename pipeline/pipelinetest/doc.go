// Package pipelinetest is what tests of stages, ports and chains have in
// common: a packet builder, a conformance suite for stages (Stage) and one for
// ports (Port), and golden replays (Golden).
//
// Frames are built with gopacket and not with internal/wire, so that a mistake
// in the one shows in the other.
//
// The trap: the builder panics on arguments that make no sense. It is for
// tests only.
package pipelinetest
