package stack

import "penstock/pipeline"

// counters are the figures of one Stack.
type counters struct {
	active, pending, lingering *pipeline.Counter

	dials, dialRefused, dialTimeout, dialUnreachable, dialFailed, dialAborted *pipeline.Counter
	accepted, handshakeFailed, handshakeTimeout                               *pipeline.Counter
	halfClosed, closed, resets, reused                                        *pipeline.Counter
	idleTimeout, halfClosedTimeout, closeTimeout                              *pipeline.Counter
	denied, deniedReply, holdFull, panicked                                   *pipeline.Counter

	midstream, wrongPort, flowLimit, pendingLimit, draining, bypassedAgain *pipeline.Counter
	unusable, ipOptions, offPort, signed, fragmentedSYN, vlanClash         *pipeline.Counter

	bytesUp, bytesDown                                   *pipeline.Counter
	icmpTranslated, icmpMTU, icmpIgnored, fragments      *pipeline.Counter
	txDropped, txNoFrame, txOrphan, acksMerged, rxMerged *pipeline.Counter
	badAck, oldStamp, clientLimit, stallTimeout          *pipeline.Counter
	synRepeats, acksDelayed                              *pipeline.Counter
	spliced, spliceBusy, spliceTaken, spliceRefused      *pipeline.Counter
	adopted                                              *pipeline.Counter
	translated, translatedSlow                           *pipeline.Counter
	retransmits, timeouts, recoveries, txQueued          *pipeline.Counter
	cookiesOn, cookieSwitches, cookieFlows, cookieUnlike *pipeline.Counter
	halfOpenEvicted, passed                              *pipeline.Counter
}

