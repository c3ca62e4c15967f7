package edge_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bulkhead/edge"
)

// TestHostNames: names that differ in case or by the dot of the root are one name, in
// server names, Host and :authority; the app sees one form of it.
func TestHostNames(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	var host atomic.Pointer[string]
	w.route("web", web(at(serve(t, func(rw http.ResponseWriter, r *http.Request) { host.Store(&r.Host) })))...)
	l, err := net.Listen("unix", filepath.Join(w.dir, "api"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, sni := range []string{"web." + domain, "WEB." + domain, "Web." + strings.ToUpper(domain)} {
		c, err := tls.Dial("tcp", w.secure, &tls.Config{RootCAs: w.roots(), ServerName: sni})
		if err != nil {
			t.Errorf("server name %s: %v", sni, err)
			continue
		}
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+sni+"\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != 200 {
			t.Errorf("server name %s: %v %v", sni, resp, err)
		}
		c.Close()
	}
	for _, scheme := range []string{"http", "https"} {
		bothVersions(t, func(t *testing.T, h2 bool) {
			for typed, want := range map[string]string{
				"web." + domain: "web." + domain, "Web." + domain: "web." + domain, "web." + domain + ".": "web." + domain,
				"WEB." + domain + ".:8443": "web." + domain + ":8443", "web." + domain + "..": "",
			} {
				req, _ := http.NewRequest("GET", scheme+"://web."+domain+"/", nil)
				req.Host = typed
				resp, err := w.client(h2 && scheme == "https").Do(req)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				if ok := resp.StatusCode == 200; ok != (want != "") {
					t.Errorf("%s, host %s: %d", scheme, typed, resp.StatusCode)
				} else if ok && *host.Load() != want {
					t.Errorf("%s, host %s: the app sees %s, want %s", scheme, typed, *host.Load(), want)
				}
			}
		})
	}
	// The API's names and the cluster's own go to the controller, as typed.
	for _, sni := range []string{"API." + domain, domain, strings.ToUpper(domain)} {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			d := tls.Dialer{Config: &tls.Config{RootCAs: w.roots(), ServerName: sni}}
			if c, err := d.DialContext(ctx, "tcp", w.secure); err == nil {
				c.Close()
			}
		}()
		_ = l.(*net.UnixListener).SetDeadline(time.Now().Add(20 * time.Second))
		up, err := l.Accept()
		if err != nil {
			t.Fatalf("server name %s does not reach the API: %v", sni, err)
		}
		cancel()
		up.Close()
		<-done
	}
}

// TestUnreadableRequests: what net/http refuses by itself is answered in the edge's form,
// and counted.
func TestUnreadableRequests(t *testing.T) {
	w := newWorld(t, edge.Limits{MaxHeaderBytes: 8 << 10})
	w.route("web", web(at(hello(t, "hello")))...)
	host := "Host: web." + domain + "\r\n"
	for say, status := range map[string]string{
		"GET /100% HTTP/1.1\r\n" + host + "\r\n":                                       "400",
		"GET /%zz HTTP/1.1\r\n" + host + "\r\n":                                        "400",
		"GET / HTTP/1.1\r\n" + host + host + "\r\n":                                    "400",
		"GET / HTTP/1.1\r\n" + host + "X: " + strings.Repeat("x", 20<<10) + "\r\n\r\n": "431",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip\r\n\r\n":               "501",
		"GET / HTTP/1.1\r\n" + host + "Expect: more\r\n\r\n":                           "417",
		"GET / HTTP/3.7\r\n" + host + "\r\n":                                           "505",
		"GET / HTTP/1.1\r\n" + host + "\r\nGET /100% HTTP/1.1\r\n" + host + "\r\n":     "400",
	} {
		for _, secure := range []bool{true, false} {
			before := w.metric(`bulkhead_edge_errors_total{code="PU04"}`)
			got := ""
			if secure {
				got = w.talk("web", say)
			} else {
				c, err := net.Dial("tcp", w.plain)
				if err != nil {
					t.Fatal(err)
				}
				io.WriteString(c, say)
				b, _ := io.ReadAll(c)
				got = string(b)
				c.Close()
			}
			last := got[max(strings.LastIndex(got, "HTTP/1.1 "), 0):]
			for _, want := range []string{"HTTP/1.1 " + status + " ", "\r\nBulkhead-Error: PU04\r\n", "\r\nFly-Request-Id: ", "\r\nServer: bulkhead\r\n", "(PU04, request "} {
				if !strings.Contains(last, want) {
					t.Errorf("%.60q is answered %q, without %q", say, last, want)
				}
			}
			if n := w.metric(`bulkhead_edge_errors_total{code="PU04"}`) - before; n != 1 {
				t.Errorf("%.60q is counted %v times", say, n)
			}
		}
	}
	before := w.metric(`bulkhead_edge_errors_total{code="PU04"}`)
	w.h2Request("web", ":path", "/100%")
	if n := w.metric(`bulkhead_edge_errors_total{code="PU04"}`) - before; n != 1 {
		t.Errorf("over HTTP/2 it is counted %v times", n)
	}
}

// TestUnknownNamePage: a browser gets a page for a name that no app has, others get text.
func TestUnknownNamePage(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	for accept, kind := range map[string]string{"text/html,application/xhtml+xml;q=0.9": "text/html; charset=utf-8", "*/*": "text/plain; charset=utf-8"} {
		req, _ := http.NewRequest("GET", "http://nobody."+domain+"/secret?x=1", nil)
		req.Header.Set("Accept", accept)
		resp, err := w.client(false).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		page := strings.HasPrefix(string(b), "<!doctype html>")
		if resp.StatusCode != 404 || resp.Header.Get("Content-Type") != kind || page != strings.HasPrefix(kind, "text/html") || strings.Contains(string(b), "secret") {
			t.Errorf("Accept %s: %d %v %s", accept, resp.StatusCode, resp.Header, b)
		}
		if page && !strings.HasPrefix(resp.Header.Get("Content-Security-Policy"), "default-src 'none'") {
			t.Errorf("the page's policy is %q", resp.Header.Get("Content-Security-Policy"))
		}
	}
	// The cluster's own name is no app's.
	resp, _ := get(t, w.client(false), "http://"+domain+"/")
	if resp.StatusCode != 301 || !strings.HasPrefix(resp.Header.Get("Location"), "https://"+domain) {
		t.Errorf("%d %q", resp.StatusCode, resp.Header.Get("Location"))
	}
}
