package worker

import (
	"bytes"
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"

	"bulkhead/api/internalpb"
	"bulkhead/fault"
	"bulkhead/role"
	"bulkhead/warden/client"
)

// metrics are the worker's own, in a registry of its own.
type metrics struct {
	registry     *prometheus.Registry
	transitions  *prometheus.CounterVec
	exits, ooms  prometheus.Counter
	limits       *prometheus.CounterVec
	startSeconds prometheus.Histogram
	fetchSeconds prometheus.Histogram
	connected    prometheus.Gauge
	wakes, idles prometheus.Counter
	apiConns     prometheus.Counter
	apiRefused   prometheus.Counter
}

func newMetrics(w *Worker) *metrics {
	seconds := []float64{.05, .1, .2, .3, .5, .75, 1, 2, 5, 10, 30, 60, 120, 300}
	m := &metrics{
		registry:     prometheus.NewRegistry(),
		transitions:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "bulkhead_worker_transitions_total", Help: "State changes of Machines, by the state that was entered."}, []string{"state"}),
		exits:        prometheus.NewCounter(prometheus.CounterOpts{Name: "bulkhead_worker_exits_total", Help: "Ends of Machines' processes."}),
		ooms:         prometheus.NewCounter(prometheus.CounterOpts{Name: "bulkhead_worker_oom_kills_total", Help: "Ends of Machines' processes for want of memory."}),
		limits:       prometheus.NewCounterVec(prometheus.CounterOpts{Name: "bulkhead_worker_limit_events_total", Help: "Events that tell of a limit that a Machine met, by the limit."}, []string{"limit"}),
		startSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "bulkhead_worker_start_seconds", Help: "Time to start a sandbox.", Buckets: seconds}),
		fetchSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "bulkhead_worker_image_seconds", Help: "Time to make an image ready.", Buckets: seconds}),
		connected:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "bulkhead_worker_controller_connected", Help: "1 while the controller is reached."}),
	}
	m.wakes = prometheus.NewCounter(prometheus.CounterOpts{Name: "bulkhead_worker_wakes_total", Help: "Machines that were started for a request."})
	m.idles = prometheus.NewCounter(prometheus.CounterOpts{Name: "bulkhead_worker_idle_stops_total", Help: "Machines that were stopped because no request came."})
	m.apiConns = prometheus.NewCounter(prometheus.CounterOpts{Name: "bulkhead_worker_api_connections_total", Help: "Connections that Machines made to their own API."})
	m.apiRefused = prometheus.NewCounter(prometheus.CounterOpts{Name: "bulkhead_worker_api_refused_total", Help: "Of these, those that the controller did not take."})
	m.registry.MustRegister(m.wakes, m.idles, m.apiConns, m.apiRefused, m.transitions, m.exits, m.ooms, m.limits, m.startSeconds, m.fetchSeconds, m.connected,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "bulkhead_worker_memory_limit_megabytes", Help: "Memory that Machines may take together."}, func() float64 { return float64(w.capacity.limit) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "bulkhead_worker_memory_taken_megabytes", Help: "Memory that Machines with a sandbox take."}, func() float64 {
			w.capacity.mu.Lock()
			defer w.capacity.mu.Unlock()
			return float64(w.capacity.sum)
		}),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "bulkhead_worker_log_lines_dropped_total", Help: "Lines that the rate limit dropped."}, func() float64 {
			if w.logs == nil {
				return 0
			}
			return float64(w.logs.Dropped())
		}),
		stateCollector{w, prometheus.NewDesc("bulkhead_worker_machines", "Machines, by state.", []string{"state"}, nil)},
	)
	if w.opt.Warden != nil {
		m.registry.MustRegister(wardenCollector{w, w.opt.Warden})
	}
	return m
}

// The warden's metrics pass through the worker, which alone may ask it: it has no
// other way out. They keep their role's label.
var (
	wardenRole       = prometheus.Labels{"role": role.Warden}
	wardenUp         = prometheus.NewDesc("bulkhead_role_up", "Whether the role answered when its metrics were asked for.", nil, wardenRole)
	wardenMachines   = prometheus.NewDesc("bulkhead_warden_machines", "Machines that have a sandbox, running or ended.", nil, wardenRole)
	wardenOperations = prometheus.NewDesc("bulkhead_warden_operations_total", "Operations that the warden was asked for, by how they ended.", []string{"operation", "result"}, wardenRole)
	wardenGrants     = prometheus.NewDesc("bulkhead_warden_grants_refused_total", "Starts that the warden refused for their grant's sake, by reason: it has ended, it ends farther away than any, or a newer one was used.", []string{"reason"}, wardenRole)
)

// wardenCollector asks the warden when it is asked itself, also for what Machines use.
type wardenCollector struct {
	w   *Worker
	ask func(context.Context) (*client.Metrics, error)
}

// Describe is prometheus.Collector's.
func (c wardenCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- wardenUp
	ch <- wardenMachines
	ch <- wardenOperations
	ch <- wardenGrants
	for _, m := range machineMetrics {
		ch <- m.desc
	}
	ch <- machineLogDropped
	ch <- machineHits
}

// Collect is prometheus.Collector's.
func (c wardenCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	m, err := c.ask(ctx)
	if err != nil {
		ch <- prometheus.MustNewConstMetric(wardenUp, prometheus.GaugeValue, 0)
		return
	}
	ch <- prometheus.MustNewConstMetric(wardenUp, prometheus.GaugeValue, 1)
	c.w.collectUsage(ch, m.Usage)
	ch <- prometheus.MustNewConstMetric(wardenMachines, prometheus.GaugeValue, float64(m.Machines))
	for reason, n := range m.Grants {
		ch <- prometheus.MustNewConstMetric(wardenGrants, prometheus.CounterValue, float64(n), reason)
	}
	for op, n := range m.Operations {
		for result, count := range map[string]int64{"ok": n.OK, "refused": n.Refused, "failed": n.Failed} {
			ch <- prometheus.MustNewConstMetric(wardenOperations, prometheus.CounterValue, float64(count), string(op), result)
		}
	}
}

// stateCollector counts Machines by state when it is asked.
type stateCollector struct {
	w    *Worker
	desc *prometheus.Desc
}

// Describe is prometheus.Collector's.
func (c stateCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

// Collect is prometheus.Collector's.
func (c stateCollector) Collect(ch chan<- prometheus.Metric) {
	n := map[string]int{}
	c.w.mu.Lock()
	for _, s := range c.w.seen {
		n[string(s.rec.State)]++
	}
	c.w.mu.Unlock()
	for state, count := range n {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(count), state)
	}
}

// telemetry is the Telemetry service.
type telemetry struct {
	internalpb.UnimplementedTelemetryServer
	registry *prometheus.Registry
}

// Metrics is the service's only method.
func (t telemetry) Metrics(context.Context, *internalpb.MetricsRequest) (*internalpb.MetricsResponse, error) {
	families, err := t.registry.Gather()
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the metrics cannot be gathered")
	}
	var b bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			return nil, fault.Wrap(fault.Internal, err, "the metrics cannot be written")
		}
	}
	return &internalpb.MetricsResponse{Text: b.Bytes()}, nil
}
