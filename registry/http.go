package registry

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"bulkhead/fault"
	"bulkhead/key"
)

// The grammar of the distribution specification. A name that matches is safe as a
// relative path: no component is empty, starts with a dot or an underscore, or
// holds a slash.
var (
	repoRE = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagRE  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	idRE   = regexp.MustCompile(`^[0-9a-f]{32}$`)
)

// refusal is an error with its place in the distribution API.
type refusal struct {
	status int    // of HTTP
	code   string // of the specification
	detail any
	err    *fault.Error
}

func (e *refusal) Error() string { return e.err.Error() }
func (e *refusal) Unwrap() error { return e.err }

// refuse returns a refusal with the kind of error that fits the status.
func refuse(status int, code, format string, args ...any) error {
	kinds := map[int]fault.Kind{
		400: fault.Invalid, 401: fault.Unauthenticated, 403: fault.Denied, 404: fault.NotFound,
		405: fault.Unprocessable, 409: fault.Conflict, 413: fault.TooLarge,
		416: fault.Precondition, 429: fault.TooMany, 503: fault.Unavailable,
	}
	return &refusal{status: status, code: code, err: fault.New(kinds[status], format, args...)}
}

// target is what a request's path names.
type target struct {
	kind string // base, blob, uploads, upload, manifest, tags, referrers
	repo string
	ref  string // digest, tag or upload id, unchecked
}

// parsePath reads a path below /v2/. It looks from the end, since a repository's
// name may hold words such as blobs.
func parsePath(path string) (target, error) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok && path != "/v2" {
		return target{}, refuse(404, "UNSUPPORTED", "no such endpoint; the registry is below /v2/")
	}
	if rest == "" {
		return target{kind: "base"}, nil
	}
	s := strings.Split(rest, "/")
	n := len(s)
	is := func(fromEnd int, word string) bool { return n > fromEnd && s[n-fromEnd] == word }
	t, words := target{}, 2
	switch {
	case is(2, "uploads") && is(3, "blobs") && s[n-1] != "":
		t, words = target{kind: "upload", ref: s[n-1]}, 3
	case is(2, "uploads") && is(3, "blobs"):
		t, words = target{kind: "uploads"}, 3
	case is(1, "uploads") && is(2, "blobs"):
		t = target{kind: "uploads"}
	case is(2, "blobs"):
		t = target{kind: "blob", ref: s[n-1]}
	case is(2, "manifests"):
		t = target{kind: "manifest", ref: s[n-1]}
	case is(2, "tags") && is(1, "list"):
		t = target{kind: "tags"}
	case is(2, "referrers"):
		t = target{kind: "referrers", ref: s[n-1]}
	default:
		return target{}, refuse(404, "UNSUPPORTED", "no such endpoint")
	}
	t.repo = strings.Join(s[:n-words], "/")
	return t, checkRepo(t.repo)
}

// checkRepo checks a repository's name.
func checkRepo(repo string) error {
	if len(repo) > 255 || !repoRE.MatchString(repo) {
		return refuse(400, "NAME_INVALID", "repository name must be at most 255 lower-case letters, digits, dots, dashes and underscores, with slashes between its parts")
	}
	return nil
}

// parseDigest checks a digest.
func parseDigest(s string) (key.Digest, error) {
	d, err := key.ParseDigest(s)
	if err != nil {
		return "", refuse(400, "DIGEST_INVALID", "%s", fault.MessageOf(err))
	}
	return d, nil
}

// token takes the token out of a request; it is empty if there is none.
func token(r *http.Request) string {
	if _, password, ok := r.BasicAuth(); ok {
		return password
	}
	scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(rest)
	}
	return ""
}

// authorize asks Config.Authorize about one repository.
func (r *Registry) authorize(ctx context.Context, tok, repo string, push bool) error {
	if tok == "" {
		return refuse(401, "UNAUTHORIZED", "log in first: any user name, and a token as the password")
	}
	return r.cfg.Authorize(ctx, tok, repo, push)
}

// ServeHTTP serves the distribution API below /v2/.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	setHeaders(w.Header())
	if err := r.serve(w, req); err != nil {
		r.writeError(w, req, err)
	}
}

// Refuse answers a request with an error, for whoever looks at requests before the
// registry does.
func (r *Registry) Refuse(w http.ResponseWriter, req *http.Request, err error) {
	setHeaders(w.Header())
	r.writeError(w, req, err)
}

func setHeaders(h http.Header) {
	h.Set("Docker-Distribution-API-Version", "registry/2.0")
	// What is served is what somebody pushed; no browser should make anything of it.
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; sandbox")
}

// serve authorizes and dispatches.
func (r *Registry) serve(w http.ResponseWriter, req *http.Request) error {
	t, perr := parsePath(req.URL.Path)
	push := req.Method != http.MethodGet && req.Method != http.MethodHead || t.kind == "upload"
	if perr != nil {
		// Who is not logged in learns nothing about paths either.
		if err := r.authorize(req.Context(), token(req), "", false); err != nil {
			return err
		}
		return perr
	}
	if err := r.authorize(req.Context(), token(req), t.repo, push && t.repo != ""); err != nil {
		return err
	}
	handle, ok := r.routes[t.kind][req.Method]
	if !ok {
		return refuse(405, "UNSUPPORTED", "method %s is not supported here", req.Method)
	}
	return handle(w, req, t)
}

