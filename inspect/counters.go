package inspect

import "penstock/pipeline"

// counters are the figures of one Inspector.
type counters struct {
	active, memory *pipeline.Counter

	accepted, halfClosed, closed, resets, reused, released *pipeline.Counter
	idleTimeout, halfClosedTimeout                         *pipeline.Counter
	denied, holdFull, panicked, sightLost, resetsSent      *pipeline.Counter

	midstream, midstreamInspected, wrongPort            *pipeline.Counter
	flowLimit, draining, fragmentedSYN                  *pipeline.Counter
	bytesUp, bytesDown                                  *pipeline.Counter
	outOfOrder, repeated, conflicts                     *pipeline.Counter
	urgent, optionsRemoved, synData                     *pipeline.Counter
	held, heldRepeated, heldGone, heldDropped, noFrames *pipeline.Counter
}

func newCounters(set *pipeline.CounterSet) counters {
	c := set.Counter
	return counters{
		active: set.Gauge("flows_active", "connections that are followed now"),
		memory: set.Gauge("memory_used", "bytes of memory in use for packets that are not acknowledged yet"),

		accepted:          c("accepted", "connections whose handshake was completed"),
		halfClosed:        c("half_closed", "connections of which one end finished before the other"),
		closed:            c("closed", "connections that both ends finished in order"),
		resets:            c("resets", "connections that one end reset"),
		reused:            c("reused", "connections begun on the addresses and ports of an earlier one that was remembered still"),
		released:          c("flows_released", "connections that every stream stage has let go of"),
		idleTimeout:       c("idle_timeout", "connections forgotten after idle_timeout"),
		halfClosedTimeout: c("half_closed_timeout", "connections forgotten after half_closed_timeout"),
		denied:            c("denied", "connections that were denied"),
		holdFull:          c("stream_hold_full", "connections denied because a stream stage held back more than it may"),
		panicked:          c("stream_panics", "connections reset because a stream stage panicked"),
		sightLost:         c("sight_lost", "connections that passed on unseen because they could be followed no longer"),
		resetsSent:        c("resets_sent", "resets sent to ends of connections that are over"),

		midstream:          c("midstream", "TCP packets passed on because the connection's SYN was not seen"),
		midstreamInspected: c("midstream_inspected", "connections looked at from their middle"),
		wrongPort:          c("wrong_port", "packets of a connection passed on because they came in by the port of the other end"),
		flowLimit:          c("tcp_flow_limit", "new connections beyond max_flows"),
		draining:           c("bypassed_draining", "new connections passed on while the stage was draining"),
		fragmentedSYN:      c("unsupported_fragmented_syn", "new connections whose SYN was fragmented"),

		bytesUp:        c("bytes_to_server", "payload bytes shown that went to servers"),
		bytesDown:      c("bytes_to_client", "payload bytes shown that went to clients"),
		outOfOrder:     c("out_of_order", "segments that came before others in front of them"),
		repeated:       c("repeated", "segments that brought nothing new"),
		conflicts:      c("conflicts", "segments that differ from what has passed at the same place"),
		urgent:         c("urgent_cleared", "segments whose urgent pointer was taken out: urgent data stays in line"),
		optionsRemoved: c("options_removed", "SYNs of which Fast Open or Multipath TCP was taken out"),
		synData:        c("syn_data_cut", "SYNs whose payload was cut off: it comes again after the handshake"),
		held:           c("held", "packets that waited for a stream stage"),
		heldRepeated:   c("held_repeated", "packets taken out because what they repeat is waiting"),
		heldGone:       c("held_let_go", "packets that went on before the stages had decided: their sender would have sent nothing else"),
		heldDropped:    c("held_dropped", "packets that waited and never left: their connection was over"),
		noFrames:       c("tx_no_frame", "turns that ended with packets waiting because no frame was free"),
	}
}
