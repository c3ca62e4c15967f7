package controller

import (
	"net"
	"net/http"
	"strings"
)

// hostOf returns the name that a request is for, in the form that the edge gives names:
// lower case, without a port and without a dot at the end.
func hostOf(req *http.Request) string {
	host := strings.ToLower(req.Host)
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.TrimSuffix(host, ".")
}

// toSignIn leads a browser to the sign-in page. It reports whether it has answered: other
// clients get what they got without it.
func (c *Controller) toSignIn(w http.ResponseWriter, req *http.Request) bool {
	if req.Method != http.MethodGet && req.Method != http.MethodHead || !strings.Contains(strings.ToLower(req.Header.Get("Accept")), "text/html") {
		return false
	}
	h := w.Header()
	pageHeaders(h)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Location", c.publicURL("/login"))
	w.WriteHeader(http.StatusSeeOther)
	return true
}
