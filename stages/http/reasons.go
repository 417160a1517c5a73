package http

import "penstock/pipeline"

// Why a connection ends at this stage.
var (
	reasonHost      = pipeline.DefineReason("http_host_denied", "deny_hosts or allow_hosts refuse the request's host")
	reasonNotHTTP   = pipeline.DefineReason("http_not_http", "the client's first bytes are no HTTP/1.x request")
	reasonBadHead   = pipeline.DefineReason("http_bad_request", "a request head that no two HTTP parsers need agree on")
	reasonFraming   = pipeline.DefineReason("http_bad_framing", "a request whose end is ambiguous: conflicting, repeated or malformed Content-Length or Transfer-Encoding")
	reasonHeadSize  = pipeline.DefineReason("http_head_too_large", "a request head larger than max_head")
	reasonPipelined = pipeline.DefineReason("http_too_many_pipelined", "more requests without a response than max_pipelined")
)

func reasons() []pipeline.Reason {
	return []pipeline.Reason{reasonHost, reasonNotHTTP, reasonBadHead, reasonFraming, reasonHeadSize, reasonPipelined}
}
