package controller

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"

	"bulkhead/audit"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/role"
)

// Changes that are not calls of the API: of the registry and of the admin socket. Their
// answers are held back until their records are durable.

// auditedRegistry is the registry with records: of each manifest that is put or removed,
// which is what makes content visible or takes it away, and of what is refused.
func (c *Controller) auditedRegistry(w http.ResponseWriter, rec *recorder, req *http.Request) {
	r := &call{w: w, id: c.newRequestID()}
	r.Request = req.WithContext(context.WithValue(req.Context(), callKey{}, r))
	r.Pattern = req.Method + " registry"
	if changesImages(req) {
		c.changeImages(w, r)
	} else {
		c.registry.ServeHTTP(w, r.Request)
	}
	c.refused(r, rec.code)
}

func changesImages(r *http.Request) bool {
	return r.Method == http.MethodDelete || r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/")
}

// changeImages serves a change of the registry. Its answer is held back until the record
// is durable.
func (c *Controller) changeImages(w http.ResponseWriter, r *call) {
	if err := c.audit.Ready(); err != nil {
		writeRegistryError(w, c, err)
		return
	}
	p := &callRecord{at: now(), rec: c.recordOf(r)}
	p.rec.Action = r.Method + " image"
	p.rec.Target = "image=" + cutTokens(fault.Clip(strings.TrimPrefix(r.URL.Path, "/v2/")))
	held := &heldAnswer{w: w, header: http.Header{}}
	ctx := context.WithValue(r.Context(), imageChangeKey{}, func(a *record.App) error {
		p.change(func(rec *audit.Record) {
			action, target := rec.Action, rec.Target
			*rec = c.recordOf(r)
			rec.Action, rec.Target, rec.Org, rec.App = action, target, a.Org, string(a.Name)
		})
		r.pending = p // from here on it is allowed, and has its record
		return c.outbox.begin(r.Context(), p)
	})
	c.registry.ServeHTTP(held, r.Request.WithContext(ctx))
	if r.pending != nil {
		if err := c.finish(r.Context(), p, held.status()); err != nil {
			writeRegistryError(w, c, err)
			return
		}
	}
	held.send()
}

// auditedAdmin is the admin socket with records of what root changes there.
func (c *Controller) auditedAdmin(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodGet {
			next.ServeHTTP(w, req)
			return
		}
		if err := c.audit.Ready(); err != nil {
			writeError(w, c.log, err)
			return
		}
		p := &callRecord{at: now(), rec: audit.Record{
			ID: c.newRequestID(), Name: "root", From: role.SocketAdmin + " socket", Action: req.Method + " " + cutTokens(req.URL.Path),
		}}
		held := &heldAnswer{w: w, header: http.Header{}}
		err := c.outbox.begin(req.Context(), p)
		if err == nil {
			next.ServeHTTP(held, req.WithContext(withRecord(req.Context(), p)))
			err = c.finish(req.Context(), p, held.status())
		}
		if err != nil {
			writeError(w, c.log, err)
			return
		}
		held.send()
	})
}

// imageChangeKey is the context key of what is called when a change of an image is
// allowed.
type imageChangeKey struct{}

// imageChange is called by authorizeRegistry when it has allowed a change.
func imageChange(ctx context.Context, a *record.App) error {
	f, ok := ctx.Value(imageChangeKey{}).(func(*record.App) error)
	if !ok {
		return nil
	}
	return f(a)
}

// writeRegistryError answers as a registry does.
func writeRegistryError(w http.ResponseWriter, c *Controller, err error) {
	type entry struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	c.log.Warn("registry request refused", "err", err)
	writeJSON(w, statusOf(err), map[string][]entry{"errors": {{"UNAVAILABLE", fault.MessageOf(err)}}})
}

// heldAnswer is an answer that is not sent yet. Answers to changes are small.
type heldAnswer struct {
	w      http.ResponseWriter
	header http.Header
	code   int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (h *heldAnswer) Header() http.Header { return h.header }

// WriteHeader implements http.ResponseWriter.
func (h *heldAnswer) WriteHeader(code int) {
	if h.code == 0 {
		h.code = code
	}
}

// Write implements http.ResponseWriter.
func (h *heldAnswer) Write(b []byte) (int, error) {
	h.WriteHeader(http.StatusOK)
	if h.body.Len()+len(b) > maxBody {
		return 0, fmt.Errorf("an answer of more than %d bytes", maxBody)
	}
	return h.body.Write(b)
}

func (h *heldAnswer) status() int { return max(h.code, http.StatusOK) }

// Unwrap lets http.ResponseController set the request's deadlines.
func (h *heldAnswer) Unwrap() http.ResponseWriter { return h.w }

// send sends it.
func (h *heldAnswer) send() {
	for k, v := range h.header {
		h.w.Header()[k] = v
	}
	h.w.WriteHeader(h.status())
	h.w.Write(h.body.Bytes())
}
