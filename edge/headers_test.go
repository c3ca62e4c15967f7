package edge_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"bulkhead/edge"
)

// TestSpelling: names of headers reach apps and clients as their standards spell them.
func TestSpelling(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	b := newRawBackend(t)
	w.route("web", web(at(b.addr))...)
	host := "Host: web." + domain + "\r\n"
	w.talk("web", "GET / HTTP/1.1\r\n"+host+"sec-websocket-key: a\r\nsec-websocket-version: 13\r\nsec-websocket-protocol: p\r\nsec-websocket-extensions: e\r\nsoapaction: s\r\ndnt: 1\r\nte: trailers\r\n\r\n")
	_, raw := b.take()
	for _, want := range []string{"Sec-WebSocket-Key: a", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Protocol: p", "Sec-WebSocket-Extensions: e", "SOAPAction: s", "DNT: 1", "TE: trailers"} {
		if !strings.Contains(raw, "\r\n"+want+"\r\n") {
			t.Errorf("the app does not get %q in %q", want, raw)
		}
	}
	w.route("etag", web(at(tcpServer(t, "HTTP/1.1 401 Unauthorized\r\netag: x\r\nwww-authenticate: Basic\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")))...)
	w.route("ws", web(at(tcpServer(t, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: y\r\n\r\n")))...)
	got := w.talk("etag", "GET / HTTP/1.1\r\nHost: etag."+domain+"\r\n\r\n") +
		w.talk("ws", "GET / HTTP/1.1\r\nHost: ws."+domain+"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	for _, want := range []string{"ETag: x", "WWW-Authenticate: Basic", "Sec-WebSocket-Accept: y"} {
		if !strings.Contains(got, "\r\n"+want+"\r\n") {
			t.Errorf("the client does not get %q in %q", want, got)
		}
	}
}

// TestOddStatus: a status that is none is the app's error; unusual ones pass.
func TestOddStatus(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	for _, code := range []string{"000", "001", "099", "+20", "99", "1000", "abc", "299", "599", "999"} {
		app := "s" + strings.TrimPrefix(code, "+")
		w.route(app, web(at(tcpServer(t, fmt.Sprintf("HTTP/1.1 %s Odd\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", code))))...)
		bothVersions(t, func(t *testing.T, h2 bool) {
			resp, body := get(t, w.client(h2), "https://"+app+"."+domain+"/")
			if code == "299" || code == "599" || code == "999" {
				if fmt.Sprint(resp.StatusCode) != code {
					t.Errorf("status %s: %d", code, resp.StatusCode)
				}
			} else if resp.StatusCode != 502 || resp.Header.Get("Bulkhead-Error") != "PU02" {
				t.Errorf("status %s: %d %q", code, resp.StatusCode, body)
			}
		})
	}
}

// TestSharedCookies: an app sets cookies for itself, and none that other apps or the API get.
func TestSharedCookies(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	shared := []string{"a=1; Domain=" + domain, "a=2; domain=." + strings.ToUpper(domain), "a=3;Path=/; DOMAIN = \"" + domain + "\"", "a=4; Domain=" + domain + ".",
		"a=5; Domain=test", "a=6; Domain=web." + domain + "; Domain=" + domain, "a=7; Domain=" + domain + "; Domain=", "a=8; Secure; HttpOnly; Domain=\t" + domain}
	own := []string{"b=1", "b=2; Path=/; Secure", "b=3; Domain=web." + domain, "b=4; Domain=" + "head.test", "b=5; Path=/domain=" + domain, "domain=" + domain}
	send := func(rw http.ResponseWriter) {
		for i := range shared {
			rw.Header().Add("Set-Cookie", shared[i])
			if i < len(own) {
				rw.Header().Add("Set-Cookie", own[i])
			}
		}
	}
	addr := serve(t, func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			c, _, err := http.NewResponseController(rw).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			send(rw)
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n")
			_ = rw.Header().Write(c)
			io.WriteString(c, "\r\n")
			return
		}
		send(rw)
	})
	w.route("web", web(at(addr))...)
	bothVersions(t, func(t *testing.T, h2 bool) {
		before := w.metric("bulkhead_edge_cookies_refused_total")
		resp, _ := get(t, w.client(h2), "https://web."+domain+"/")
		if got := resp.Header["Set-Cookie"]; !slices.Equal(got, own) {
			t.Errorf("the client gets the cookies %q, want %q", got, own)
		}
		if n := w.metric("bulkhead_edge_cookies_refused_total") - before; n != float64(len(shared)) {
			t.Errorf("%v cookies are counted, want %d", n, len(shared))
		}
	})
	got := w.talk("web", "GET / HTTP/1.1\r\nHost: web."+domain+"\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
	if strings.Contains(got, "a=") || strings.Count(got, "Set-Cookie") != len(own) {
		t.Errorf("after an upgrade the client gets %q", got)
	}
}

// TestFoldedHeaders: no spelling of a header lets a client say where it comes from or what
// it has asked for.
func TestFoldedHeaders(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	b := newRawBackend(t)
	w.route("web", web(at(b.addr))...)
	names := []string{"True-Client-IP", "CF-Connecting-IP", "X-Original-URL", "X-Rewrite-URL", "X-Real-IP", "X-Client-IP", "Client-IP", "X-Forwarded-Host", "Forwarded", "Fly-Client-IP", "Proxy"}
	say := "GET / HTTP/1.1\r\nHost: web." + domain + "\r\n"
	for _, name := range names {
		for _, sep := range "-_.!#$%&'*+^`|~" {
			say += strings.ReplaceAll(name, "-", string(sep)) + ": spoofed\r\n"
		}
	}
	w.talk("web", say+"X-Fine.Name: kept\r\n\r\n")
	_, raw := b.take()
	for sc := bufio.NewScanner(strings.NewReader(raw)); sc.Scan(); {
		if strings.Contains(sc.Text(), "spoofed") {
			t.Errorf("the app gets %q", sc.Text())
		}
	}
	if !strings.Contains(raw, ": kept\r\n") {
		t.Errorf("the app gets %q", raw)
	}
}
