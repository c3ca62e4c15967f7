package edge

import (
	"bytes"
	"context"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"

	"bulkhead/api/internalpb"
	"bulkhead/fault"
)

// metrics of an edge. No label takes its values from clients or apps, so the
// number of series is fixed, whatever is asked.
type metrics struct {
	reg *prometheus.Registry

	requests  [2][2][6]prometheus.Counter // [https][h2][status class]
	errors    *prometheus.CounterVec      // by code
	duration  prometheus.Histogram
	inflight  prometheus.Gauge
	retries   prometheus.Counter
	overSoft  prometheus.Counter
	queued    prometheus.Counter
	dials     prometheus.Counter
	conns     *prometheus.GaugeVec   // by kind
	accepted  *prometheus.CounterVec // by kind
	refused   *prometheus.CounterVec // by reason
	tlsFails  *prometheus.CounterVec // by code
	certs     *prometheus.CounterVec // by result
	routes    prometheus.GaugeFunc
	updates   prometheus.Counter
	routeLive prometheus.Histogram
	synced    prometheus.Gauge
	cacheErrs prometheus.Counter
	cookies   prometheus.Counter
	wakes     *prometheus.CounterVec // by result
	wakeTime  prometheus.Histogram
	held      prometheus.Gauge
	idles     *prometheus.CounterVec // by result
}

const (
	ns = "bulkhead"
	ss = "edge"
)

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Subsystem: ss, Name: name, Help: help})
}

func counters(name, help, label string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: ss, Name: name, Help: help}, []string{label})
}

func histogram(name, help string, buckets []float64) prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: ns, Subsystem: ss, Name: name, Help: help, Buckets: buckets})
}

func gauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: ns, Subsystem: ss, Name: name, Help: help})
}

func newMetrics(routes func() int) *metrics {
	m := &metrics{
		reg:       prometheus.NewRegistry(),
		errors:    counters("errors_total", "Requests and connections that the edge itself answered with an error, by code.", "code"),
		duration:  histogram("request_seconds", "Time from a request's header to the end of its response.", prometheus.ExponentialBuckets(0.0005, 2.5, 14)),
		inflight:  gauge("requests_in_flight", "Requests under way."),
		retries:   counter("retries_total", "Attempts at another Machine after one took no request."),
		overSoft:  counter("over_soft_limit_total", "Requests sent while every Machine was at its soft limit."),
		queued:    counter("queued_total", "Requests that waited because every Machine was at its hard limit."),
		dials:     counter("backend_dials_total", "Connections opened to Machines."),
		conns:     prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: ns, Subsystem: ss, Name: "connections", Help: "Open client connections, by listener."}, []string{"listener"}),
		accepted:  counters("accepted_total", "Client connections, by what they became.", "kind"),
		refused:   counters("refused_total", "Client connections closed unserved, by reason.", "reason"),
		tlsFails:  counters("tls_failures_total", "TLS handshakes that failed, by code.", "code"),
		certs:     counters("certificates_total", "Certificates of apps, by where they came from or how they failed.", "result"),
		updates:   counter("route_updates_total", "Routes set or removed."),
		routeLive: histogram("route_latency_seconds", "Time from the change of a route to its use.", []float64{.0005, .001, .002, .005, .01, .02, .03, .05, .1, .25, .5, 1, 5, 30}),
		synced:    gauge("routes_synced", "1 while the table follows the controller, 0 while it is what was cached."),
		wakes:     counters("wakes_total", "Wakings of Machines that were asked for, by how they ended.", "result"),
		wakeTime:  histogram("wake_seconds", "Time from asking for a Machine to be woken until it runs.", []float64{.05, .1, .2, .3, .5, .75, 1, 2, 5, 10, 30}),
		held:      gauge("requests_held", "Requests that wait for a Machine to be woken."),
		idles:     counters("idle_reports_total", "Machines that were reported idle, by what came of it.", "result"),
		cookies:   counter("cookies_refused_total", "Cookies of apps that were left out because their Domain is the cluster's."),
		cacheErrs: counter("route_cache_errors_total", "Writes of the route cache that failed."),
	}
	req := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: ss, Name: "requests_total", Help: "Requests, by scheme, HTTP version and status class."}, []string{"scheme", "http", "code"})
	for i, scheme := range []string{"http", "https"} {
		for j, v := range []string{"1", "2"} {
			for k := range 6 {
				code := strconv.Itoa(k) + "xx"
				if k == 0 {
					code = "aborted" // the client or the Machine went away mid-way
				}
				m.requests[i][j][k] = req.WithLabelValues(scheme, v, code)
			}
		}
	}
	m.routes = prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: ns, Subsystem: ss, Name: "routes", Help: "Apps in the route table."}, func() float64 { return float64(routes()) })
	m.reg.MustRegister(req, m.errors, m.duration, m.inflight, m.retries, m.overSoft, m.queued, m.dials, m.conns, m.accepted, m.refused,
		m.wakes, m.wakeTime, m.held, m.idles, m.tlsFails, m.certs, m.routes, m.updates, m.routeLive, m.synced, m.cacheErrs, m.cookies,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// count notes one finished request; code 0 is an aborted one.
func (m *metrics) count(https, h2 bool, code int) {
	i, j := 0, 0
	if https {
		i = 1
	}
	if h2 {
		j = 1
	}
	k := code / 100
	if k < 0 || k > 5 {
		k = 5
	}
	m.requests[i][j][k].Inc()
}

// Telemetry serves an edge's metrics to the controller.
type Telemetry struct {
	internalpb.UnimplementedTelemetryServer
	// Server is the edge to tell of.
	Server *Server
}

// Metrics returns the edge's metrics in the Prometheus text format.
func (t *Telemetry) Metrics(context.Context, *internalpb.MetricsRequest) (*internalpb.MetricsResponse, error) {
	families, err := t.Server.m.reg.Gather()
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "gather the edge's metrics")
	}
	var b bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			return nil, fault.Wrap(fault.Internal, err, "write the edge's metrics")
		}
	}
	return &internalpb.MetricsResponse{Text: b.Bytes()}, nil
}
