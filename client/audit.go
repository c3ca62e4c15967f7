package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"bulkhead/audit"
	"bulkhead/fault"
)

// AuditQuery says which records are wanted. Empty fields ask for nothing.
type AuditQuery struct {
	Org                       string // empty: the cluster's own
	User, Token, App, Machine string
	Action, Result            string
	Since, Until              time.Time
	// From is where to begin: a cursor of an earlier page, or with Up the number of a
	// record, upwards.
	From  string
	Up    bool
	Limit int
	Wait  time.Duration // with Up, for the record From to come
}

// AuditPage is a page of records.
type AuditPage struct {
	Records []audit.Entry `json:"records"`
	Cursor  string        `json:"cursor"` // of the next page; empty when there is none
	Last    uint64        `json:"last"`   // number of the newest record
}

// Audit returns a page of an organization's audit log, or the cluster's.
func (c *Client) Audit(ctx context.Context, q AuditQuery) (AuditPage, error) {
	v := url.Values{}
	set := func(name, value string) {
		if value != "" {
			v.Set(name, value)
		}
	}
	for name, value := range map[string]string{"user": q.User, "token": q.Token, "app": q.App, "machine": q.Machine, "action": q.Action, "result": q.Result} {
		set(name, value)
	}
	for name, t := range map[string]time.Time{"since": q.Since, "until": q.Until} {
		if !t.IsZero() {
			v.Set(name, t.UTC().Format(time.RFC3339))
		}
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	if q.Up {
		v.Set("after", q.From)
	} else {
		set("cursor", q.From)
	}
	r := call{method: http.MethodGet, path: []string{"platform", "audit"}, query: v}
	if q.Org != "" {
		r.path = []string{"orgs", q.Org, "audit"}
	}
	if q.Wait > 0 {
		v.Set("wait", strconv.Itoa(int(q.Wait/time.Second)))
		r.timeout = q.Wait + defaultTimeout
	}
	var out AuditPage
	r.out = &out
	return out, c.do(ctx, r)
}

// AuditKey returns the key that checkpoints of the audit log are checked with.
func (c *Client) AuditKey(ctx context.Context) (string, error) {
	var out struct {
		Key string `json:"key"`
	}
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"audit", "key"}, out: &out})
	return out.Key, err
}

// maxAuditFile bounds a file of the log: a bundle of 256 leaves has 9 KiB.
const maxAuditFile = 1 << 20

// AuditFile reads a file of the transparency log: "checkpoint", "tile/0/000". It is what
// an audit.Verifier reads by.
func (c *Client) AuditFile(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, defaultTimeout)
	defer cancel()
	resp, err := c.send(ctx, call{method: http.MethodGet, path: append([]string{"audit", "log"}, strings.Split(path, "/")...)})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAuditFile+1))
	if err != nil {
		return nil, c.transportError(ctx, err)
	}
	if len(b) > maxAuditFile {
		return nil, fault.New(fault.Internal, "%s of the audit log is larger than %d bytes", path, maxAuditFile)
	}
	return b, nil
}
