package worker

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead/key"
	"bulkhead/machine"
)

// TestNoNameserverIsSaid wants one warning of the node and a line in the event of each start.
// A Machine with name servers of its own gets no such line.
func TestNoNameserverIsSaid(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	resolve := func(text string) {
		t.Helper()
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	resolve("nameserver 10.0.0.2\n")
	n := newNode(t)
	n.opt.ResolvConfs = []string{filepath.Join(t.TempDir(), "none"), conf}
	var log bytes.Buffer
	n.tune = func(w *Worker) { w.log = slog.New(slog.NewTextHandler(&log, nil)) }
	n.boot()
	reason := func(config string) string {
		t.Helper()
		r := n.state(n.assign(n.asg(key.NewMachineID(), config)), machine.Started)
		if r.Events[0].Type != "start" {
			t.Fatalf("the newest event is %s", types(r))
		}
		if r.Events[0].Request == nil {
			return ""
		}
		return r.Events[0].Request.Reason
	}
	if got := reason(`{"image":"app"}`); !strings.Contains(got, "sets nameservers in bulkhead.toml") {
		t.Errorf("a Machine without a name server has %q in the event of its start", got)
	}
	if got := reason(`{"image":"app","dns":{"nameservers":["9.9.9.9"]}}`); got != "" {
		t.Errorf("a Machine with a name server of its own has %q", got)
	}
	resolve("nameserver 9.9.9.9\n")
	if got := reason(`{"image":"app"}`); got != "" {
		t.Errorf("a Machine with the host's name server has %q", got)
	}
	if got := string(resolvConf(nil, nil)); !strings.Contains(got, "sets nameservers in bulkhead.toml") {
		t.Errorf("resolv.conf without a name server is %q", got)
	}
	n.down()
	if got := strings.Count(log.String(), "machines cannot resolve names"); got != 1 {
		t.Errorf("%d warnings, not 1:\n%s", got, log.String())
	}
}
