package edge

import (
	"net/http"
	"strings"

	"bulkhead/edge/upstream"
)

// give puts a header of an app's response into h. A cookie for the cluster's domain is left
// out: the browser would send it to every other app, and to the API.
func (s *Server) give(h http.Header, name string, values []string) {
	if name == "Set-Cookie" {
		values = s.ownCookies(values)
		if len(values) == 0 {
			return
		}
	}
	h[upstream.Spelling(name)] = values
}

// ownCookies returns the cookies that an app may set, values itself if that is all.
func (s *Server) ownCookies(values []string) []string {
	for i, v := range values {
		if !s.sharedCookie(v) {
			continue
		}
		own := append([]string(nil), values[:i]...)
		for _, v := range values[i:] {
			if s.sharedCookie(v) {
				s.m.cookies.Inc()
			} else {
				own = append(own, v)
			}
		}
		return own
	}
	return values
}

// sharedCookie reports whether a cookie has a Domain that holds the whole cluster. Of
// several Domain attributes browsers take the last; here each counts.
func (s *Server) sharedCookie(cookie string) bool {
	for {
		i := strings.IndexByte(cookie, ';')
		if i < 0 {
			return false
		}
		cookie = cookie[i+1:]
		attr, _, _ := strings.Cut(cookie, ";")
		name, value, _ := strings.Cut(attr, "=")
		if !strings.EqualFold(strings.TrimSpace(name), "domain") {
			continue
		}
		domain := strings.ToLower(strings.Trim(value, " \t\".")) // more than browsers forgive
		if domain == "" {
			continue
		}
		if rest, ok := strings.CutSuffix(s.Domain, domain); ok && (rest == "" || strings.HasSuffix(rest, ".")) {
			return true
		}
	}
}
