package cli

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bulkhead/audit"
	"bulkhead/client"
)

func (s *session) auditCommand() *cobra.Command {
	c := group("audit", "Who did what, and proof that the log of it was not changed", `Who did what, and proof that the log of it was not changed.

Keep a checkpoint somewhere else from time to time ("bulkhead audit checkpoint > FILE"):
with it "bulkhead audit verify --checkpoint FILE" finds out later, without believing the
server, whether anything before it was changed or taken away.`)
	c.AddCommand(s.auditLogCommand(), s.auditCheckpointCommand(), s.auditVerifyCommand(), s.auditProofCommand())
	return c
}

// auditScope is whose records are wanted.
type auditScope struct {
	org     string
	cluster bool
}

func (a *auditScope) flags(c *cobra.Command) {
	c.Flags().StringVar(&a.org, "org", "personal", "the organization whose records are wanted")
	c.Flags().BoolVar(&a.cluster, "cluster", false,
		"those of no organization instead: nodes, users, unknown callers (operators)")
}

// of is the organization, empty for the cluster's own.
func (a *auditScope) of() string {
	if a.cluster {
		return ""
	}
	return a.org
}

func (s *session) auditLogCommand() *cobra.Command {
	var scope auditScope
	var q client.AuditQuery
	var since, until string
	var limit int
	var follow bool
	c := &cobra.Command{
		Use: "log", Short: "Show records", Args: exactly(),
		Long: `Show records, the newest last. Every change has one, every call that was refused, every
use of a secret, and every token and session. It takes the role owner, admin or auditor.`,
		Example: `  bulkhead audit log --org acme --since 24h --result refused
  bulkhead audit log --org acme --app shop --follow
  bulkhead audit log --cluster --action "DELETE /v1/users"`,
		RunE: s.with(func(ctx context.Context, api *client.Client, _ []string) (err error) {
			if q.Since, err = whenFlag("since", since); err != nil {
				return err
			}
			if q.Until, err = whenFlag("until", until); err != nil {
				return err
			}
			if q.Result != "" && !slices.Contains(audit.Results(), audit.Result(q.Result)) {
				return usagef("--result is %q; it is one of %v", q.Result, audit.Results())
			}
			if q.Machine != "" {
				if _, err := checkMachine(q.Machine); err != nil {
					return err
				}
			}
			q.Org, q.App = scope.of(), s.appFlag
			next, err := s.showRecords(ctx, api, q, limit)
			if err != nil || !follow {
				return err
			}
			return s.followRecords(ctx, api, q, next)
		}),
	}
	scope.flags(c)
	c.Flags().StringVar(&q.User, "user", "", "of this user: id or name")
	c.Flags().StringVar(&q.Token, "token", "", "made with the token of this id")
	c.Flags().StringVar(&q.Machine, "machine", "", "about this Machine, by id")
	c.Flags().StringVar(&q.Action, "action", "", `whose action begins so, as in "DELETE /v1/apps"`)
	c.Flags().StringVar(&q.Result, "result", "", "with this result: ok, refused, failed, interrupted")
	c.Flags().StringVar(&since, "since", "", "not before: a time (2026-01-02T15:04:05Z) or how long ago (24h)")
	c.Flags().StringVar(&until, "until", "", "before: a time or how long ago")
	c.Flags().IntVarP(&limit, "limit", "n", 100, "at most so many")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new records until Ctrl-C")
	return c
}

// whenFlag reads a time, or how long ago it was.
func whenFlag(name, v string) (time.Time, error) {
	if v == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(v); err == nil && d >= 0 {
		return time.Now().Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, v)
	if err != nil {
		return t, usagef("--%s is %q; it is a time such as 2026-01-02T15:04:05Z, or how long ago, such as 24h", name, v)
	}
	return t, nil
}

// showRecords prints the newest records that are wanted, and returns the number of the
// first one to come.
func (s *session) showRecords(ctx context.Context, api *client.Client, q client.AuditQuery, limit int,
) (next uint64, err error) {
	var found []audit.Entry
	for first := true; len(found) < limit; first = false {
		q.Limit = min(limit-len(found), 500)
		p, err := api.Audit(ctx, q)
		if err != nil {
			return 0, err
		}
		if first {
			next = p.Last + 1
		}
		found = append(found, p.Records...)
		if q.From = p.Cursor; p.Cursor == "" {
			break
		}
	}
	if len(found) == 0 {
		s.ui.progress("no record matches")
	}
	slices.Reverse(found)
	for _, e := range found {
		if err := s.showRecord(e); err != nil {
			return 0, err
		}
	}
	return max(next, 1), nil
}

