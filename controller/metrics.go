package controller

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"bulkhead/api/internalpb"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/role"
	"bulkhead/token"
)

// metrics are the controller's own.
type metrics struct {
	registry     *prometheus.Registry
	requests     *prometheus.CounterVec
	duration     *prometheus.HistogramVec
	observations prometheus.Counter
	routeChanges prometheus.Counter
	signIns      *prometheus.CounterVec
	refusals     *prometheus.CounterVec
	members      *prometheus.CounterVec
	internal     *prometheus.CounterVec
}

func newMetrics(c *Controller) *metrics {
	m := &metrics{
		registry:     prometheus.NewRegistry(),
		requests:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "bulkhead_api_requests_total", Help: "Requests of the public API, by method and code."}, []string{"method", "code"}),
		duration:     prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "bulkhead_api_request_seconds", Help: "Time from a request to the end of its answer.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 9)}, []string{"method"}),
		observations: prometheus.NewCounter(prometheus.CounterOpts{Name: "bulkhead_observations_total", Help: "Observations taken from workers."}),
		signIns:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "bulkhead_sign_ins_total", Help: "Sign-ins of people, by method and outcome: ok, or the word of the refusal."}, []string{"method", "outcome"}),
		members:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "bulkhead_membership_total", Help: "Joins of nodes, and renewals that were refused, by outcome: ok, or the kind of the refusal."}, []string{"event", "outcome"}),
		internal:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "bulkhead_internal_refusals_total", Help: "Connections (without a good certificate) and calls to the controller's internal listeners that were refused."}, []string{"what"}),
		refusals:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "bulkhead_tokens_refused_total", Help: "Requests whose token was refused, by reason."}, []string{"reason"}),
		routeChanges: prometheus.NewCounter(prometheus.CounterOpts{Name: "bulkhead_route_changes_total", Help: "Changes of an app's route."}),
	}
	m.registry.MustRegister(m.signIns, m.members, m.internal, m.requests, m.duration, m.observations, m.routeChanges, m.refusals,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "bulkhead_nodes_connected", Help: "Workers whose sync is open."}, func() float64 {
			n := 0.0
			for _, st := range c.view.allNodes() {
				if st.Connected {
					n++
				}
			}
			return n
		}))
	return m
}

// methods bounds the label's values: a client may send any method.
var methods = map[string]bool{"GET": true, "HEAD": true, "POST": true, "PUT": true, "PATCH": true, "DELETE": true}

func (m *metrics) request(method string, code int, took time.Duration) {
	if !methods[method] {
		method = "other"
	}
	m.requests.WithLabelValues(method, fmt.Sprint(code)).Inc()
	m.duration.WithLabelValues(method).Observe(took.Seconds())
}

// gather returns this process's metrics: its own, and those of etcd and of Go.
func (m *metrics) gather() ([]*dto.MetricFamily, error) {
	return prometheus.Gatherers{m.registry, prometheus.DefaultGatherer}.Gather()
}

// refused counts a token that was refused; "" is none.
func (m *metrics) refused(why token.Reason) {
	if why != "" {
		m.refusals.WithLabelValues(string(why)).Inc()
	}
}

// telemetryServer serves internalpb.Telemetry for the controller itself.
type telemetryServer struct {
	internalpb.UnimplementedTelemetryServer
	c *Controller
}

// Metrics implements internalpb.TelemetryServer.
func (s telemetryServer) Metrics(context.Context, *internalpb.MetricsRequest) (*internalpb.MetricsResponse, error) {
	families, err := s.c.metrics.gather()
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&buf, f); err != nil {
			return nil, err
		}
	}
	return &internalpb.MetricsResponse{Text: buf.Bytes()}, nil
}

// scraped are the roles that have metrics, with the limit on asking each.
var scraped = []string{role.Controller, role.Worker, role.Edge}

const scrapeLimit = 5 * time.Second

// metricsPage merges the metrics of every role of the node, each sample with the
// labels role and node. A role that does not answer has bulkhead_role_up 0.
func (c *Controller) metricsPage(r *call) (int, any, error) {
	only := r.URL.Query().Get("role")
	merged := map[string]*dto.MetricFamily{}
	known := only == ""
	for _, name := range scraped {
		if only != "" && only != name {
			continue
		}
		known = true
		families, err := c.scrape(r.Context(), name)
		up := 1.0
		if err != nil {
			c.log.Info("role's metrics are missing", "of", name, "err", err)
			up = 0
		}
		reached := upFamily(up)
		if other := families["bulkhead_role_up"]; other != nil {
			reached.Metric = append(reached.Metric, other.Metric...)
		}
		families["bulkhead_role_up"] = reached
		addLabels(merged, families, name, c.cfg.Role.Node)
	}
	if !known {
		return 0, nil, fault.New(fault.NotFound, "role %q has no metrics; there are controller, worker and edge", fault.Clip(only))
	}
	return answerMetrics(r, merged)
}

