// Package stages lists the stage kinds that Penstock is built with.
//
// Its one trap: a kind that is not in Builtin does not exist, whatever folders
// lie beside this file. There is no registration by import.
package stages

import (
	"penstock/pipeline"
	"penstock/stages/acl"
	"penstock/stages/capture"
	"penstock/stages/dns"
	"penstock/stages/http"
	"penstock/stages/llm"
	"penstock/stages/ratelimit"
	"penstock/stages/tcp"
	"penstock/stages/tls"
)

// Builtin returns the registry of all kinds.
func Builtin() *pipeline.Registry {
	r := &pipeline.Registry{}
	pipeline.Register(r, acl.Descriptor())
	pipeline.Register(r, capture.Descriptor())
	pipeline.Register(r, dns.Descriptor())
	pipeline.Register(r, http.Descriptor())
	pipeline.Register(r, llm.Descriptor())
	pipeline.Register(r, ratelimit.Descriptor())
	pipeline.Register(r, tcp.Descriptor())
	pipeline.Register(r, tls.Descriptor())
	return r
}
