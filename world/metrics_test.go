package world_test

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"bulkhead/world"
)

// metricsPages reads both pages of metrics through the edge, each with a token that the
// command line made, as the scrape config of docs/prometheus.md does. Every metric that a
// query of that page names is there.
func metricsPages(t *testing.T, w *world.World) {
	doc, err := os.ReadFile("../docs/prometheus.md")
	if err != nil {
		t.Fatal(err)
	}
	page := func(token, path string, code int) map[string]*dto.MetricFamily {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", w.URL("api", path), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := w.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != code {
			t.Fatalf("%s: %d, want %d: %s (%v)", path, resp.StatusCode, code, b, err)
		}
		if code != http.StatusOK {
			return nil
		}
		p := expfmt.NewTextParser(model.UTF8Validation)
		all, err := p.TextToMetricFamilies(bytes.NewReader(b))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		return all
	}
	const org = "/v1/orgs/personal/metrics"
	ofPlatform := strings.TrimSpace(w.MustCLI("tokens", "create", "metrics", "--platform", "--name", "prometheus"))
	ofOrg := strings.TrimSpace(w.MustCLI("tokens", "create", "metrics", "--org", "personal", "--name", "prometheus"))
	platform, machines := page(ofPlatform, "/metrics", 200), page(ofOrg, org, 200)
	page(ofPlatform, org, 403)
	page(ofOrg, "/metrics", 403)
	for name, f := range machines {
		if !strings.HasPrefix(name, "bulkhead_machine_") || len(f.Metric) == 0 {
			t.Errorf("the organization's page has %s", name)
		}
	}
	queried := map[string]bool{}
	for _, name := range regexp.MustCompile(`bulkhead_[a-z_]+`).FindAllString(string(doc), -1) {
		name = strings.TrimSuffix(name, "_bucket")
		queried[name] = true
		if platform[name] == nil || strings.HasPrefix(name, "bulkhead_machine_") && machines[name] == nil {
			t.Errorf("docs/prometheus.md names %s, which no page has", name)
		}
	}
	if len(queried) < 10 {
		t.Errorf("control: docs/prometheus.md names %d metrics", len(queried))
	}
}
