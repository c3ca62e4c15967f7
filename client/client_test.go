package client

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bulkhead/fault"
	"bulkhead/machine"
)

// serve starts a TLS server for h and returns a client pinned to it, whose host is
// a name under .localhost.
func serve(t *testing.T, h http.HandlerFunc) (*Client, *httptest.Server) {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.EnableHTTP2 = true
	srv.Config.ErrorLog = nil
	srv.StartTLS()
	t.Cleanup(srv.Close)
	_, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(Config{URL: "https://api.test.localhost:" + port, Pin: PinOf(srv.Certificate()), Token: "bh_t"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, srv
}

func TestRequestCarriesTokenAndName(t *testing.T) {
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.TLS.ServerName != "api.test.localhost" {
			t.Errorf("server name %q", r.TLS.ServerName)
		}
		if got := r.Header.Get("Authorization"); got != "Bearer bh_t" {
			t.Errorf("authorization %q", got)
		}
		if r.URL.Path != "/v1/apps" || r.URL.Query().Get("org_slug") != "personal" {
			t.Errorf("asked %s", r.URL)
		}
		fmt.Fprint(w, `{"total_apps":1,"apps":[{"name":"a","machine_count":2,"future":null}]}`)
	})
	apps, err := c.Apps(t.Context(), "personal")
	if err != nil || len(apps) != 1 || apps[0].MachineCount != 2 {
		t.Fatalf("%+v, %v", apps, err)
	}
}