type handler func(w http.ResponseWriter, req *http.Request, t target) error

// table is kind of target × method.
func (r *Registry) table() map[string]map[string]handler {
	return map[string]map[string]handler{
		"base":      {"GET": r.base, "HEAD": r.base},
		"blob":      {"GET": r.getBlob, "HEAD": r.getBlob, "DELETE": r.deleteBlob},
		"uploads":   {"POST": r.postUpload},
		"upload":    {"GET": r.getUpload, "PATCH": r.patchUpload, "PUT": r.putUpload, "DELETE": r.deleteUpload},
		"manifest":  {"GET": r.getManifest, "HEAD": r.getManifest, "PUT": r.putManifest, "DELETE": r.deleteManifest},
		"tags":      {"GET": r.getTags},
		"referrers": {"GET": r.getReferrers},
	}
}

// base answers whether this is a registry and the token is good.
func (r *Registry) base(w http.ResponseWriter, req *http.Request, t target) error {
	return writeJSON(w, "application/json", map[string]any{})
}

// writeJSON answers 200 with v.
func writeJSON(w http.ResponseWriter, contentType string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", contentType)
	w.Write(b)
	return nil
}

// errorBody is the specification's form of an error.
type errorBody struct {
	Errors []errorEntry `json:"errors"`
}

type errorEntry struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Detail  any    `json:"detail,omitempty"`
}

// writeError answers with err.
func (r *Registry) writeError(w http.ResponseWriter, req *http.Request, err error) {
	status, entries := describe(err)
	if status >= 500 && status != 507 { // bulkheadd says once that the disk is full
		r.log.Error("registry request failed", "method", req.Method, "path", req.URL.Path, "status", status, "err", err)
	}
	h := w.Header()
	if d := fault.RetryAfterOf(err); d > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10))
	}
	if status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Basic realm="bulkhead"`)
	}
	for _, name := range []string{"Content-Length", "Etag", "Cache-Control", "Docker-Content-Digest"} {
		h.Del(name)
	}
	b, _ := json.Marshal(errorBody{entries})
	h.Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if req.Method != http.MethodHead {
		w.Write(b)
	}
}

// describe gives an error's HTTP status and body. An error that is no *fault.Error
// shows nothing of itself.
func describe(err error) (int, []errorEntry) {
	var missing *missingParts
	if errors.As(err, &missing) {
		return 400, missing.entries()
	}
	var ref *refusal
	if errors.As(err, &ref) {
		return ref.status, []errorEntry{{ref.code, ref.err.Msg, ref.detail}}
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return 413, []errorEntry{{"SIZE_INVALID", "the request is too large", nil}}
	}
	byKind := map[fault.Kind]errorEntry{
		fault.Unauthenticated: {Code: "UNAUTHORIZED"}, fault.Denied: {Code: "DENIED"},
		fault.NotFound: {Code: "NAME_UNKNOWN"}, fault.TooMany: {Code: "TOOMANYREQUESTS"}, fault.TooLarge: {Code: "SIZE_INVALID"},
	}
	statuses := map[fault.Kind]int{
		fault.Unauthenticated: 401, fault.Denied: 403, fault.NotFound: 404, fault.TooMany: 429, fault.Invalid: 400,
		fault.Full: 507, fault.Unavailable: 503, fault.Timeout: 503, fault.Conflict: 409, fault.Unprocessable: 400, fault.Precondition: 412, fault.TooLarge: 413,
	}
	kind := fault.KindOf(err)
	entry, status := byKind[kind], statuses[kind]
	if entry.Code == "" {
		entry.Code = "UNKNOWN"
	}
	if status == 0 {
		status = 500
	}
	entry.Message = fault.MessageOf(err)
	return status, []errorEntry{entry}
}

// patientReader reads a request's body and gives up when nothing comes for the idle
// time, however long the whole takes.
type patientReader struct {
	io.Reader
	rc   *http.ResponseController
	idle time.Duration
}

// body returns the request's body. The caller calls done when it has read enough.
func (r *Registry) body(w http.ResponseWriter, req *http.Request) (body *patientReader, done func()) {
	rc := http.NewResponseController(w)
	// The deadline must not outlive the reading: net/http reads on in the background,
	// and an expired deadline there would cancel the request's context.
	return &patientReader{req.Body, rc, r.cfg.IdleTimeout}, func() { rc.SetReadDeadline(time.Time{}) }
}

func (p *patientReader) Read(b []byte) (int, error) {
	p.rc.SetReadDeadline(time.Now().Add(p.idle)) // a recorder in a test has no deadlines
	return p.Reader.Read(b)
}

// patientWriter writes an answer and gives up when the client takes nothing for the
// idle time.
type patientWriter struct {
	http.ResponseWriter
	rc   *http.ResponseController
	idle time.Duration
}

// Unwrap is for http.ResponseController.
func (p *patientWriter) Unwrap() http.ResponseWriter { return p.ResponseWriter }

func (p *patientWriter) Write(b []byte) (int, error) {
	p.rc.SetWriteDeadline(time.Now().Add(p.idle))
	return p.ResponseWriter.Write(b)
}
