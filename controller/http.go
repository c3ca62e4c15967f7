package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"time"

	"bulkhead/api/execstream"
	"bulkhead/controller/access"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/token"
)

// Bounds of a request of the API.
const (
	maxBody        = 4 << 20          // bytes; see bodyBound
	bodyLimit      = 30 * time.Second // to send the body
	answerLimit    = 2 * time.Minute  // to compute and take the answer, unless a handler says otherwise
	leftoverLimit  = 5 * time.Second  // to send what of a body nobody wants
	maxHeaderBytes = 64 << 10
)

// call is one request of the API on its way through a handler.
type call struct {
	*http.Request
	w       http.ResponseWriter
	rc      *http.ResponseController
	who     access.Caller
	cmd     *execRequest       // of an exec, once it is read
	frames  *execstream.Reader // of an exec whose bytes are carried
	exec    *execWriter        // of the same, once it runs
	on      access.Request     // what the endpoint is about, as it was allowed
	allowed *record.App        // the app of on, at that time
	id      string             // fly-request-id

	pending  *callRecord   // the call's record, once it is allowed to change something
	bodyTime time.Duration // to send the body
}

// app, machine and nonce are the parts of a request that many handlers need.
func (r *call) app() string     { return r.PathValue("app") }
func (r *call) machine() string { return r.PathValue("machine") }
func (r *call) nonce() string   { return r.Header.Get("fly-machine-lease-nonce") }

// flag reads a boolean of the query: present without a value counts as true.
func (r *call) flag(name string) (bool, error) {
	q := r.URL.Query()
	if !q.Has(name) {
		return false, nil
	}
	v := q.Get(name)
	if v == "" {
		return true, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, fault.New(fault.Invalid, "%s is %q; it is true or false", name, fault.Clip(v))
	}
	return b, nil
}

// number reads a whole number of the query, within bounds.
func (r *call) number(name string, def, least, most int) (int, error) {
	v := r.URL.Query().Get(name)
	if v == "" {
		return def, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < least {
		return 0, fault.New(fault.Invalid, "%s is %q; it is a whole number from %d", name, fault.Clip(v), least)
	}
	return min(n, most), nil
}

// read decodes the body into v. It refuses unknown fields; nulls are fine, an empty body is
// an error only when it is required.
func (r *call) read(v any, required bool) error {
	bound := bodyBound(r.Pattern)
	r.rc.SetReadDeadline(time.Now().Add(r.bodyTime))
	b, err := io.ReadAll(http.MaxBytesReader(r.w, r.Body, bound))
	r.rc.SetReadDeadline(time.Time{})
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return fault.New(fault.TooLarge, "the request's body is larger than %d KiB", bound>>10)
	case errors.Is(err, os.ErrDeadlineExceeded):
		r.w.Header().Set("Connection", "close") // what is left of it is not waited for
		return fault.Wrap(fault.Timeout, errSlowBody, "the request's body did not come within %v", r.bodyTime)
	case err != nil:
		return fault.Wrap(fault.Invalid, err, "the request's body could not be read")
	case len(b) == 0 && !required:
		return nil
	}
	if err := checkMedia(r.Header); err != nil {
		return err
	}
	if err := bodyShape.Check(b); err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fault.New(fault.Invalid, "the request's body is not the JSON that is wanted: %s", jsonProblem(err))
	}
	return checkFields("", b, v)
}

// jsonProblem says what is wrong with a body in the caller's words, not in Go's.
func jsonProblem(err error) string {
	var typ *json.UnmarshalTypeError
	if errors.As(err, &typ) {
		return fmt.Sprintf("%s cannot be a %s", typ.Field, typ.Value)
	}
	return err.Error()
}

// handler answers a call: a code and a body, or an error.
type handler func(r *call) (int, any, error)

// endpoint is one route of the API.
type endpoint struct {
	pattern string // of http.ServeMux
	act     access.Action
	what    access.Kind
	h       handler
}