// TestWrongPinSendsNothing is the promise of the pin: a server with another key
// sees no request, although its certificate may be as good as any.
func TestWrongPinSendsNothing(t *testing.T) {
	var asked atomic.Int32
	good, srv := serve(t, func(w http.ResponseWriter, r *http.Request) { asked.Add(1); fmt.Fprint(w, `{}`) })
	bad, err := New(Config{URL: good.URL(), Pin: strings.Repeat("A", 43), Token: "bh_t"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = bad.Apps(t.Context(), "personal")
	var fe *fault.Error
	if !errors.As(err, &fe) || fe.Kind != fault.Denied || fe.Status != PinMismatch {
		t.Fatalf("error %v", err)
	}
	if !strings.Contains(fe.Msg, PinOf(srv.Certificate())) {
		t.Errorf("the message does not give the key found: %s", fe.Msg)
	}
	if n := asked.Load(); n != 0 {
		t.Fatalf("%d requests reached the wrong server", n)
	}
	// The control: the same server is reached with the right pin.
	if _, err := good.Apps(t.Context(), "personal"); err != nil || asked.Load() != 1 {
		t.Fatalf("right pin: %v, %d requests", err, asked.Load())
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.TLS = &tls.Config{MaxVersion: tls.VersionTLS12}
	srv.StartTLS()
	defer srv.Close()
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	c, err := New(Config{URL: "https://api.x.localhost:" + port, Pin: PinOf(srv.Certificate()), Token: "t"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Apps(t.Context(), "personal"); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("error %v", err)
	}
}

// TestNothingInTheClear covers the registry library, which falls back to http for
// names under .localhost.
func TestNothingInTheClear(t *testing.T) {
	c, _ := serve(t, func(http.ResponseWriter, *http.Request) {})
	req, _ := http.NewRequest("GET", "http://registry.test.localhost/v2/", nil)
	if _, err := c.Transport().RoundTrip(req); !fault.Is(err, fault.Denied) {
		t.Fatalf("error %v", err)
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	var asked atomic.Int32
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		http.Redirect(w, r, "https://elsewhere.localhost/", http.StatusFound)
	})
	if _, err := c.Apps(t.Context(), "personal"); err == nil || asked.Load() != 1 {
		t.Fatalf("%v after %d requests", err, asked.Load())
	}
}

func TestNewRefuses(t *testing.T) {
	pin := strings.Repeat("A", 43)
	for _, tc := range []struct {
		c    Config
		want string
	}{
		{Config{URL: "http://api.x", Pin: pin, Token: "t"}, "must start with https://"},
		{Config{URL: "https://x.y", Pin: pin, Token: "t"}, "must start with \"api.\""},
		{Config{URL: "https://api.", Pin: pin, Token: "t"}, "must start with \"api.\""},
		{Config{URL: "https://api.x/v1", Pin: pin, Token: "t"}, "must end after"},
		{Config{URL: "https://u@api.x", Pin: pin, Token: "t"}, "must end after"},
		{Config{URL: "::", Pin: pin, Token: "t"}, "not an address"},
		{Config{URL: "", Pin: pin, Token: "t"}, "not an address"},
		{Config{URL: "https://api.x", Token: "t"}, "no pin"},
		{Config{URL: "https://api.x", Pin: "AAAA", Token: "t"}, "43 characters"},
		{Config{URL: "https://api.x", Pin: pin}, "no token"},
		{Config{URL: "https://api.x", Pin: pin, Token: "a\nb"}, "white space"},
		{Config{URL: "https://api.x", Pin: pin, Token: "t", Proxy: "https://p"}, "the proxy"},
	} {
		if _, err := New(tc.c); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v, want %q", tc.c, err, tc.want)
		}
	}
}

func TestSiblings(t *testing.T) {
	for _, tc := range []struct{ url, registry, app string }{
		{"https://api.example.com", "registry.example.com", "https://shop.example.com"},
		{"https://api.example.com:443", "registry.example.com", "https://shop.example.com"},
		{"https://API.bulkhead.localhost:8443/", "registry.bulkhead.localhost:8443", "https://shop.bulkhead.localhost:8443"},
	} {
		c, err := New(Config{URL: tc.url, Pin: strings.Repeat("A", 43), Token: "t"})
		if err != nil {
			t.Fatal(err)
		}
		if c.Registry() != tc.registry || c.AppURL("shop") != tc.app {
			t.Errorf("%s: %s, %s", tc.url, c.Registry(), c.AppURL("shop"))
		}
	}
}

func TestErrorsKeepTheServersWords(t *testing.T) {
	for _, tc := range []struct {
		code int
		body string
		kind fault.Kind
		msg  string
	}{
		{400, `{"error":"config.image is missing"}`, fault.Invalid, "config.image is missing"},
		{401, `{"error":"Authenticate: token validation error"}`, fault.Unauthenticated, "Authenticate: token validation error"},
		{403, `{"message":"no"}`, fault.Denied, "no"},
		{404, `{"error":"gone"}`, fault.NotFound, "gone"},
		{408, `{"error":"late"}`, fault.Timeout, "late"},
		{409, `{"error":"held"}`, fault.Conflict, "held"},
		{412, `{"error":"old"}`, fault.Precondition, "old"},
		{422, `{"error":"taken","status":"name_taken"}`, fault.Unprocessable, "taken"},
		{429, `{"error":"slow down"}`, fault.TooMany, "slow down"},
		{500, `{"error":"oops"}`, fault.Internal, "oops (request id 01X)"},
		{501, `{"error":"not yet"}`, fault.Internal, "not yet (request id 01X)"},
		{503, `<html>`, fault.Unavailable, `the server answered "503 Service Unavailable" and no explanation`},
		{418, ``, fault.Invalid, `the server answered "418 I'm a teapot" and no explanation`},
	} {
		c, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("fly-request-id", "01X")
			w.WriteHeader(tc.code)
			fmt.Fprint(w, tc.body)
		})
		err := c.StartMachine(t.Context(), "a", "0123456789abcd", "")
		var fe *fault.Error
		if !errors.As(err, &fe) || fe.Kind != tc.kind || fe.Msg != tc.msg {
			t.Errorf("%d %s: %v (%v)", tc.code, tc.body, err, fault.KindOf(err))
		}
		if tc.code == 422 && fe.Status != "name_taken" {
			t.Errorf("status %q", fe.Status)
		}
	}
}

// TestRetries: a GET is sent again after a passing refusal; a change is not, unless
// the server said that it did nothing.
func TestRetries(t *testing.T) {
	for _, tc := range []struct {
		name  string
		code  int
		call  func(*Client) error
		asked int32
		ok    bool
	}{
		{"get, 503", 503, func(c *Client) error { _, err := c.Apps(context.Background(), "personal"); return err }, 2, true},
		{"post, 503", 503, func(c *Client) error { return c.StartMachine(context.Background(), "a", "m", "") }, 1, false},
		{"post, 429", 429, func(c *Client) error { return c.StartMachine(context.Background(), "a", "m", "") }, 2, true},
		{"get, 404", 404, func(c *Client) error { _, err := c.Apps(context.Background(), "personal"); return err }, 1, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var asked atomic.Int32
			c, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				if asked.Add(1) == 1 {
					w.WriteHeader(tc.code)
				}
				fmt.Fprint(w, `{}`)
			})
			if err := tc.call(c); (err == nil) != tc.ok || asked.Load() != tc.asked {
				t.Fatalf("%v after %d requests", err, asked.Load())
			}
		})
	}
}

