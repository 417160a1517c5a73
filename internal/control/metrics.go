package control

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"penstock/internal/latency"
	"penstock/pipeline"
)

// metricsHandler renders a fresh Status at each scrape. Names follow
// penstock_<scope>_<noun>_<unit|total>.
func metricsHandler(src Source) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(&collector{src}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
}

type collector struct{ src Source }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("penstock_"+name, help, labels, nil)
}

var (
	descInfo    = desc("build_info", "Version of the appliance, and its name.", "version", "name")
	descUptime  = desc("uptime_seconds", "Seconds since the appliance started.")
	descPackets = desc("packets_total", "Packets received from all ports.")
	descBytes   = desc("bytes_total", "Bytes of the packets received from all ports.")
	descEnd     = desc("packet_ends_total", "What became of received packets; with penstock_dropped_packets_total it adds up to penstock_packets_total.", "end")
	descDropped = desc("dropped_packets_total", "Packets dropped in user space, by reason.", "reason")
	descEmitted = desc("emitted_packets_total", "Packets that stages made themselves, sent or lost for want of room.", "result")

	descPortUp      = desc("port_up", "1 if the link was up when it was last used.", "port", "interface")
	descPortXDP     = desc("port_xdp_info", "How XDP is attached, as the kernel reports it.", "port", "interface", "mode")
	descXDPPackets  = desc("xdp_packets_total", "Packets that the XDP program saw, by what it did with them.", "port", "reason")
	descXDPBytes    = desc("xdp_bytes_total", "Bytes of the packets that the XDP program saw.", "port", "reason")
	descQueueInfo   = desc("queue_info", "Copy mode of the AF_XDP socket, as the kernel reports it.", "port", "queue", "mode")
	descQueueRx     = desc("queue_received_packets_total", "Packets received by an AF_XDP socket.", "port", "queue")
	descQueueRxB    = desc("queue_received_bytes_total", "Bytes received by an AF_XDP socket.", "port", "queue")
	descQueueTx     = desc("queue_sent_packets_total", "Packets given to an AF_XDP socket to send.", "port", "queue")
	descQueueTxB    = desc("queue_sent_bytes_total", "Bytes given to an AF_XDP socket to send.", "port", "queue")
	descQueueRefuse = desc("queue_refused_packets_total", "Packets that found the transmit ring full.", "port", "queue")
	descQueueExtra  = desc("queue_events_total", "Ring and system call events of an AF_XDP socket.", "port", "queue", "event")
	descQueueFrames = desc("queue_frames", "Frames that the kernel holds for an AF_XDP socket.", "port", "queue")

	descChain      = desc("chain_packets_total", "Packets a chain was given.", "chain")
	descChainBytes = desc("chain_bytes_total", "Bytes a chain was given.", "chain")
	descStage      = desc("stage_packets_total", "Packets a stage decided on, by verdict.", "chain", "stage", "index", "verdict")
	descStageCtr   = desc("stage_counter", "A stage's own counters and gauges; its manual lists them.", "chain", "stage", "index", "counter")

	descFrames  = desc("frames", "Packet memory, by where the frames are.", "state")
	descFlows   = desc("flows", "Live flows, by table.", "table")
	descWorker  = desc("worker_turns_total", "Turns a worker has taken.", "worker", "kind")
	descHand    = desc("worker_handed_over_packets_total", "Packets handed to the worker that owns their flow.", "worker")
	descPanics  = desc("worker_stage_panics_total", "Panics of stages.", "worker")
	descOffload = desc("worker_offloaded_flows_total", "Flows that all stages have released, by whether XDP took them.", "worker", "result")
	descDelay   = desc("worker_offload_seconds", "From the release of a flow by the last stage to XDP having it.", "worker")
	descRecords = desc("record_events_total", "Events, by sink and what became of them.", "to", "result")
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := c.src.Status()
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(descInfo, 1, s.Version, s.Name)
	gauge(descUptime, s.UptimeSeconds)
	counter(descPackets, s.Totals.Packets)
	counter(descBytes, s.Totals.Bytes)
	counter(descEnd, s.Totals.Forwarded, "forwarded")
	counter(descEnd, s.Totals.Consumed, "consumed")
	for reason, n := range s.Totals.Dropped {
		counter(descDropped, n, reason)
	}
	counter(descEmitted, s.Totals.Emitted, "sent")
	counter(descEmitted, s.Totals.EmitLost, "lost")
	for _, p := range s.Ports {
		gauge(descPortUp, bool01(p.LinkUp), p.Name, p.Interface)
		gauge(descPortXDP, 1, p.Name, p.Interface, p.XDP)
		for reason, n := range p.Reasons {
			counter(descXDPPackets, n.Packets, p.Name, reason)
			counter(descXDPBytes, n.Bytes, p.Name, reason)
		}
		for _, q := range p.Queues {
			id := strconv.Itoa(q.Queue)
			gauge(descQueueInfo, 1, p.Name, id, q.Mode)
			counter(descQueueRx, q.RxPackets, p.Name, id)
			counter(descQueueRxB, q.RxBytes, p.Name, id)
			counter(descQueueTx, q.TxPackets, p.Name, id)
			counter(descQueueTxB, q.TxBytes, p.Name, id)
			counter(descQueueRefuse, q.TxRefused, p.Name, id)
			gauge(descQueueFrames, float64(q.InFlight), p.Name, id)
			for event, n := range q.Extra {
				counter(descQueueExtra, n, p.Name, id, event)
			}
		}
	}
	for _, c := range s.Chains {
		counter(descChain, c.Packets, c.Name)
		counter(descChainBytes, c.Bytes, c.Name)
		for i, st := range c.Stages {
			index := strconv.Itoa(i + 1)
			counter(descStage, st.Continued, c.Name, st.Kind, index, "continue")
			counter(descStage, st.Dropped, c.Name, st.Kind, index, "drop")
			counter(descStage, st.Forwarded, c.Name, st.Kind, index, "forward")
			counter(descStage, st.Consumed, c.Name, st.Kind, index, "consume")
			for name, n := range st.Counters {
				gauge(descStageCtr, float64(n), c.Name, st.Kind, index, name)
			}
			for i := range st.Histograms {
				ch <- stageHistogram(&st.Histograms[i], c.Name, st.Kind, index)
			}
		}
	}
	gauge(descFrames, float64(s.Frames.Free), "free")
	gauge(descFrames, float64(s.Frames.InFlight), "in_flight")
	gauge(descFlows, float64(s.Flows.Steered), "steered")
	gauge(descFlows, float64(s.Flows.Offloaded), "offloaded")
	gauge(descFlows, float64(s.Flows.Terminated), "terminated")
	for _, w := range s.Workers {
		id := strconv.Itoa(w.ID)
		counter(descWorker, w.Turns-w.IdleTurns, id, "busy")
		counter(descWorker, w.IdleTurns, id, "idle")
		counter(descHand, w.HandedOver, id)
		counter(descPanics, w.Panics, id)
		counter(descOffload, w.Offloaded, id, "taken")
		counter(descOffload, w.NotTaken, id, "not_taken")
		ch <- histogram(descDelay, &w.OffloadTimes, id)
	}
	for _, r := range s.Records {
		counter(descRecords, r.Written, r.To, "written")
		counter(descRecords, r.Dropped, r.To, "dropped")
		counter(descRecords, r.Failed, r.To, "failed")
	}
}

