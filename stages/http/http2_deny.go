package http

import (
	"encoding/binary"
	"strconv"

	"penstock/pipeline"
)

// denial is what a client is told before its connection in HTTP/2 ends: a
// response on the stream of e, if a request is refused, and that no further one
// is taken (GOAWAY, RFC 9113 6.8). It returns nothing where the server's bytes
// end within a frame, or cannot be followed: a frame of ours would be taken for
// the rest of theirs.
//
// The response has no body, which the client's flow control need not allow, and
// its fields are compressed without the table that the server's encoder keeps.
func (c *stream) denialHTTP2(e *exchange, why pipeline.Reason) (reply []byte) {
	t := c.two
	if c.lost || !t.server.Idle() {
		return nil
	}
	if !t.greeted {
		reply = appendFrame(reply, 4, 0, 0) // SETTINGS come first
	}
	code := goAwayCode(why)
	if code == 0 {
		_, status := denial(why)
		block := []byte{0x20, 0x08, 3} // the table is cleared; :status, not indexed
		block = strconv.AppendInt(block, int64(status), 10)
		block = append(block, 0x0f, 0x0d, 1, '0') // content-length: 0
		reply = appendFrame(reply, 1, 0x5, e.stream, block...)
		e.status = status
	}
	payload := binary.BigEndian.AppendUint32(nil, t.last)
	return appendFrame(reply, 7, 0, 0, binary.BigEndian.AppendUint32(payload, code)...)
}

// goAwayCode returns the error of the connection (RFC 9113 7), 0 if it is only
// one request that is refused.
func goAwayCode(why pipeline.Reason) uint32 {
	switch why {
	case reasonStreams, reasonResets, reasonContinuations, reasonExpands, reasonHeadSize:
		return 0xb // ENHANCE_YOUR_CALM
	case reasonBlock:
		return 0x9 // COMPRESSION_ERROR
	case reasonPreface, reasonFrame, reasonH2Head, reasonH2Length:
		return 0x1 // PROTOCOL_ERROR
	}
	return 0
}

func appendFrame(b []byte, typ, flags byte, stream uint32, payload ...byte) []byte {
	n := len(payload)
	b = append(b, byte(n>>16), byte(n>>8), byte(n), typ, flags)
	return append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

// errorNames are the codes of RST_STREAM (RFC 9113 7).
var errorNames = [...]string{"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED", "FRAME_SIZE_ERROR",
	"REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"}

func errorName(code uint32) string {
	if code < uint32(len(errorNames)) {
		return errorNames[code]
	}
	return strconv.FormatUint(uint64(code), 10)
}