// secretKinds are what values of secrets or keys come in calls and answers about.
var secretKinds = map[access.Kind]bool{access.Secret: true, access.SecretKey: true, access.SecretKeyUse: true, access.SSO: true}

// holdsSecrets says that values of secrets or keys may be in a call or its answer.
func (e endpoint) holdsSecrets() bool { return e.act != access.Read && secretKinds[e.what] }

// serveAPI is the API's whole way in: id, log, panic, token, then the route.
func (c *Controller) serveAPI() http.Handler {
	mux := http.NewServeMux()
	for _, e := range c.endpoints() {
		mux.Handle(e.pattern, c.handle(e))
	}
	mux.Handle("/", c.handle(endpoint{act: access.Read, what: access.Platform, h: func(r *call) (int, any, error) {
		return 0, nil, fault.New(fault.NotFound, "no such endpoint: %s %s", r.Method, fault.Clip(r.URL.Path))
	}}))
	root, public := http.NewServeMux(), http.NewServeMux()
	for _, e := range c.publicEndpoints() {
		public.Handle(e.pattern, c.handlePublic(e))
		root.Handle(e.pattern, c.outer(public, true))
	}
	known := c.outer(mux, false)
	root.Handle("/", known)
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if checkForm(req) != nil {
			known.ServeHTTP(w, req) // which refuses it; a mux would redirect to a path made clean
			return
		}
		root.ServeHTTP(w, req)
	})
}

// callKey is the context key of the call that outer makes and handle completes.
type callKey struct{}

// outer does what every request needs, whatever its path: also that it has a good token,
// unless its endpoint is public.
func (c *Controller) outer(next http.Handler, public bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		start := time.Now()
		rec := &recorder{ResponseWriter: w}
		id := c.newRequestID()
		rec.Header().Set("fly-request-id", id)
		rec.Header().Set("Cache-Control", "no-store")
		rec.Header().Set("X-Content-Type-Options", "nosniff")
		log := c.log.With("request", id)
		rc := http.NewResponseController(rec)
		rc.SetWriteDeadline(start.Add(answerLimit))
		r := &call{Request: req, w: rec, rc: rc, id: id, bodyTime: c.cfg.BodyLimit}
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler {
					panic(p)
				}
				log.Error("panic in a handler", "panic", p, "stack", string(debug.Stack()))
				if rec.code == 0 {
					writeError(rec, log, fault.New(fault.Internal, "internal error; the request id finds it in the server's log"))
				}
			}
			rc.SetReadDeadline(time.Now().Add(c.gate.limits.Leftover))
			took := time.Since(start)
			c.metrics.request(req.Method, rec.code, took)
			c.refused(r, rec.code)
			log.Info("request", "method", req.Method, "path", fault.Clip(req.URL.Path), "code", rec.code,
				"bytes", rec.bytes, "ms", float64(took.Microseconds())/1000, "caller", r.who.Name, "from", req.RemoteAddr)
		}()
		if err := checkSize(req); err != nil {
			writeError(rec, log, err)
			return
		}
		var who access.Caller
		var err error
		switch {
		case !public:
			who, err = c.identify(tokenOf(req), req.RemoteAddr, func() (access.Caller, error) { return c.whoCalls(req) })
		case callingMachine(req.Context()) != nil:
			err = fault.New(fault.Denied, "a machine may act on itself alone; this is for people, over the network")
		}
		if err != nil {
			if fault.Is(err, fault.Unauthenticated) {
				rec.Header().Set("WWW-Authenticate", `Bearer realm="bulkhead"`)
			}
			if who.Kind == "" && fault.Is(err, fault.TooMany) {
				rec.Header().Set("Connection", "close") // with HTTP/2, too: it ends after what is under way
			}
			writeError(rec, log, err)
			return
		}
		if !public {
			known(req.Context(), who)
		}
		who.From = r.from()
		r.who = who
		if err := checkForm(req); err != nil {
			writeError(rec, log, err)
			return
		}
		next.ServeHTTP(rec, req.WithContext(context.WithValue(req.Context(), callKey{}, r)))
	})
}

