package acl

import "penstock/pipeline"

// Why a packet ends at this stage.
var (
	reasonDenied  = pipeline.DefineReason("acl_denied", `a rule with the action "drop" is the first that the packet meets`)
	reasonDefault = pipeline.DefineReason("acl_default", `the packet meets no rule, and the default is "drop"`)
)