// orgMetrics is what the Machines of an organization use. Only workers have metrics of an
// app; without the worker there is no page, so that Prometheus sees the scrape fail.
//
//	GET /v1/orgs/{org}/metrics
func (c *Controller) orgMetrics(r *call) (int, any, error) {
	families, err := c.scrape(r.Context(), role.Worker)
	if err != nil {
		return 0, nil, fault.Wrap(fault.Unavailable, err, "the worker's metrics cannot be read")
	}
	return answerMetrics(r, ofApps(families, func(name string) bool {
		a := c.directory.App(key.AppName(name))
		return a != nil && a.Org == r.PathValue("org")
	}))
}

// ofApps keeps the samples with the label of an app that is wanted.
func ofApps(families map[string]*dto.MetricFamily, wanted func(app string) bool) map[string]*dto.MetricFamily {
	for n, f := range families {
		f.Metric = slices.DeleteFunc(f.Metric, func(m *dto.Metric) bool {
			i := slices.IndexFunc(m.Label, func(l *dto.LabelPair) bool { return l.GetName() == "app" })
			return i < 0 || !wanted(m.Label[i].GetValue())
		})
		if len(f.Metric) == 0 {
			delete(families, n)
		}
	}
	return families
}

// answerMetrics writes metrics in the order of their names.
func answerMetrics(r *call, all map[string]*dto.MetricFamily) (int, any, error) {
	r.w.Header().Set("Content-Type", string(expfmt.NewFormat(expfmt.TypeTextPlain)))
	r.w.WriteHeader(http.StatusOK)
	for _, n := range slices.Sorted(maps.Keys(all)) {
		if _, err := expfmt.MetricFamilyToText(r.w, all[n]); err != nil {
			return 0, nil, errAnswered
		}
	}
	return 0, nil, errAnswered
}

// scrape returns a role's metrics; the map is never nil.
func (c *Controller) scrape(ctx context.Context, name string) (map[string]*dto.MetricFamily, error) {
	out := map[string]*dto.MetricFamily{}
	if name == role.Controller {
		families, err := c.metrics.gather()
		for _, f := range families {
			out[f.GetName()] = f
		}
		return out, err
	}
	conn, err := c.dial(name, c.cfg.Role.Node)
	if err != nil {
		return out, err
	}
	ctx, cancel := context.WithTimeout(ctx, scrapeLimit)
	defer cancel()
	resp, err := internalpb.NewTelemetryClient(conn).Metrics(ctx, &internalpb.MetricsRequest{})
	if err != nil {
		return out, err
	}
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(bytes.NewReader(resp.Text))
	if err != nil {
		return out, err
	}
	return families, nil
}

func upFamily(v float64) *dto.MetricFamily {
	name, help, gauge := "bulkhead_role_up", "Whether the role answered when its metrics were asked for.", dto.MetricType_GAUGE
	return &dto.MetricFamily{Name: &name, Help: &help, Type: &gauge, Metric: []*dto.Metric{{Gauge: &dto.Gauge{Value: &v}}}}
}

func hasLabel(m *dto.Metric, name string) bool {
	return slices.ContainsFunc(m.Label, func(l *dto.LabelPair) bool { return l.GetName() == name })
}

// addLabels adds families to merged. A family whose type differs between roles is
// kept as the first role has it; the other's samples are left out.
func addLabels(merged, families map[string]*dto.MetricFamily, name string, node key.Node) {
	roleName, roleValue, nodeName, nodeValue := "role", name, "node", string(node)
	for n, f := range families {
		for _, m := range f.Metric {
			if hasLabel(m, roleName) { // the warden's, which come by way of the worker
				m.Label = append(m.Label, &dto.LabelPair{Name: &nodeName, Value: &nodeValue})
				continue
			}
			m.Label = append([]*dto.LabelPair{{Name: &roleName, Value: &roleValue}, {Name: &nodeName, Value: &nodeValue}}, m.Label...)
		}
		if old := merged[n]; old == nil {
			merged[n] = f
		} else if old.GetType() == f.GetType() {
			old.Metric = append(old.Metric, f.Metric...)
		}
	}
}

// membership counts what came of a join or a renewal.
func (m *metrics) membership(event string, err error) {
	outcome := "ok"
	if err != nil {
		outcome = string(fault.KindOf(err))
	}
	m.members.WithLabelValues(event, outcome).Inc()
}
