package controller

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"bulkhead/audit"
	"bulkhead/audit/auditlog"
	"bulkhead/controller/access"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/notice"
)

// recordLimit is how long an answer waits for its record.
const recordLimit = 10 * time.Second

// openAudit opens the audit log. One that cannot be written keeps nobody from starting:
// changes are refused until it can be.
func (c *Controller) openAudit(ctx context.Context) error {
	rc := c.cfg.Role
	signer, public, err := auditlog.OpenKey(filepath.Join(rc.DataDir, "audit.key"), rc.Domain+"/audit")
	if err != nil {
		return err
	}
	if c.left, err = c.outbox.leftover(ctx); err != nil {
		return err
	}
	if err := auditlog.CheckWitnesses([]byte(rc.AuditWitnesses)); err != nil {
		return err
	}
	c.audit = auditlog.Start(auditlog.Config{
		Witnesses: []byte(rc.AuditWitnesses), WitnessRequired: rc.AuditWitnessRequired,
		Dir: filepath.Join(rc.DataDir, "audit"), Signer: signer, Key: public, Log: c.log, Board: notice.New(c.log),
	})
	c.refusals = newRefusals(c.audit)
	return nil
}

// record writes an event to the audit log that is no call of the API: a join, a
// session, a secret that a worker opened. It returns when the record is durable;
// who is told of the event, or given what it is about, is told after that.
func (c *Controller) record(ctx context.Context, r audit.Record) error {
	if r.Result == "" {
		r.Result = audit.OK
	}
	return c.audit.Append(ctx, r)
}

// recorded reports whether every call of an endpoint has a record, whatever comes of it.
// Of the others those have one that are refused.
func (e endpoint) recorded() bool { return e.act != access.Read }

// outside reports whether an endpoint does something that is no change of the store: its
// record is written down first.
func (e endpoint) outside() bool {
	return strings.HasSuffix(e.pattern, "/exec") || strings.HasSuffix(e.pattern, "/exec/stream") || strings.HasSuffix(e.pattern, "/signal")
}

// audited runs an endpoint. What changes something does not begin when the audit log
// cannot be written, and is not answered before its record is durable.
func (c *Controller) audited(r *call, e endpoint) (code int, body any, err error) {
	if !e.recorded() {
		return e.h(r)
	}
	if err := c.audit.Ready(); err != nil {
		return 0, nil, err
	}
	p := &callRecord{at: now(), rec: c.recordOf(r)}
	r.pending = p
	r.Request = r.WithContext(withRecord(r.Context(), p))
	if e.outside() {
		if err := c.outbox.begin(r.Context(), p); err != nil {
			return 0, nil, err
		}
	}
	ended := false
	defer func() {
		if !ended { // a panic
			c.finish(r.Context(), p, http.StatusInternalServerError)
		}
	}()
	code, body, err = e.h(r)
	ended = true
	result := code
	if err != nil {
		result = statusOf(err)
	}
	if rerr := c.finish(r.Context(), p, result); rerr != nil && err == nil {
		return 0, nil, rerr
	}
	return code, body, err
}

// watched runs a public endpoint, of which nobody knows before whether it changes
// anything: if it did, its record went along, and the answer waits for it. A page that
// was sent already has its record in the store.
func (c *Controller) watched(r *call, e publicEndpoint) (code int, body any, err error) {
	p := &callRecord{at: now(), rec: c.recordOf(r), ready: c.audit.Ready}
	r.Request = r.WithContext(withRecord(r.Context(), p))
	code, body, err = e.h(r)
	if !p.isStored() {
		return code, body, err
	}
	r.pending = p
	result := max(code, http.StatusOK)
	if err != nil && !errors.Is(err, errAnswered) {
		result = statusOf(err)
	}
	if rerr := c.finish(r.Context(), p, result); rerr != nil && err == nil {
		return 0, nil, rerr
	}
	return code, body, err
}

// noteUser says in the record of a call who turned out to make it.
func (c *Controller) noteUser(r *call, id key.UserID, org string) {
	p := recordIn(r.Context())
	if p == nil {
		return
	}
	p.change(func(rec *audit.Record) {
		rec.User = string(id)
		if u := c.directory.User(id); u != nil {
			rec.Name = u.Name
		}
		if c.directory.Org(org) != nil {
			rec.Org = org
		}
	})
}

