package controller

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"bulkhead/audit"
	"bulkhead/audit/auditlog"
	"bulkhead/fault"
)

// Bounds of a request for records.
const (
	auditPage    = 100
	auditWaitMax = 60 // seconds that a follower waits for the next record
)

// AuditPage is the answer to GET /v1/orgs/{org}/audit: records, newest first, or oldest
// first with after.
type AuditPage struct {
	Records []audit.Entry `json:"records"`
	// Cursor is where the next page begins, for cursor= or after=; absent when there is
	// nothing more. A page may hold few records, or none, and have a cursor.
	Cursor string `json:"cursor,omitempty"`
	// Last is the number (seq) of the newest record.
	Last uint64 `json:"last"`
}

// orgAudit lists records of an organization.
func (c *Controller) orgAudit(r *call) (int, any, error) { return c.auditOf(r, r.PathValue("org")) }

// clusterAudit lists those of no organization.
func (c *Controller) clusterAudit(r *call) (int, any, error) { return c.auditOf(r, "") }

func (c *Controller) auditOf(r *call, org string) (int, any, error) {
	q, wait, err := auditQuery(r, org)
	if err != nil {
		return 0, nil, err
	}
	if o := c.directory.Org(org); o != nil && q.Since.Before(o.CreatedAt) {
		q.Since = o.CreatedAt // what is older was another organization's, of the same name
	}
	if wait > 0 {
		ctx, cancel := context.WithTimeout(r.Context(), time.Duration(wait)*time.Second)
		defer cancel()
		stop := context.AfterFunc(c.closing, cancel)
		defer stop()
		if err := c.audit.Wait(ctx, org, q.From); err != nil && ctx.Err() == nil {
			return 0, nil, err
		}
	}
	p, err := c.audit.List(r.Context(), q)
	if err != nil {
		return 0, nil, err
	}
	out := AuditPage{Records: p.Entries, Last: p.Last}
	if out.Records == nil {
		out.Records = []audit.Entry{}
	}
	if p.Next > 0 {
		out.Cursor = strconv.FormatUint(p.Next, 10)
	}
	return http.StatusOK, out, nil
}

// auditQuery reads what records are asked for.
func auditQuery(r *call, org string) (q auditlog.Query, wait int, err error) {
	v := r.URL.Query()
	q = auditlog.Query{
		Org: org, User: v.Get("user"), Token: v.Get("token"), App: v.Get("app"), Machine: v.Get("machine"), Action: v.Get("action"),
		Result: audit.Result(v.Get("result")), Up: v.Has("after"),
	}
	if q.Limit, err = r.number("limit", auditPage, 1, auditlog.PageLimit); err != nil {
		return q, 0, err
	}
	if wait, err = r.number("wait", 0, 0, auditWaitMax); err != nil {
		return q, 0, err
	}
	if wait > 0 && !q.Up {
		return q, 0, fault.New(fault.Invalid, "wait is for after=, which says from which record on to wait")
	}
	for name, t := range map[string]*time.Time{"since": &q.Since, "until": &q.Until} {
		if s := v.Get(name); s != "" {
			if *t, err = time.Parse(time.RFC3339, s); err != nil {
				return q, 0, fault.New(fault.Invalid, "%s is %q; it is a time such as %s", name, fault.Clip(s), time.Now().UTC().Format(time.RFC3339))
			}
		}
	}
	for _, name := range []string{"cursor", "after"} {
		if s := v.Get(name); s != "" {
			if q.From, err = strconv.ParseUint(s, 10, 63); err != nil {
				return q, 0, fault.New(fault.Invalid, "%s is %q; it is what an earlier answer gave, or 0", name, fault.Clip(s))
			}
		}
	}
	return q, wait, nil
}

// AuditKey is the answer to GET /v1/audit/key.
type AuditKey struct {
	Key string `json:"key"` // verifier key of the checkpoints (C2SP signed-note)
}

func (c *Controller) auditKey(*call) (int, any, error) {
	return http.StatusOK, AuditKey{Key: c.audit.Key()}, nil
}

// logFile matches the paths of a tlog-tiles log.
var logFile = regexp.MustCompile(`^(checkpoint|tile/([0-5]?[0-9]|entries)/(x[0-9]{3}/){0,5}[0-9]{3}(\.p/[1-9][0-9]{0,2})?)$`)

// auditFile serves the transparency log itself: leaves are commitments, which tell
// nothing of the records, so whoever has a token may check.
func (c *Controller) auditFile(r *call) (int, any, error) {
	path := r.PathValue("path")
	if !logFile.MatchString(path) {
		return 0, nil, fault.New(fault.NotFound, "the audit log has no file %q: checkpoint, tile/<level>/<n>, tile/entries/<n>", fault.Clip(path))
	}
	b, err := os.ReadFile(filepath.Join(c.audit.Dir(), audit.LogDir, filepath.FromSlash(path)))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil, fault.New(fault.NotFound, "the audit log has no file %q", path)
	}
	if err != nil {
		return 0, nil, fault.System(err, "a file of the audit log cannot be read")
	}
	r.w.Header().Set("Content-Type", "application/octet-stream")
	r.w.Write(b)
	return 0, nil, errAnswered
}
