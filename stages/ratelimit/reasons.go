package ratelimit

import "penstock/pipeline"

// Why a packet ends at this stage.
var (
	reasonLimited = pipeline.DefineReason("ratelimited", "the packet's key has exceeded its rate and burst")
	reasonFull    = pipeline.DefineReason("ratelimit_full", `the packet's key is new, all places are taken, and on_full is "drop"`)
)