func bool01(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// stageHistogram renders a histogram of a stage, under its own name: a stage that
// has one follows a convention of its field.
func stageHistogram(h *pipeline.HistogramStats, chain, stage, index string) prometheus.Metric {
	names, values := []string{"chain", "stage", "index"}, []string{chain, stage, index}
	for _, l := range h.Labels {
		names, values = append(names, l.Name), append(values, strings.ToValidUTF8(l.Value, "\uFFFD"))
	}
	cumulative := make(map[float64]uint64, len(h.Bounds))
	var n uint64
	for i, bound := range h.Bounds {
		n += h.Counts[i]
		cumulative[bound] = n
	}
	return prometheus.MustNewConstHistogram(prometheus.NewDesc(h.Name, h.Help, names, nil), h.Count(), h.Sum, cumulative, values...)
}

// bounds of the histograms, in seconds.
var bounds = []float64{1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10}

// histogram renders a snapshot; what a bucket of its own counts is in the first
// bound that is not below it.
func histogram(d *prometheus.Desc, s *latency.Snapshot, labels ...string) prometheus.Metric {
	cumulative := make(map[float64]uint64, len(bounds))
	var n uint64
	left := s.Buckets
	for _, bound := range bounds {
		for len(left) > 0 && left[0].Most.Seconds() <= bound {
			n += left[0].Count
			left = left[1:]
		}
		cumulative[bound] = n
	}
	return prometheus.MustNewConstHistogram(d, s.Count, s.Sum.Seconds(), cumulative, labels...)
}
