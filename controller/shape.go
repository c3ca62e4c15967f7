package controller

import (
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/limit"
)

// Bounds of a request's form. What is larger never reaches a handler, nor the look at
// its token. Beyond maxHeaderBytes net/http answers 431 itself, without the API's form.
const (
	maxTarget       = 8 << 10  // bytes of the path and the query
	maxHeaderFields = 100      // values
	maxHeaderSum    = 48 << 10 // bytes of names and values; several tokens and their discharges
	maxParameters   = 100      // of the query
)

// Status words of requests that are refused by their form alone.
const (
	statusLongTarget  = "uri_too_long"
	statusManyHeaders = "headers_too_large"
	statusMediaType   = "unsupported_media_type"
)

// bodyShape bounds the JSON of every body.
var bodyShape = limit.JSON{Depth: 32, Elements: 100_000}

// largeBodies are the endpoints whose bodies may be larger than smallBody, by their
// pattern: those that carry files, secrets or input for a command.
var largeBodies = map[string]int64{
	"POST /v1/apps/{app}/machines":                maxBody,
	"POST /v1/apps/{app}/machines/{machine}":      maxBody,
	"POST /v1/apps/{app}/machines/{machine}/exec": maxBody,
	"POST /v1/apps/{app}/secrets":                 maxBody,
}

// smallBody is the bound of all other bodies.
const smallBody = 256 << 10

// bodyBound returns how large the body of a request may be.
func bodyBound(pattern string) int64 {
	if n := largeBodies[pattern]; n != 0 {
		return n
	}
	return smallBody
}

// alone are headers that must not be there twice: a proxy in front and the API could
// each take another one.
var alone = []string{"Authorization", "Content-Type", "Content-Encoding", "Fly-Machine-Lease-Nonce"}

// checkSize refuses a request that is too large before its token is looked at, or that
// has two of what there is one of.
func checkSize(r *http.Request) error {
	if len(r.RequestURI) > maxTarget {
		return fault.New(fault.TooLarge, "the request's path and query have %d bytes; at most %d are taken", len(r.RequestURI), maxTarget).WithStatus(statusLongTarget)
	}
	return checkHeader(r.Header)
}

// checkForm refuses a target that can be read in two ways. Only who is known learns of
// it: without a good token every path is answered alike.
func checkForm(r *http.Request) error {
	if err := checkPath(r.URL); err != nil {
		return err
	}
	if n := strings.Count(r.URL.RawQuery, "&") + 1; n > maxParameters {
		return fault.New(fault.Invalid, "the query has %d parameters; at most %d are taken", n, maxParameters)
	}
	if _, err := url.ParseQuery(r.URL.RawQuery); err != nil {
		return fault.New(fault.Invalid, "the query is malformed: every %% must begin an escape, and parameters are separated by &")
	}
	return nil
}

func checkHeader(h http.Header) error {
	fields, sum := 0, 0
	for name, values := range h {
		fields += len(values)
		for _, v := range values {
			sum += len(name) + len(v)
		}
	}
	if fields > maxHeaderFields || sum > maxHeaderSum {
		return fault.New(fault.TooLarge, "the request has %d header fields of %d bytes; at most %d of together %d are taken", fields, sum, maxHeaderFields, maxHeaderSum).WithStatus(statusManyHeaders)
	}
	for _, name := range alone {
		if len(h[name]) > 1 {
			return fault.New(fault.Invalid, "the request has %d %s headers; send one", len(h[name]), name)
		}
	}
	return nil
}

// checkPath refuses a path that is not in its one canonical form, which a mux would
// redirect, and what could end a line of a log.
func checkPath(u *url.URL) error {
	segments := strings.Split(u.EscapedPath(), "/")
	for i, s := range segments {
		plain, err := url.PathUnescape(s)
		if err != nil || plain == "." || plain == ".." || plain == "" && i > 0 && i < len(segments)-1 {
			return fault.New(fault.Invalid, "the path has an empty part, \".\" or \"..\", or is malformed")
		}
		if !utf8.ValidString(plain) || strings.ContainsFunc(plain, func(c rune) bool { return c < ' ' || c == 0x7f }) {
			return fault.New(fault.Invalid, "the path has control characters, or is not UTF-8")
		}
	}
	return nil
}

// checkNames refuses a path one of whose names cannot be any object's: what an encoded
// slash, a letter that only looks like another, or another case makes of a name reaches
// no key of the store. Such an object is not there, as any other that is not.
func checkNames(r *http.Request) error {
	if v := r.PathValue("app"); v != "" && !plainLabel(v) {
		return noApp(v)
	}
	if v := r.PathValue("machine"); v != "" {
		if _, err := key.ParseMachineID(v); err != nil {
			return noMachine(v)
		}
	}
	for name, kind := range map[string]string{"org": "organization", "node": "node"} {
		if v := r.PathValue(name); v != "" && !plainLabel(v) {
			return fault.New(fault.NotFound, "%s %q not found", kind, fault.Clip(v))
		}
	}
	return nil
}

// plainLabel reports whether s is of the characters that names have.
func plainLabel(s string) bool {
	return len(s) <= 63 && !strings.ContainsFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-'
	})
}

// checkMedia refuses a body that says it is no JSON. What curl says of -d by default is
// taken as JSON: callers are known by a header that no page can make a browser send.
func checkMedia(h http.Header) error {
	if enc := h.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return fault.New(fault.Invalid, "Content-Encoding %q is not taken; send the body as it is", fault.Clip(enc)).WithStatus(statusMediaType)
	}
	t, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	switch t = strings.ToLower(strings.TrimSpace(t)); {
	case t == "", t == "application/json", t == "application/octet-stream", t == "application/x-www-form-urlencoded", strings.HasPrefix(t, "application/") && strings.HasSuffix(t, "+json"):
		return nil
	}
	return fault.New(fault.Invalid, "Content-Type %q is not taken; send application/json", fault.Clip(t)).WithStatus(statusMediaType)
}
