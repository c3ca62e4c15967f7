package client

import (
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"bulkhead/fault"
)

// FuzzLogin: of a login line, only an address that begins with https://api. and ends
// after the host is taken, with a pin of 32 bytes; what is taken is asked for over
// TLS, at that host and its siblings alone.
func FuzzLogin(f *testing.F) {
	pin := strings.Repeat("A", 43)
	for _, s := range [][3]string{
		{"https://api.example.com", pin, ""}, {"https://api.example.com:8443/", pin + "=", "socks5://127.0.0.1:1"}, {"http://api.example.com", pin, ""}, {"https://api.example.com@evil.example", pin, ""},
		{"https://api.example.com/..", pin, "http://p"}, {"https://api.example.com?x", "x", "https://p"}, {"https://api.", pin, ""}, {"https://api.exаmple.com", pin, ""}, {"https://API.Example.com:0x1", pin, ""},
		{"https://[api.::1]", pin, ""}, {"https://api.a\r\nX: y", pin, "http://a b"}, {"https:api.example.com", pin, ":"}, {"https://api.example.com:99999", pin, ""},
	} {
		f.Add(s[0], s[1], s[2])
	}
	f.Fuzz(func(t *testing.T, address, pin, proxy string) {
		c, err := New(Config{URL: address, Pin: pin, Token: "bh_x", Proxy: proxy})
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("%q %q %q: %v", address, pin, proxy, err)
			}
			return
		}
		defer c.Close()
		if b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(pin, "=")); err != nil || len(b) != 32 {
			t.Errorf("the pin %q was taken", pin)
		}
		if c.base.Scheme != "https" || !strings.HasPrefix(c.base.Hostname(), "api.") || c.base.Path != "" || c.base.User != nil || strings.ContainsAny(c.URL(), " \r\n\t@?#") {
			t.Errorf("%q is asked at %q", address, c.URL())
		}
		if strings.ContainsAny(c.Registry()+c.Domain(), "/@?# \r\n") || !strings.HasPrefix(c.Registry(), "registry.") {
			t.Errorf("%q has the registry %q", address, c.Registry())
		}
		if r, err := http.NewRequest("GET", c.URL()+"/v1", nil); err != nil || r.URL.Host != c.base.Host {
			t.Errorf("%q: %v", address, err)
		}
	})
}

// FuzzAnswer: whatever a server answers, its refusal is an error of a known kind with
// something to say, and no panic.
func FuzzAnswer(f *testing.F) {
	f.Add(429, `{"error":"slow down","status":"rate_limited"}`, "3")
	f.Add(500, `<html>`, "-1")
	f.Add(418, `{"error":{}}`, "99999999999999999999")
	f.Add(400, `{"message":"x","status":1}`, "Wed, 21 Oct 2015 07:28:00 GMT")
	f.Fuzz(func(t *testing.T, code int, body, retry string) {
		if code < 300 || code > 599 {
			return
		}
		w := httptest.NewRecorder()
		w.Header()["Retry-After"] = []string{retry}
		w.WriteHeader(code)
		w.WriteString(body)
		err := answerError(w.Result())
		if err == nil || fault.MessageOf(err) == "" || len(err.Error()) > maxErrorAnswer*4 {
			t.Errorf("%d %q: %v", code, body, err)
		}
	})
}
