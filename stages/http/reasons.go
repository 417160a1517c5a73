package http

import (
	"penstock/internal/http1"
	"penstock/pipeline"
)

// Why a connection ends at this stage.
var (
	reasonHost       = pipeline.DefineReason("http_host_denied", "deny_hosts or allow_hosts refuse the request's host")
	reasonMethod     = pipeline.DefineReason("http_method_denied", "deny_methods or allow_methods refuse the request's method")
	reasonPath       = pipeline.DefineReason("http_path_denied", "deny_paths or allow_paths refuse the request's path")
	reasonField      = pipeline.DefineReason("http_header_denied", "deny_headers refuses a header of the request")
	reasonRule       = pipeline.DefineReason("http_rule_denied", "one of the rules refuses the request; the record says which")
	reasonRuleFailed = pipeline.DefineReason("http_rule_failed", "one of the rules could not be evaluated, or cost too much: it refuses then")

	reasonNotHTTP   = pipeline.DefineReason("http_not_http", "the client's first bytes are no HTTP request")
	reasonBadHead   = pipeline.DefineReason("http_bad_request", "a request line that no two HTTP parsers need agree on")
	reasonBadLine   = pipeline.DefineReason("http_bad_line_end", "a line that ends with, or holds, a bare CR or LF")
	reasonBadField  = pipeline.DefineReason("http_bad_header", "a header that is folded, has a space before its colon, or characters that it must not have")
	reasonBadHost   = pipeline.DefineReason("http_bad_host", "no Host, several, or one that is no name and no address")
	reasonBadPath   = pipeline.DefineReason("http_bad_path", "a path that decodes to something else at every server, where there are path lists")
	reasonSmuggle   = pipeline.DefineReason("http_length_and_chunked", "Content-Length and Transfer-Encoding in one request")
	reasonLengths   = pipeline.DefineReason("http_repeated_length", "several Content-Length, or several values in one")
	reasonLength    = pipeline.DefineReason("http_bad_length", "a Content-Length that is not a number of at most 18 digits")
	reasonCoding    = pipeline.DefineReason("http_bad_transfer_encoding", "a Transfer-Encoding other than chunked, repeated, or in HTTP/1.0")
	reasonChunk     = pipeline.DefineReason("http_bad_chunk", "a chunk of a request whose size or line ends are malformed")
	reasonH2C       = pipeline.DefineReason("http_h2c_upgrade", "an upgrade to cleartext HTTP/2, where that is not followed")
	reasonHeadSize  = pipeline.DefineReason("http_head_too_large", "a request head larger than max_head")
	reasonFields    = pipeline.DefineReason("http_too_many_headers", "a request with more headers than max_headers")
	reasonPipelined = pipeline.DefineReason("http_too_many_pipelined", "more requests without a response than max_pipelined")

	reasonPreface       = pipeline.DefineReason("http2_bad_preface", "a client that wants HTTP/2 but does not begin with its preface and SETTINGS")
	reasonFrame         = pipeline.DefineReason("http2_bad_frame", "a frame whose size, stream or place is forbidden")
	reasonBlock         = pipeline.DefineReason("http2_bad_compression", "a header block that cannot be decompressed, or that wants a table above 64 KiB")
	reasonH2Head        = pipeline.DefineReason("http2_bad_head", "fields that RFC 9113 forbids, or that are missing: two parsers may read them differently")
	reasonH2Length      = pipeline.DefineReason("http2_length_mismatch", "a request whose body is not as long as its Content-Length")
	reasonExpands       = pipeline.DefineReason("http2_hpack_bomb", "a header block that decompresses to more than max_head")
	reasonContinuations = pipeline.DefineReason("http2_continuation_flood", "a header block of more than 16 CONTINUATION frames")
	reasonStreams       = pipeline.DefineReason("http2_too_many_streams", "more streams at a time than max_streams")
	reasonResets        = pipeline.DefineReason("http2_rapid_reset", "more streams that the client resets before their response, within a second, than max_resets")
)

func reasons() []pipeline.Reason {
	return []pipeline.Reason{
		reasonHost, reasonMethod, reasonPath, reasonField, reasonRule, reasonRuleFailed,
		reasonNotHTTP, reasonBadHead, reasonBadLine, reasonBadField, reasonBadHost, reasonBadPath,
		reasonSmuggle, reasonLengths, reasonLength, reasonCoding, reasonChunk, reasonH2C,
		reasonHeadSize, reasonFields, reasonPipelined,
		reasonPreface, reasonFrame, reasonBlock, reasonH2Head, reasonH2Length, reasonExpands, reasonContinuations, reasonStreams, reasonResets,
	}
}

// byPolicy reports whether a list of the configuration refuses the request, not
// its form.
func byPolicy(r pipeline.Reason) bool {
	return r == reasonHost || r == reasonMethod || r == reasonPath || r == reasonField || r == reasonRule || r == reasonRuleFailed
}

// faultReasons are the reasons of what cannot be read.
var faultReasons = [...]pipeline.Reason{
	http1.FaultNone:    pipeline.ReasonNone,
	http1.BadStartLine: reasonBadHead,
	http1.BadLine:      reasonBadLine,
	http1.BadField:     reasonBadField,
	http1.BadHost:      reasonBadHost,
	http1.BothLengths:  reasonSmuggle,
	http1.ManyLengths:  reasonLengths,
	http1.BadLength:    reasonLength,
	http1.BadCoding:    reasonCoding,
	http1.UpgradeH2C:   reasonH2C,
	http1.ManyFields:   reasonFields,
}