// noteEvent says in the record of a call what happened, and writes one for a refusal,
// with the reason's word and not its text.
func (c *Controller) noteEvent(r *call, what, on string, err error) {
	if err == nil {
		if p := recordIn(r.Context()); p != nil {
			p.change(func(rec *audit.Record) { rec.Detail, rec.Target = what, "session="+fault.Clip(on) })
		}
		return
	}
	rec := c.recordOf(r)
	rec.Result, rec.Code, rec.Detail = audit.Refused, statusOf(err), what
	if f := (*fault.Error)(nil); errors.As(err, &f) && f.Status != "" {
		rec.Detail += ": " + f.Status
	}
	if c.directory.Org(on) != nil {
		rec.Org = on
	}
	c.refusals.add(rec)
	r.pending = &callRecord{} // it has its record
}

// finish writes the record of a call with what came of it.
func (c *Controller) finish(ctx context.Context, p *callRecord, code int) error {
	p.change(func(r *audit.Record) { r.Code, r.Result = code, audit.ResultOf(code) })
	p.mu.Lock()
	rec, stored := p.rec, p.stored
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordLimit)
	defer cancel()
	err := c.audit.Must(ctx, rec, func() {
		if stored {
			c.outbox.forget(rec.ID)
		}
	})
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "this was done, or begun, but its record could not be written to the audit log yet; look at what is there before you repeat it").WithStatus("audit_unavailable")
	}
	return nil
}

// recordOf is what is known of a call before it is served. It belongs to the organization
// that the call is about, if there is one, else to the cluster's operators: what a caller
// makes up gets no log of its own.
func (c *Controller) recordOf(r *call) audit.Record {
	rec := audit.Record{
		ID: r.id, User: string(r.who.User), Name: r.who.Name, From: addressOf(r.RemoteAddr), Action: r.Pattern, Target: cutTokens(targetOf(r.Request)),
	}
	if rec.Action == "" || rec.Action == "/" {
		rec.Action = r.Method // the path is the caller's words
	}
	if r.cmd != nil {
		r.cmd.noteIn(&rec)
	}
	if t := r.who.Token; t != nil {
		rec.Token = string(t.ID)
	}
	if cl := r.who.Claim; cl != nil {
		rec.Org = cl.Org
	}
	if o := c.directory.Org(r.PathValue("org")); o != nil {
		rec.Org = o.Slug
	}
	app := key.AppName(r.app())
	if app == "" && rec.Org == "" { // what a Machine asks for without a name is about itself
		app, rec.Machine = r.who.App, string(r.who.Machine)
	}
	if a := c.directory.App(app); a != nil {
		rec.Org, rec.App = a.Org, string(a.Name)
	}
	if m, err := key.ParseMachineID(r.machine()); err == nil {
		rec.Machine = string(m)
	}
	if a := c.directory.App(r.who.App); rec.Org == "" && a != nil { // of a Machine, about itself
		rec.Org, rec.App, rec.Machine = a.Org, string(a.Name), string(r.who.Machine)
	}
	return rec
}

// note adds to a call's record what its path does not tell: what it makes.
func (r *call) note(org string, app key.AppName, m key.MachineID) {
	if r.pending != nil {
		r.pending.change(func(rec *audit.Record) { rec.Org, rec.App, rec.Machine = org, string(app), string(m) })
	}
}

// newRequestID returns the id of a request, by which its answer, its log lines and its record are
// known to belong together.
func (c *Controller) newRequestID() string {
	return string(key.NewInstanceID()) + "-" + c.cfg.Role.Region
}

// targetNames are the parts of paths that name what a call is about, besides app and
// Machine. None of them can be a secret.
var targetNames = []string{"node", "user", "domain", "session", "ip", "invitation", "secret", "key", "name", "id", "token", "passkey", "version"}

func targetOf(r *http.Request) string {
	for _, name := range targetNames {
		if v := r.PathValue(name); v != "" {
			return name + "=" + fault.Clip(v)
		}
	}
	return ""
}

// refused notes a call that was refused, unless it has a record.
func (c *Controller) refused(r *call, code int) {
	if r.pending != nil || audit.ResultOf(code) != audit.Refused {
		return
	}
	rec := c.recordOf(r)
	rec.Code, rec.Result = code, audit.Refused
	c.refusals.add(rec)
}