// handle runs one endpoint.
func (c *Controller) handle(e endpoint) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r := req.Context().Value(callKey{}).(*call)
		r.Request = req
		log := c.log.With("request", r.id)
		if err := checkNames(req); err != nil {
			writeError(w, log, err)
			return
		}
		if err := c.mayCall(r, e); err != nil {
			c.metrics.refused(token.ReasonOf(err))
			writeError(w, log, err)
			return
		}
		if err := c.rates.allow(r.who, e, req); err != nil {
			writeError(w, log, err)
			return
		}
		req = req.WithContext(withAllowed(req.Context(), r.allowed))
		r.Request = req
		if e.ends() {
			ctx, open, done := c.begin(req.Context(), r.who.From)
			defer done()
			open.watch(r.who, r.on)
			r.Request = req.WithContext(ctx)
		}
		if e.holdsSecrets() {
			// What a connection has carried lies in its buffers for as long as it lasts.
			w.Header().Set("Connection", "close")
		}
		code, body, err := c.audited(r, e)
		if r.exec != nil {
			if why := endedBy(r.Context()); why != nil && err != nil {
				err = why
			}
			if !r.exec.end(body, err) {
				writeError(w, log, err) // the request's context may have ended with its reading
			}
			return
		}
		if req.Context().Err() != nil && err != nil && !errors.Is(err, errSlowBody) {
			return // the client is gone
		}
		if why := endedBy(r.Context()); why != nil && err != nil && !errors.Is(err, errAnswered) {
			err = why
		}
		switch {
		case errors.Is(err, errAnswered):
		case err != nil:
			writeError(w, log, err)
		default:
			writeJSON(w, code, body)
		}
	})
}

// mayCall decides whether the caller may use an endpoint on what its path names. An app
// that there is not is not found, whoever asks: names of apps are the whole cluster's.
func (c *Controller) mayCall(r *call, e endpoint) error {
	a := access.Request{Act: e.act, What: e.what, Org: r.PathValue("org"), Machine: key.MachineID(r.machine())}
	if name := r.app(); name != "" {
		app := c.directory.App(key.AppName(name))
		if app == nil {
			return noApp(name)
		}
		a.Org, a.App = app.Org, app.Name
		r.allowed = app
	}
	if e.what == access.OIDC { // about who asks
		a.App, a.Machine = r.who.App, r.who.Machine
		if app := c.directory.App(a.App); app != nil {
			a.Org = app.Org
		}
	}
	// What a command is a token may forbid; who may run none is told so without being read.
	if e.what == access.Exec && e.act == access.Control && r.Body != nil && r.who.Allowed(c.directory, a) {
		cmd, err := r.command()
		if err != nil {
			return err
		}
		a.Command = cmd
	}
	r.on = a
	return c.authorize(r.who, a)
}

// errSlowBody is why a body was given up. net/http then takes the client for gone, and
// would answer 200 for a handler that says nothing.
var errSlowBody = errors.New("the body is slow")

// errAnswered is returned by a handler that wrote its answer itself: of what only reads,
// since what has a record is answered when that is durable (audited).
var errAnswered = errors.New("answered")

// recorder notes the code and the size of an answer.
type recorder struct {
	http.ResponseWriter
	code  int
	bytes int64
}

// WriteHeader notes the code.
func (r *recorder) WriteHeader(code int) {
	if r.code == 0 {
		r.code = code
	}
	r.ResponseWriter.WriteHeader(code)
}

// Write counts the bytes.
func (r *recorder) Write(b []byte) (int, error) {
	if r.code == 0 {
		r.code = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(b)
	r.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController through.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
