package edge_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"bulkhead/edge"
)

// TestTornCertificate: a chain on disk that lost its end, wherever it was cut, is not
// served; another is asked for.
func TestTornCertificate(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	w.route("web", web(at(hello(t, "hello")))...)
	if resp, _ := get(t, w.client(false), "https://web."+domain+"/"); resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	path := filepath.Join(w.dir, "edge", "certs", "web.pem")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	leaf := bytes.Index(whole, []byte("-----END CERTIFICATE-----\n")) + len("-----END CERTIFICATE-----\n")
	for _, n := range []int{0, 100, leaf, leaf + 100, len(whole) - 30} {
		w.stop()
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		w.startEdge(edge.Limits{})
		if resp, _ := get(t, w.client(false), "https://web."+domain+"/"); resp.StatusCode != 200 {
			t.Errorf("cut at %d of %d: %s", n, len(whole), resp.Status)
		}
	}
}
