package controller_test

import (
	"testing"

	"bulkhead/controller/flapstest"
)

// TestFlyGoClient runs the real client against the API and a fake worker, and holds
// every answer against the OpenAPI file on the way.
func TestFlyGoClient(t *testing.T) {
	e := newEnv(t)
	flapstest.Run(t, flapstest.Config{
		BaseURL: "https://api." + domain, Token: e.token, Transport: e.c.RoundTripper(e.transport()),
		Org: "personal", App: "flaps", Image: "docker.example/library/app:1", Exec: `echo "hello there"`, ExecOutput: "echo|hello there",
	})
	if e.c.checked < 40 {
		t.Errorf("only %d answers were held against the OpenAPI file", e.c.checked)
	}
}