func TestLeaseForms(t *testing.T) {
	for _, body := range []string{
		`{"status":"success","data":{"nonce":"n1","expires_at":5}}`,
		`{"nonce":"n1","expires_at":5}`,
		`{"status":"success","nonce":"n1","data":{"nonce":"n1"}}`,
	} {
		c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
			var in struct{ TTL int }
			json.NewDecoder(r.Body).Decode(&in)
			if in.TTL != 13 || r.URL.Query().Get("ttl") != "13" || r.Header.Get(NonceHeader) != "n0" {
				t.Errorf("ttl %d, query %s, nonce %q", in.TTL, r.URL.RawQuery, r.Header.Get(NonceHeader))
			}
			w.WriteHeader(201)
			fmt.Fprint(w, body)
		})
		l, err := c.AcquireLease(t.Context(), "a", "m", 13*time.Second, "why", "n0")
		if err != nil || l.Nonce != "n1" {
			t.Errorf("%s: %+v, %v", body, l, err)
		}
	}
	c, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{}`) })
	if _, err := c.AcquireLease(t.Context(), "a", "m", time.Second, "", ""); err == nil {
		t.Error("a lease without a nonce was taken")
	}
}

func TestReleaseOfAGoneLeaseIsFine(t *testing.T) {
	c, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(404)
		fmt.Fprint(w, `{"error":"lease not found"}`)
	})
	if err := c.ReleaseLease(t.Context(), "a", "m", "n"); err != nil {
		t.Fatal(err)
	}
}

func TestWaitClampsItsTimeout(t *testing.T) {
	for in, want := range map[time.Duration]string{0: "1", 1500 * time.Millisecond: "2", time.Hour: "60"} {
		c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if got := r.URL.Query().Get("timeout"); got != want {
				t.Errorf("%s: timeout %q, want %q", in, got, want)
			}
			fmt.Fprint(w, `{"ok":true}`)
		})
		if err := c.Wait(t.Context(), "a", "m", "01ARZ3NDEKTSV4RRFFQ69G5FAV", machine.Started, in); err != nil {
			t.Error(err)
		}
	}
}

func TestLogs(t *testing.T) {
	lines := `{"timestamp":"2026-01-02T03:04:05.5Z","machine":"m","stream":"stdout","message":"a"}` + "\n\n" +
		`{"timestamp":"2026-01-02T03:04:06Z","machine":"m","stream":"stderr","message":"b"}` + "\n"
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/apps/a/machines/m/logs" || r.URL.RawQuery != "tail=7" {
			t.Errorf("asked %s", r.URL)
		}
		fmt.Fprint(w, lines)
	})
	var got []string
	err := c.Logs(t.Context(), LogQuery{App: "a", Machine: "m", Tail: 7}, func(l LogLine) error { got = append(got, l.Stream+" "+l.Message); return nil })
	if err != nil || strings.Join(got, ",") != "stdout a,stderr b" {
		t.Fatalf("%v, %v", got, err)
	}
	stop := errors.New("enough")
	if err := c.Logs(t.Context(), LogQuery{App: "a", Machine: "m", Tail: 7}, func(LogLine) error { return stop }); err != stop {
		t.Fatalf("error %v", err)
	}
}

func TestLogsThatAreNotLogs(t *testing.T) {
	for name, body := range map[string]string{"not JSON": "hello\n", "too long": strings.Repeat("x", maxLogLine+2)} {
		c, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) })
		if err := c.Logs(t.Context(), LogQuery{App: "a"}, func(LogLine) error { return nil }); !fault.Is(err, fault.Internal) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFollowEndsWithItsContext(t *testing.T) {
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, `{"message":"a"}`)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	if err := c.Logs(ctx, LogQuery{App: "a", Follow: true}, func(LogLine) error { cancel(); return nil }); err != nil {
		t.Fatal(err)
	}
}

func TestPathsAreEscaped(t *testing.T) {
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.EscapedPath() != "/v1/apps/a%2F..%2Fb" {
			t.Errorf("asked %s", r.URL.EscapedPath())
		}
		fmt.Fprint(w, `{}`)
	})
	c.App(t.Context(), "a/../b")
}

func TestIsLocalhost(t *testing.T) {
	for h, want := range map[string]bool{
		"localhost": true, "api.bulkhead.localhost": true, "API.X.LOCALHOST.": true,
		"localhost.example.com": false, "notlocalhost": false, "example.com": false,
	} {
		if isLocalhost(h) != want {
			t.Errorf("isLocalhost(%q) is not %v", h, want)
		}
	}
}
