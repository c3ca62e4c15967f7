package edge

import (
	"net/http"
	"strings"
)

// notFoundPage is what a browser shows for a name that no app has. It says nothing that
// depends on the request.
const notFoundPage = `<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Not found</title>
<h1>Not found</h1>
<p>There is no app at this address.</p>
</html>
`

// wantsPage reports whether a request comes from a browser that will show the answer.
func wantsPage(r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	for _, v := range r.Header["Accept"] {
		if strings.Contains(strings.ToLower(v), "text/html") {
			return true
		}
	}
	return false
}

// asPage makes the headers of an answer those of a page that may load nothing.
func asPage(h http.Header) {
	h["Content-Type"] = []string{"text/html; charset=utf-8"}
	h["Content-Security-Policy"] = []string{"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"}
	h["Referrer-Policy"] = []string{"no-referrer"}
	h["X-Frame-Options"] = []string{"DENY"}
}
