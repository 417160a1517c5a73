package otlp

import (
	"context"
	"math"
	"time"

	dto "github.com/prometheus/client_model/go"
	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/metrics/v1"
	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	metricspb "go.opentelemetry.io/proto/slim/otlp/metrics/v1"
	"google.golang.org/protobuf/proto"
)

// sendMetrics is the body of the goroutine for metrics.
func (e *Exporter) sendMetrics() {
	tick := time.NewTicker(e.spec.Interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			e.sendMetricsOnce()
		case <-e.sample.Done():
			return
		}
	}
}

// sendMetricsOnce sends what the metrics are now. What could not be sent is not
// kept: the next sample says more.
func (e *Exporter) sendMetricsOnce() {
	families, err := e.gather.Gather()
	if err != nil {
		e.metrics.setErr("gather metrics: " + err.Error()) // of some; the others are there
	}
	metrics, points := convert(families, e.resource.Started, time.Now())
	if points == 0 {
		return
	}
	e.metrics.accepted.Add(points)
	ctx, cancel := context.WithTimeout(e.sample, e.spec.Interval)
	defer cancel()
	out := e.metrics.send(e.sample, ctx, &collectorpb.ExportMetricsServiceRequest{ResourceMetrics: []*metricspb.ResourceMetrics{{
		Resource: e.resource.proto(), ScopeMetrics: []*metricspb.ScopeMetrics{{Scope: scope(e.resource), Metrics: metrics}},
	}}}, func(b []byte) (int64, string) {
		var r collectorpb.ExportMetricsServiceResponse
		if proto.Unmarshal(b, &r) != nil { // whatever it is, it came with a status of success
			return 0, ""
		}
		return r.GetPartialSuccess().GetRejectedDataPoints(), r.GetPartialSuccess().GetErrorMessage()
	})
	failed := points
	if out.err == nil {
		failed = min(uint64(max(out.rejected, 0)), points)
	}
	e.metrics.failed.Add(failed)
	e.metrics.sent.Add(points - failed)
}

// convert makes OTLP of what a scrape would be, with the names that a scrape
// has. Sums and histograms count from the start.
func convert(families []*dto.MetricFamily, started, now time.Time) (metrics []*metricspb.Metric, points uint64) {
	from, at := uint64(started.UnixNano()), uint64(now.UnixNano())
	for _, f := range families {
		m := &metricspb.Metric{Name: f.GetName(), Description: f.GetHelp()}
		number := func(p *dto.Metric, v float64) *metricspb.NumberDataPoint {
			return &metricspb.NumberDataPoint{
				Attributes: labels(p), StartTimeUnixNano: from, TimeUnixNano: at, Value: &metricspb.NumberDataPoint_AsDouble{AsDouble: v},
			}
		}
		switch f.GetType() {
		case dto.MetricType_COUNTER:
			sum := &metricspb.Sum{AggregationTemporality: metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE, IsMonotonic: true}
			for _, p := range f.Metric {
				sum.DataPoints = append(sum.DataPoints, number(p, p.GetCounter().GetValue()))
			}
			m.Data = &metricspb.Metric_Sum{Sum: sum}
		case dto.MetricType_GAUGE, dto.MetricType_UNTYPED:
			gauge := &metricspb.Gauge{}
			for _, p := range f.Metric {
				v := p.GetGauge().GetValue()
				if p.Untyped != nil {
					v = p.GetUntyped().GetValue()
				}
				n := number(p, v)
				n.StartTimeUnixNano = 0
				gauge.DataPoints = append(gauge.DataPoints, n)
			}
			m.Data = &metricspb.Metric_Gauge{Gauge: gauge}
		case dto.MetricType_HISTOGRAM:
			h := &metricspb.Histogram{AggregationTemporality: metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE}
			for _, p := range f.Metric {
				h.DataPoints = append(h.DataPoints, histogram(p, from, at))
			}
			m.Data = &metricspb.Metric_Histogram{Histogram: h}
		case dto.MetricType_SUMMARY:
			s := &metricspb.Summary{}
			for _, p := range f.Metric {
				d := &metricspb.SummaryDataPoint{
					Attributes: labels(p), StartTimeUnixNano: from, TimeUnixNano: at, Count: p.GetSummary().GetSampleCount(), Sum: p.GetSummary().GetSampleSum(),
				}
				for _, q := range p.GetSummary().Quantile {
					d.QuantileValues = append(d.QuantileValues, &metricspb.SummaryDataPoint_ValueAtQuantile{Quantile: q.GetQuantile(), Value: q.GetValue()})
				}
				s.DataPoints = append(s.DataPoints, d)
			}
			m.Data = &metricspb.Metric_Summary{Summary: s}
		default:
			continue
		}
		metrics = append(metrics, m)
		points += uint64(len(f.Metric))
	}
	return metrics, points
}

func labels(p *dto.Metric) (a []*commonpb.KeyValue) {
	for _, l := range p.Label {
		a = append(a, text(l.GetName(), l.GetValue()))
	}
	return a
}

// histogram takes what lies below each bound, as Prometheus counts it, apart
// into what lies between two.
func histogram(p *dto.Metric, from, at uint64) *metricspb.HistogramDataPoint {
	h := p.GetHistogram()
	sum := h.GetSampleSum()
	d := &metricspb.HistogramDataPoint{Attributes: labels(p), StartTimeUnixNano: from, TimeUnixNano: at, Count: h.GetSampleCount(), Sum: &sum}
	var below uint64
	for _, b := range h.Bucket {
		if math.IsInf(b.GetUpperBound(), 1) {
			continue
		}
		d.ExplicitBounds = append(d.ExplicitBounds, b.GetUpperBound())
		d.BucketCounts = append(d.BucketCounts, b.GetCumulativeCount()-below)
		below = b.GetCumulativeCount()
	}
	d.BucketCounts = append(d.BucketCounts, d.Count-below)
	return d
}
