package control

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"penstock/internal/latency"
	"penstock/pipeline"
)

// metricsHandler renders a fresh sample at each scrape. It is not compressed, whoever
// asks: that costs more CPU time than all the rest, and saves a few KiB.
func metricsHandler(src Source) http.Handler {
	return promhttp.HandlerFor(Gatherer(src), promhttp.HandlerOpts{DisableCompression: true})
}

// Gatherer gives what a scrape would see.
func Gatherer(src Source) prometheus.Gatherer {
	reg := prometheus.NewRegistry()
	reg.MustRegister(&collector{src}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

type collector struct{ src Source }

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// scrape is one rendering.
type scrape chan<- prometheus.Metric

func (ch scrape) set(m *Metric, v float64, labels ...string) {
	kind := prometheus.GaugeValue
	if m.Kind == "counter" {
		kind = prometheus.CounterValue
	}
	for i, l := range labels {
		labels[i] = strings.ToValidUTF8(l, "\uFFFD")
	}
	ch <- prometheus.MustNewConstMetric(m.desc, kind, v, labels...)
}

func (ch scrape) count(m *Metric, n uint64, labels ...string) { ch.set(m, float64(n), labels...) }

// Collect implements prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	ch, s := scrape(to), c.src.Sample()
	ch.set(metricInfo, 1, s.Version, s.Name, s.Mode)
	ch.set(metricUptime, s.UptimeSeconds)
	ch.set(metricDraining, bool01(s.Draining))
	ch.set(metricWarnings, float64(len(s.Warnings)))
	for i := range s.Ports {
		ch.port(&s.Ports[i])
	}
	for result, n := range s.OffloadResults {
		ch.count(metricOffloads, n, result)
	}
	ch.count(metricLost, s.LostEvents)
	ch.set(metricFlowLimit, float64(s.Flows.Limit))
	for i := range s.Chains {
		ch.chain(&s.Chains[i])
	}
	for i := range s.Workers {
		ch.worker(&s.Workers[i])
	}
	f := s.Frames
	ch.set(metricFrames, float64(f.Free), "free")
	ch.set(metricFrames, float64(f.InFlight), "in_flight")
	ch.set(metricFrames, float64(max(f.Total-f.Free-f.InFlight, 0)), "in_hand")
	for event, n := range s.Router {
		ch.count(metricRouter, n, event)
	}
	records := s.Records
	if s.RemovedRecords != nil {
		records = append(slices.Clone(records), *s.RemovedRecords)
	}
	for _, r := range records {
		ch.count(metricRecords, r.Written, r.To, "written")
		ch.count(metricRecords, r.Dropped, r.To, "dropped")
		ch.count(metricRecords, r.Failed, r.To, "failed")
		ch.count(metricQueued, r.Queued, r.To)
	}
	for _, e := range s.Exports {
		ch.count(metricExports, e.Sent, e.Kind, e.To, "sent")
		ch.count(metricExports, e.Dropped, e.Kind, e.To, "dropped")
		ch.count(metricExports, e.Failed, e.Kind, e.To, "failed")
		if e.Kind == "otlp_traces" {
			ch.count(metricExports, e.Skipped, e.Kind, e.To, "skipped")
		}
		ch.count(metricWaiting, e.Queued, e.Kind, e.To)
		ch.set(metricReached, bool01(e.Up), e.Kind, e.To)
	}
}

func (ch scrape) port(p *Port) {
	ch.set(metricPortUp, bool01(p.LinkUp), p.Name, p.Interface)
	ch.set(metricPortXDP, 1, p.Name, p.Interface, p.XDP)
	for way, n := range p.Stalls {
		ch.count(metricStalls, n, p.Name, way)
	}
	for verdict, reasons := range p.Verdicts {
		for reason, n := range reasons {
			ch.count(metricXDPPackets, n.Packets, p.Name, verdict, reason)
			ch.count(metricXDPBytes, n.Bytes, p.Name, verdict, reason)
		}
	}
	for _, q := range p.Queues {
		id := strconv.Itoa(q.Queue)
		ch.set(metricQueueInfo, 1, p.Name, id, q.Mode)
		ch.count(metricQueueRx, q.RxPackets, p.Name, id)
		ch.count(metricQueueRxB, q.RxBytes, p.Name, id)
		ch.count(metricQueueTx, q.TxPackets, p.Name, id)
		ch.count(metricQueueTxB, q.TxBytes, p.Name, id)
		ch.count(metricQueueRefuse, q.TxRefused, p.Name, id)
		ch.set(metricQueueHeld, float64(q.InFlight), p.Name, id)
		for event, n := range q.Extra {
			ch.count(metricQueueExtra, n, p.Name, id, event)
		}
		for _, r := range q.Rings {
			ch.set(metricRingUsed, float64(r.Used), p.Name, id, r.Name)
			ch.set(metricRingSize, float64(r.Size), p.Name, id, r.Name)
		}
	}
}

func (ch scrape) chain(c *Chain) {
	ch.count(metricChain, c.Packets, c.Name)
	ch.count(metricChainBytes, c.Bytes, c.Name)
	for depth, n := range c.Flows {
		ch.set(metricFlows, float64(n), c.Name, depth)
	}
	if c.Depth == pipeline.DepthTerminate.String() {
		ch.set(metricTerminated, float64(c.Terminated()), c.Name)
	}
	for i := range c.Stages {
		st, index := &c.Stages[i], strconv.Itoa(i+1)
		for verdict, n := range map[string]uint64{"continue": st.Continued, "drop": st.Dropped, "forward": st.Forwarded, "consume": st.Consumed} {
			ch.count(metricStage, n, c.Name, st.Kind, index, verdict)
		}
		ch.set(metricTimed, float64(st.TimedNanoseconds)/1e9, c.Name, st.Kind, index)
		ch.count(metricTimedPkts, st.TimedPackets, c.Name, st.Kind, index)
		for name, n := range st.Counters {
			m := metricStageEvents
			if st.Gauges[name] {
				m = metricStageHeld
			}
			ch.count(m, n, c.Name, st.Kind, index, name)
		}
		for j := range st.Histograms {
			ch <- stageHistogram(&st.Histograms[j], c.Name, st.Kind, index)
		}
	}
}

func (ch scrape) worker(w *pipeline.WorkerStats) {
	id := strconv.Itoa(w.ID)
	ch.count(metricPackets, w.Totals.Packets, id)
	ch.count(metricBytes, w.Totals.Bytes, id)
	ch.count(metricEnded, w.Totals.Forwarded, id, "forwarded")
	ch.count(metricEnded, w.Totals.Consumed, id, "consumed")
	for reason, n := range w.Totals.Dropped {
		ch.count(metricDropped, n, id, reason)
	}
	ch.count(metricEmitted, w.Totals.Emitted, id, "sent")
	ch.count(metricEmitted, w.Totals.EmitLost, id, "lost")
	ch.count(metricTurns, w.Turns-w.IdleTurns, id, "busy")
	ch.count(metricTurns, w.IdleTurns, id, "idle")
	ch.count(metricWaits, w.Waits, id)
	ch.count(metricHand, w.HandedOver, id)
	ch.count(metricPanics, w.Panics, id)
	ch.count(metricReleased, w.Offloaded, id, "taken")
	ch.count(metricReleased, w.NotTaken, id, "not_taken")
	ch <- histogram(metricOffloadTime, &w.OffloadTimes, id)
}

func bool01(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// stageHistogram renders a histogram of a stage, under its own name: some follow a
// convention of their field.
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
func histogram(m *Metric, s *latency.Snapshot, labels ...string) prometheus.Metric {
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
	return prometheus.MustNewConstHistogram(m.desc, s.Count, s.Sum.Seconds(), cumulative, labels...)
}