func newCounters(set *pipeline.CounterSet) counters {
	c := set.Counter
	return counters{
		active:    set.Gauge("flows_active", "connections that are terminated now, those being established included"),
		pending:   set.Gauge("flows_pending", "connections being established now"),
		lingering: set.Gauge("flows_lingering", "closed connections that are still remembered"),

		dials:            c("dials", "connection attempts toward servers"),
		dialRefused:      c("dial_refused", "attempts that the server answered with a reset"),
		dialTimeout:      c("dial_timeout", "attempts that nobody answered"),
		dialUnreachable:  c("dial_unreachable", "attempts that an ICMP error ended"),
		dialFailed:       c("dial_failed", "attempts that netstack refused; the connection was bypassed"),
		dialAborted:      c("dial_aborted", "attempts that the client gave up"),
		accepted:         c("accepted", "connections established with both ends"),
		handshakeFailed:  c("handshake_failed", "connections that the client reset during its handshake"),
		handshakeTimeout: c("handshake_timeout", "connections whose client never acknowledged the SYN-ACK"),

		halfClosed:        c("half_closed", "connections of which one end finished before the other"),
		closed:            c("closed", "connections that both ends finished in order"),
		resets:            c("resets", "connections that one end reset"),
		reused:            c("reused", "connections begun on the addresses and ports of an earlier one that was remembered still"),
		idleTimeout:       c("idle_timeout", "connections reset after idle_timeout"),
		halfClosedTimeout: c("half_closed_timeout", "connections reset after half_closed_timeout"),
		closeTimeout:      c("close_timeout", "connections whose end was not acknowledged within close_timeout"),
		denied:            c("denied", "connections that a stream stage denied"),
		deniedReply:       c("denied_with_reply", "those of them that the client was told why"),
		holdFull:          c("stream_hold_full", "connections denied because a stream stage held back more than hold_bytes"),

		panicked: c("stream_panics", "connections reset because a stream stage panicked"),

		midstream:     c("midstream", "TCP packets passed on because the connection's SYN was not seen"),
		wrongPort:     c("wrong_port", "packets of a connection passed on because they came in by the port of the other end"),
		flowLimit:     c("tcp_flow_limit", "new connections beyond max_flows"),
		pendingLimit:  c("tcp_pending_limit", "new connections beyond max_pending"),
		draining:      c("bypassed_draining", "new connections passed on while the stage was draining"),
		passed:        c("bypassed_worker_silent", "new connections whose SYN, sent again, went past the worker while it was silent"),
		bypassedAgain: c("bypassed_again", "repeated SYNs of connections that were bypassed before"),
		unusable:      c("unsupported_address", "new connections with an address or port that TCP cannot use"),
		offPort:       c("unsupported_route", "new connections whose server is behind an interface that is no port, in router mode"),
		ipOptions:     c("unsupported_ip_options", "new connections whose SYN had IP options or extension headers"),
		signed:        c("unsupported_signature", "new connections with TCP-MD5 or TCP-AO"),
		fragmentedSYN: c("unsupported_fragmented_syn", "new connections whose SYN was fragmented"),
		vlanClash:     c("unsupported_vlan_clash", "new connections with the addresses and ports of one on another VLAN"),

		bytesUp:         c("bytes_to_server", "payload bytes relayed to servers"),
		bytesDown:       c("bytes_to_client", "payload bytes relayed to clients"),
		icmpTranslated:  c("icmp_translated", "ICMP errors about a dial, passed to the client as errors about its SYN"),
		icmpMTU:         c("icmp_mtu", "ICMP errors that lowered the segment size of a connection"),
		icmpIgnored:     c("icmp_ignored", "ICMP errors about connections, taken and without effect"),
		fragments:       c("fragments", "IP fragments given to netstack"),
		spliced:         c("spliced", "connections that were spliced: no stream stage needs their bytes"),
		spliceBusy:      c("splice_busy", "times a connection did not come to rest and was left for later"),
		spliceTaken:     c("splice_offloaded", "times XDP took a spliced connection"),
		spliceRefused:   c("splice_not_offloaded", "times XDP had no room for a spliced connection"),
		adopted:         c("splice_adopted", "spliced connections of an earlier process that are known here"),
		translated:      c("translated", "packets of spliced connections that were translated in user space"),
		translatedSlow:  c("translated_slow", "those of them that XDP leaves to user space: fragments, odd options"),
		retransmits:     c("retransmits", "segments that netstack has sent again, to either end"),
		timeouts:        c("retransmit_timeouts", "times that it had to wait for a timer to do so"),
		recoveries:      c("fast_recoveries", "times that it did so because an end reported a gap"),
		txQueued:        set.Gauge("tx_queue_bytes", "bytes that netstack has sent and that wait for a frame now"),
		txDropped:       c("tx_queue_dropped", "packets that netstack sent and the transmit queue had no room for"),
		txNoFrame:       c("tx_no_frame", "turns that ended with packets waiting because no frame was free"),
		txOrphan:        c("tx_orphan", "packets that netstack sent for no connection that is known"),
		acksMerged:      c("acks_merged", "pure acknowledgments left out because a later segment carried them"),
		acksDelayed:     c("acks_delayed", "pure acknowledgments sent after `ack_delay`, because nothing had carried them"),
		rxMerged:        c("rx_merged", "segments that were given to netstack together with the one before"),
		clientLimit:     c("tcp_client_limit", "new connections beyond max_flows_per_client"),
		stallTimeout:    c("stall_timeout", "connections reset because an end took nothing for stall_timeout"),
		cookiesOn:       c("syn_cookies_active", "1 while XDP answers SYNs with cookies because this worker asked for it"),
		cookieSwitches:  c("syn_cookies_switched_on", "times that it began to"),
		cookieFlows:     c("syn_cookie_flows", "connections begun by a client that gave a good SYN cookie back"),
		halfOpenEvicted: c("half_open_evicted", "connections being established that made room for one begun with a SYN cookie"),
		cookieUnlike:    c("syn_cookie_not_spliced", "those of them not spliced because the server's options are others than the client was told"),
		badAck:          c("bad_acks", "segments refused because they acknowledge what was never sent, or was long ago"),
		oldStamp:        c("old_timestamps", "segments refused because their timestamp is from the past"),
		synRepeats:      c("syn_repeats_swallowed", "SYNs repeated within 200 ms and not sent"),
	}
}
