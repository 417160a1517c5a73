package control

import "github.com/prometheus/client_golang/prometheus"

// Metric describes a metric of /metrics, for the documentation.
type Metric struct {
	Name, Kind, Help string // Kind: "counter", "gauge" or "histogram"
	Labels           []string

	desc *prometheus.Desc
}

var metrics []*Metric

// Metrics returns the appliance's own metrics, in the order of the
// documentation. Stages add histograms of their own (pipeline.Histogram).
func Metrics() (all []Metric) {
	for _, m := range metrics {
		all = append(all, *m)
	}
	return all
}

func define(kind, name, help string, labels []string) *Metric {
	m := &Metric{Name: "penstock_" + name, Kind: kind, Help: help, Labels: labels}
	m.desc = prometheus.NewDesc(m.Name, help, labels, nil)
	metrics = append(metrics, m)
	return m
}

func counter(name, help string, labels ...string) *Metric {
	return define("counter", name, help, labels)
}

func gauge(name, help string, labels ...string) *Metric { return define("gauge", name, help, labels) }

// Names are penstock_<scope>_<noun>_<unit|total>; an _info is always 1 and says
// what it has to say in its labels.
var (
	metricInfo     = gauge("appliance_info", "Always 1; says which version runs, under which name.", "version", "name", "mode")
	metricUptime   = gauge("appliance_uptime_seconds", "Seconds since the appliance started.")
	metricDraining = gauge("appliance_draining_state", "1 while the appliance lets connections finish before it ends.")
	metricWarnings = gauge("appliance_warning_states", "States that an operator wants to know of; `penstock status` has the words.")

	metricPortUp     = gauge("port_link_state", "1 if the port's link is up.", "port", "interface")
	metricPortXDP    = gauge("port_xdp_info", "Always 1; says how XDP is attached, as the kernel reports it.", "port", "interface", "mode")
	metricStalls     = counter("port_stalls_total", "How often packets went into one end of a way and none came out of the other for some seconds: xdp (from the NIC to XDP), sockets (from XDP to user space), tx (to the driver, whose frames did not come back).", "port", "way")
	metricXDPPackets = counter("xdp_packets_total", "Packets that the XDP program saw, by what it did with them and why.", "port", "verdict", "reason")
	metricXDPBytes   = counter("xdp_bytes_total", "Bytes of the packets that the XDP program saw, by what it did with them and why.", "port", "verdict", "reason")
	metricOffloads   = counter("xdp_offloads_total", "Flows that user space gave to XDP, by what became of that; all but taken stay in user space.", "result")
	metricLost       = counter("xdp_lost_events_total", "Events for records (flow_start, drop) that found the ring to user space full.")

	metricFlows      = gauge("table_flows", "Flows in XDP's table, by depth, as its last walk counted them: some seconds ago.", "chain", "depth")
	metricFlowLimit  = gauge("table_limit_flows", "Flows that XDP's table has room for.")
	metricTerminated = gauge("stack_terminated_flows", "Connections that the netstack terminates.", "chain")

	metricQueueInfo   = gauge("queue_info", "Always 1; says the copy mode of the AF_XDP socket, as the kernel reports it.", "port", "queue", "mode")
	metricQueueRx     = counter("queue_received_packets_total", "Packets received by an AF_XDP socket.", "port", "queue")
	metricQueueRxB    = counter("queue_received_bytes_total", "Bytes received by an AF_XDP socket.", "port", "queue")
	metricQueueTx     = counter("queue_sent_packets_total", "Packets given to an AF_XDP socket to send.", "port", "queue")
	metricQueueTxB    = counter("queue_sent_bytes_total", "Bytes given to an AF_XDP socket to send.", "port", "queue")
	metricQueueRefuse = counter("queue_refused_packets_total", "Packets that found the transmit ring full.", "port", "queue")
	metricQueueExtra  = counter("queue_events_total", "Events of an AF_XDP socket: rx_ring_full and fill_ring_empty are packets lost for want of time, no_frames is packet memory that ran out.", "port", "queue", "event")
	metricQueueHeld   = gauge("queue_held_frames", "Frames that the kernel holds for an AF_XDP socket.", "port", "queue")
	metricRingUsed    = gauge("queue_ring_used_slots", "Slots in use of a ring of an AF_XDP socket, at the end of a turn. rx is what waits for the worker, fill what the kernel can receive into.", "port", "queue", "ring")
	metricRingSize    = gauge("queue_ring_size_slots", "Slots of a ring of an AF_XDP socket.", "port", "queue", "ring")

	metricPackets     = counter("worker_received_packets_total", "Packets that a worker received from its queues.", "worker")
	metricBytes       = counter("worker_received_bytes_total", "Bytes of the packets that a worker received.", "worker")
	metricEnded       = counter("worker_ended_packets_total", "What became of received packets; with penstock_worker_dropped_packets_total it adds up to penstock_worker_received_packets_total.", "worker", "end")
	metricDropped     = counter("worker_dropped_packets_total", "Packets dropped in user space, by reason.", "worker", "reason")
	metricEmitted     = counter("worker_emitted_packets_total", "Packets that stages made themselves, sent or lost for want of room.", "worker", "result")
	metricTurns       = counter("worker_turns_total", "Turns a worker has taken, by whether there was work in them.", "worker", "kind")
	metricWaits       = counter("worker_waits_total", "How often a worker went to sleep.", "worker")
	metricHand        = counter("worker_handed_over_packets_total", "Packets handed to the worker that owns their flow.", "worker")
	metricPanics      = counter("worker_stage_panics_total", "Panics of stages.", "worker")
	metricReleased    = counter("worker_released_flows_total", "Flows that all stages have released, by whether XDP took them.", "worker", "result")
	metricOffloadTime = define("histogram", "worker_offload_seconds", "From the release of a flow by the last stage to XDP having it.", []string{"worker"})

	metricChain       = counter("chain_packets_total", "Packets a chain was given.", "chain")
	metricChainBytes  = counter("chain_bytes_total", "Bytes a chain was given.", "chain")
	metricStage       = counter("stage_packets_total", "Packets a stage decided on, by verdict.", "chain", "stage", "index", "verdict")
	metricStageEvents = counter("stage_events_total", "A stage's own counters; its manual (penstock stages KIND) says what each counts.", "chain", "stage", "index", "event")
	metricStageHeld   = gauge("stage_held_units", "What a stage has or holds now; its manual says what, and in which unit.", "chain", "stage", "index", "what")
	metricTimed       = counter("stage_timed_seconds_total", "What a stage took in one turn of 64, stream stages behind it included; divided by penstock_stage_timed_packets_total it is the time for each packet.", "chain", "stage", "index")
	metricTimedPkts   = counter("stage_timed_packets_total", "Packets that a stage was shown in the turns that were timed.", "chain", "stage", "index")

	metricFrames  = gauge("memory_frames", "Packet memory, by where the frames are: free, in_flight in rings and NIC, in_hand of workers.", "state")
	metricRouter  = counter("router_events_total", "Packets that XDP could not route by itself, by what became of them, and changes of the kernel's tables. Router mode only.", "event")
	metricRecords = counter("record_events_total", "Events for records, by sink (removed: those that reloads have removed, together) and what became of them.", "to", "result")
	metricQueued  = gauge("record_queued_events", "Events that wait to be written to a sink.", "to")
	metricExports = counter("export_items_total", "What was for a collector, by what became of it: flows (kind ipfix), spans (otlp_traces; skipped: not sampled), data points (otlp_metrics).", "kind", "to", "result")
	metricWaiting = gauge("export_queued_units", "What waits to be sent to a collector, as penstock_export_items_total counts it.", "kind", "to")
	metricReached = gauge("export_up_state", "1 if the collector took what was sent last, or nothing has been sent.", "kind", "to")
)
