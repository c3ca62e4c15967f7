package edge_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"bulkhead/api/internalpb"
	"bulkhead/edge"
)

// TestAppOnIPv4Alone: an app that listens on 0.0.0.0 is reached over HTTP/1.1, over
// HTTP/2 without TLS, over WebSockets and over raw TLS, also when it comes up late.
func TestAppOnIPv4Alone(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	closed, _ := refusing(t)
	on4 := func(addr string) *internalpb.Backend {
		b := at(closed)
		b.MachineId, b.Address4 = "m-"+addr, addr
		return b
	}
	addr := serve(t, func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			io.WriteString(rw, "over "+r.Proto)
			return
		}
		c, err := websocket.Accept(rw, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		_ = c.Write(r.Context(), websocket.MessageText, []byte("hello"))
	})
	w.route("web", web(on4(addr))...)
	h2 := web(on4(addr))
	for _, s := range h2 {
		s.H2Backend = true
	}
	w.route("h2", h2...)
	raw := listen(t)
	defer raw.Close()
	go func() {
		for {
			c, err := raw.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "raw")
			c.Close()
		}
	}()
	w.route("raw", &internalpb.ServiceRoute{Port: 443, Handlers: []string{"tls"}, Backends: []*internalpb.Backend{on4(raw.Addr().String())}})
	late, open := refusing(t)
	w.route("late", web(on4(late))...)
	w.route("none", web(on4(closed))...)

	for app, want := range map[string]string{"web": "over HTTP/1.1", "h2": "over HTTP/2.0"} {
		for range 2 {
			if resp, body := get(t, w.client(true), "https://"+app+"."+domain+"/"); resp.StatusCode != 200 || body != want {
				t.Errorf("%s answered %d %q", app, resp.StatusCode, body)
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, _, err := websocket.Dial(ctx, "wss://web."+domain+"/", &websocket.DialOptions{HTTPClient: w.client(false)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	if _, b, err := c.Read(ctx); string(b) != "hello" {
		t.Errorf("the WebSocket said %q, %v", b, err)
	}
	if b := w.talk("raw", ""); b != "raw" {
		t.Errorf("the raw port said %q", b)
	}
	time.AfterFunc(100*time.Millisecond, func() {
		l := open()
		srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { io.WriteString(rw, "late") })}
		go srv.Serve(l)
		t.Cleanup(func() { srv.Close() })
	})
	if resp, body := get(t, w.client(true), "https://late."+domain+"/"); resp.StatusCode != 200 || body != "late" {
		t.Errorf("the app that came late answered %d %q", resp.StatusCode, body)
	}
	resp, body := get(t, w.client(true), "https://none."+domain+"/")
	if resp.StatusCode != 502 || !strings.Contains(body, "PC01") || !strings.Contains(body, "0.0.0.0") {
		t.Errorf("an app that listens nowhere gave %d %q", resp.StatusCode, body)
	}
}
