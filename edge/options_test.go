package edge_test

import (
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/edge"
)

// speaks is a Machine that takes one version of HTTP and counts what it cannot read.
func speaks(t *testing.T, h2 bool, wrong *atomic.Int64) *internalpb.Backend {
	l := listen(t)
	srv := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if (r.ProtoMajor == 2) != h2 {
			wrong.Add(1)
		}
		io.WriteString(rw, "ok")
	})}
	srv.Protocols.SetHTTP1(!h2)
	srv.Protocols.SetUnencryptedHTTP2(h2)
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	b := at(l.Addr().String())
	b.Options = &internalpb.BackendOptions{Handlers: []string{"tls", "http"}, H2Backend: h2}
	return b
}

// TestOptionsAreTheBackends: while a deploy changes h2_backend, Machines of both kinds
// serve one port, and each is spoken to in its own protocol.
func TestOptionsAreTheBackends(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	var wrong atomic.Int64
	port := func(h2 bool, bs ...*internalpb.Backend) *internalpb.ServiceRoute {
		return &internalpb.ServiceRoute{Port: 443, Handlers: []string{"tls", "http"}, H2Backend: h2, Backends: bs}
	}
	one, two := speaks(t, false, &wrong), speaks(t, true, &wrong)
	bothVersions(t, func(t *testing.T, h2 bool) {
		c := w.client(h2)
		for _, s := range []*internalpb.ServiceRoute{port(false, one), port(false, one, two), port(true, one, two), port(true, two)} {
			w.route("web", s)
			for range 30 {
				if resp, body := get(t, c, "https://web."+domain+"/"); resp.StatusCode != 200 || body != "ok" {
					t.Errorf("h2_backend %v, %d machines: %d %q", s.H2Backend, len(s.Backends), resp.StatusCode, body)
				}
			}
		}
	})
	if wrong.Load() != 0 {
		t.Errorf("%d requests came in the wrong protocol", wrong.Load())
	}
	// A Machine whose handlers are others takes its turn when it is alone.
	raw := at(tcpServer(t, "raw"))
	raw.Options = &internalpb.BackendOptions{Handlers: []string{"tls"}}
	w.route("web", port(false, one, raw))
	for range 30 {
		if resp, _ := get(t, w.client(false), "https://web."+domain+"/"); resp.StatusCode != 200 {
			t.Errorf("next to a machine without the handler http: %d", resp.StatusCode)
		}
	}
}

// TestLeavingMachine: a request that is under way when somebody stops its Machine goes to
// the other one, although that is the app's last.
func TestLeavingMachine(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	arrived := make(chan struct{}, 1)
	srv := &http.Server{}
	release := make(chan struct{})
	srv.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		arrived <- struct{}{}
		<-release
		panic(http.ErrAbortHandler)
	})
	l := listen(t)
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	first, last := at(l.Addr().String()), at(hello(t, "hello"))
	w.route("web", &internalpb.ServiceRoute{Port: 443, Handlers: []string{"tls", "http"}, Backends: []*internalpb.Backend{first}})
	got := make(chan string, 1)
	c := w.client(false)
	go func() {
		resp, err := c.Get("https://web." + domain + "/")
		if err != nil {
			got <- err.Error()
			return
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		got <- fmt.Sprint(resp.StatusCode, " ", string(b))
	}()
	<-arrived
	w.route("web", &internalpb.ServiceRoute{Port: 443, Handlers: []string{"tls", "http"}, Backends: []*internalpb.Backend{last}, Leaving: []string{first.MachineId}})
	close(release)
	select {
	case s := <-got:
		if s != "200 hello" {
			t.Errorf("the request got %q", s)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("no answer")
	}
}
