package tls

import (
	"penstock/internal/tlshello"
	"penstock/pipeline"
)

// Why a connection ends at this stage.
var (
	reasonSNI         = pipeline.DefineReason("tls_sni_denied", "deny_sni or allow_sni refuse the server name, or there is none")
	reasonMismatch    = pipeline.DefineReason("tls_sni_mismatch", "require_sni_match has no entry with this server name for this destination")
	reasonDNS         = pipeline.DefineReason("tls_sni_not_in_dns", "require_dns is set and the server name never led to this destination, or, with dns_unknown, no name did")
	reasonJA4         = pipeline.DefineReason("tls_ja4_denied", "deny_ja4 or allow_ja4 refuse the client's fingerprint")
	reasonVersion     = pipeline.DefineReason("tls_version_denied", "the client offers, or the server chose, no version from min_version on")
	reasonECH         = pipeline.DefineReason("tls_ech_denied", "deny_ech is set and the client hides its server name, or pretends to")
	reasonRule        = pipeline.DefineReason("tls_rule_denied", "one of the rules refuses the hello; the record says which")
	reasonRuleFailed  = pipeline.DefineReason("tls_rule_failed", "one of the rules could not be evaluated, or cost too much: it refuses then")
	reasonSNIChanged  = pipeline.DefineReason("tls_sni_changed", "the second ClientHello, after a HelloRetryRequest, names another server")
	reasonNotTLS      = pipeline.DefineReason("tls_not_tls", "the client's first bytes are no TLS record")
	reasonSSLv2       = pipeline.DefineReason("tls_sslv2", "an SSLv2-compatible hello, which TLS forbids by now")
	reasonBadRecord   = pipeline.DefineReason("tls_bad_record", "a record that TLS forbids: its length, its version, or its type in this place")
	reasonRecords     = pipeline.DefineReason("tls_too_many_records", "the hello lies in more records than max_records")
	reasonTooLarge    = pipeline.DefineReason("tls_hello_too_large", "a ClientHello larger than max_hello, or with more than 1024 cipher suites or 256 extensions")
	reasonBadMessage  = pipeline.DefineReason("tls_bad_message", "another handshake message where a ClientHello is due")
	reasonBadHello    = pipeline.DefineReason("tls_bad_hello", "a ClientHello that is malformed, or that two parsers may read differently")
	reasonIncomplete  = pipeline.DefineReason("tls_incomplete_hello", "the client finished in the middle of its hello")
	reasonServerHello = pipeline.DefineReason("tls_bad_server_hello", "min_version is set and the server's hello cannot be read")
)

func reasons() []pipeline.Reason {
	return []pipeline.Reason{
		reasonSNI, reasonMismatch, reasonDNS, reasonJA4, reasonVersion, reasonECH, reasonRule, reasonRuleFailed, reasonSNIChanged, reasonNotTLS, reasonSSLv2, reasonBadRecord,
		reasonRecords, reasonTooLarge, reasonBadMessage, reasonBadHello, reasonIncomplete, reasonServerHello,
	}
}

// faultReasons are the reasons of what cannot be read of a client.
var faultReasons = map[tlshello.Fault]pipeline.Reason{
	tlshello.NotTLS: reasonNotTLS, tlshello.SSLv2: reasonSSLv2, tlshello.BadRecord: reasonBadRecord, tlshello.TooManyRecords: reasonRecords,
	tlshello.TooLarge: reasonTooLarge, tlshello.BadMessage: reasonBadMessage, tlshello.BadHello: reasonBadHello,
}

// Alert descriptions (RFC 8446 6).
const (
	alertUnexpectedMessage = 10
	alertAccessDenied      = 49
	alertDecodeError       = 50
	alertProtocolVersion   = 70
	alertUnrecognizedName  = 112
)

// alert returns the fatal alert that tells a client why it is refused, or nil
// for a client that would not understand one.
func alert(why pipeline.Reason) []byte {
	description := byte(alertDecodeError)
	switch why {
	case reasonNotTLS, reasonSSLv2:
		return nil
	case reasonSNI, reasonMismatch, reasonDNS:
		description = alertUnrecognizedName
	case reasonJA4, reasonECH, reasonRule, reasonRuleFailed, reasonSNIChanged:
		description = alertAccessDenied
	case reasonVersion:
		description = alertProtocolVersion
	case reasonBadRecord, reasonBadMessage:
		description = alertUnexpectedMessage
	}
	return []byte{21, 3, 3, 0, 2, 2, description}
}