// followRecords prints records as they come.
func (s *session) followRecords(ctx context.Context, api *client.Client, q client.AuditQuery, next uint64) error {
	q.Up, q.Wait, q.Limit = true, 50*time.Second, 0
	for {
		q.From = strconv.FormatUint(next, 10)
		p, err := api.Audit(ctx, q)
		if err != nil {
			return err
		}
		for _, e := range p.Records {
			if err := s.showRecord(e); err != nil {
				return err
			}
		}
		if n, err := strconv.ParseUint(p.Cursor, 10, 64); err == nil && n > next {
			next = n
		}
	}
}

// showRecord prints one record on a line.
func (s *session) showRecord(e audit.Entry) error {
	r, err := e.Open()
	if err != nil {
		return err
	}
	words := []string{r.Time.Format(time.RFC3339), string(r.Result)}
	for _, f := range []struct{ name, v string }{
		{"", who(&r)}, {"", r.Action}, {"app=", r.App}, {"machine=", r.Machine}, {"", r.Target}, {"", r.Detail},
		{"from=", r.From}, {"token=", r.Token}, {"request=", r.ID},
	} {
		if f.v != "" {
			words = append(words, f.name+f.v)
		}
	}
	if r.Code != 0 {
		words = append(words, "code="+strconv.Itoa(r.Code))
	}
	if r.Count > 0 {
		words = append(words, fmt.Sprintf("(%d more like it)", r.Count))
	}
	return s.ui.line(e, clean(strings.Join(words, "  ")))
}

func who(r *audit.Record) string {
	if r.Name == "" {
		return "somebody"
	}
	return r.Name
}

func (s *session) auditCheckpointCommand() *cobra.Command {
	return &cobra.Command{
		Use: "checkpoint", Short: "Print the log's signed checkpoint, to be kept", Args: exactly(),
		Long: `Print the log's signed checkpoint with the key to check it. Keep it where nobody who can
write to the server can write: it is all that "bulkhead audit verify" needs to find out
whether anything before it was changed.`,
		Example: "  bulkhead audit checkpoint > audit-$(date +%F).checkpoint",
		RunE: s.with(func(ctx context.Context, api *client.Client, _ []string) error {
			key, err := api.AuditKey(ctx)
			if err != nil {
				return err
			}
			cp, err := fetchCheckpoint(ctx, api, key, 0)
			if err != nil {
				return err
			}
			_, err = s.env.Stdout.Write(audit.Keep(cp, key))
			return err
		}),
	}
}

// checkpointWait is how long a checkpoint may lag behind a record that was read.
const checkpointWait = 30 * time.Second

// fetchCheckpoint returns a checkpoint of at least size records.
func fetchCheckpoint(ctx context.Context, api *client.Client, key string, size uint64) (*audit.Checkpoint, error) {
	for deadline := time.Now().Add(checkpointWait); ; {
		b, err := api.AuditFile(ctx, "checkpoint")
		if err != nil {
			return nil, err
		}
		cp, err := audit.ParseCheckpoint(b, key)
		if err != nil {
			return nil, &failure{msg: err.Error(), kind: "not_proven", exit: ExitFailed}
		}
		if cp.Size >= size {
			return cp, nil
		}
		if time.Now().After(deadline) {
			return nil, &failure{msg: fmt.Sprintf("the log shows %d records and signs for %d", size, cp.Size),
				kind: "not_proven", exit: ExitFailed}
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// readKept reads a kept checkpoint.
func readKept(path string) (*audit.Checkpoint, string, error) {
	if path == "" {
		return nil, "", nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, "", usagef("the kept checkpoint cannot be read: %v", err)
	}
	cp, key, err := audit.ParseKept(b)
	if err != nil {
		return nil, "", usagef("%s: %v", path, err)
	}
	return cp, key, nil
}
