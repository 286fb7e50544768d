package healthz

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const namespace = "slasha_init"

// meters are the figures that can't be read off a Status.
type meters struct {
	requests *prometheus.CounterVec
	took     *prometheus.HistogramVec
	lag      prometheus.Histogram
}

func newMeters() meters {
	// From a request to a bucket next door to a snapshot over a slow line.
	seconds := []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}
	return meters{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "requests_total",
			Help: "Operations on the replica by kind (check, list, read, write, delete) and outcome: ok, or the class of the error.",
		}, []string{"op", "outcome"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Name: "request_seconds", Buckets: seconds,
			Help: "How long successful operations on the replica took, retries included.",
		}, []string{"op"}),
		lag: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Name: "lag_seconds", Buckets: seconds,
			Help: "How old the oldest commit of an upload was when the replica acknowledged it.",
		}),
	}
}

// Requested records an operation on the replica: its kind, how long it took, and
// "ok" or the class of its error.
func (h *Health) Requested(op string, took time.Duration, outcome string) {
	h.meters.requests.WithLabelValues(op, outcome).Inc()
	if outcome == "ok" {
		h.meters.took.WithLabelValues(op).Observe(took.Seconds())
	}
}

// metrics serves our own figures and, from the global registry, Litestream's.
func (h *Health) metrics() http.Handler {
	own := prometheus.NewRegistry()
	gauge := func(name, help string, value func(Status) float64) {
		own.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: namespace, Name: name, Help: help,
		}, func() float64 { return value(h.Status()) }))
	}
	gauge("healthy", "1 when /healthz answers 200.", func(s Status) float64 { return float(s.Healthy) })
	gauge("enabled", "1 when backups are configured.", func(s Status) float64 { return float(s.Enabled) })
	gauge("last_synced_timestamp_seconds", "Everything committed before this is in the replica; 0 when unknown.",
		func(s Status) float64 { return seconds(s.LastSyncedAt) })
	gauge("last_checked_timestamp_seconds", "When the replica last answered well; 0 when never.",
		func(s Status) float64 { return seconds(s.LastCheckedAt) })
	gauge("pending_since_timestamp_seconds", "Since when commits wait for the replica; 0 when none does.",
		func(s Status) float64 { return seconds(s.PendingSince) })
	gauge("restore_bytes_done", "Bytes read by the restore of this start.", func(s Status) float64 { return float64(s.Restore.BytesDone) })
	gauge("restore_bytes_total", "Bytes to read for the restore of this start.", func(s Status) float64 { return float64(s.Restore.BytesTotal) })
	gauge("restore_took_seconds", "How long the restore of this start took.", func(s Status) float64 { return s.Restore.TookSeconds })
	gauge("last_verified_timestamp_seconds", "When the replica was last restored and checked in a drill; 0 when never.",
		func(s Status) float64 { return seconds(s.LastVerifiedAt) })
	gauge("verify_failed", "1 when the newest drill found that the replica can't be restored as it should be.", func(Status) float64 {
		h.mu.Lock()
		defer h.mu.Unlock()
		return float(h.drill != "")
	})
	gauge("verify_took_seconds", "How long the newest drill of this start took; 0 when there was none.", func(Status) float64 {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.drilled.Seconds()
	})
	gauge("processes", "Processes of the app that run.", func(s Status) float64 { return float64(len(s.Processes)) })
	own.MustRegister(h.meters.requests, h.meters.took, h.meters.lag)
	return promhttp.HandlerFor(prometheus.Gatherers{own, prometheus.DefaultGatherer}, promhttp.HandlerOpts{})
}

func float(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func seconds(t *Time) float64 {
	if t == nil {
		return 0
	}
	return float64(time.Time(*t).UnixMicro()) / 1e6
}
