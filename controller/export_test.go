package controller

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"bulkhead/api/rpc"
	"bulkhead/audit"
	"bulkhead/controller/access"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/store"
)

// SmallSnapshots lowers the bound of one part of a snapshot until the test ends.
func SmallSnapshots(t interface{ Cleanup(func()) }, bytes int) {
	before := maxSnapshot
	t.Cleanup(func() { maxSnapshot = before })
	maxSnapshot = bytes
}

// MaxSnapshot is that bound.
func MaxSnapshot() int { return maxSnapshot }

// CollectOnce lets tests collect as if it were later.
func (c *Controller) CollectOnce(ctx context.Context, before time.Time) error {
	return c.collectOnce(ctx, before)
}

// Keys lists the store's keys, for tests that look for what was left behind.
func (c *Controller) Keys(ctx context.Context) ([]string, error) {
	kvs, _, err := c.store.List(ctx, "/")
	var out []string
	for _, kv := range kvs {
		if !strings.HasPrefix(kv.Key, prefixPending) { // which are cleared later
			out = append(out, kv.Key)
		}
	}
	return out, err
}

// Changes announces changes of the store until ctx ends: those that come while nobody
// receives, with one announcement.
func (c *Controller) Changes(ctx context.Context) <-chan struct{} {
	_, rev, err := c.store.List(ctx, "/none")
	if err != nil {
		panic(err)
	}
	changed := make(chan struct{}, 1)
	go c.store.Watch(ctx, "/", rev, func([]store.Event) error {
		select {
		case changed <- struct{}{}:
		default:
		}
		return nil
	})
	return changed
}

// OnList makes f be called before each List of the store; before Serve only.
func (c *Controller) OnList(f func(s store.Store, prefix string)) {
	c.store = listening{c.store, f}
}

type listening struct {
	store.Store
	f func(s store.Store, prefix string)
}

func (l listening) List(ctx context.Context, prefix string) ([]store.KV, int64, error) {
	l.f(l.Store, prefix)
	return l.Store.List(ctx, prefix)
}

// OnGet makes f be called before each Get of the store; before Serve only.
func (c *Controller) OnGet(f func(k string)) { c.store = asked{c.store, f} }

type asked struct {
	store.Store
	f func(k string)
}

func (a asked) Get(ctx context.Context, k string) (store.KV, error) {
	a.f(k)
	return a.Store.Get(ctx, k)
}

// AfterTxn makes f decide what is reported of each transaction of the store; before
// Serve only.
func (c *Controller) AfterTxn(f func(ops []store.Op, err error) error) {
	c.store = lying{c.store, f}
}

type lying struct {
	store.Store
	f func(ops []store.Op, err error) error
}

func (l lying) Txn(ctx context.Context, conds []store.Cond, ops []store.Op) (int64, error) {
	rev, err := l.Store.Txn(ctx, conds, ops)
	return rev, l.f(ops, err)
}

// AroundTxn makes f carry out each transaction of the store; before Serve only.
func (c *Controller) AroundTxn(f func(ops []store.Op, txn func() error) error) {
	c.store = around{c.store, f}
}

type around struct {
	store.Store
	f func(ops []store.Op, txn func() error) error
}

func (a around) Txn(ctx context.Context, conds []store.Cond, ops []store.Op) (rev int64, err error) {
	err = a.f(ops, func() error {
		rev, err = a.Store.Txn(ctx, conds, ops)
		return err
	})
	return rev, err
}

// Raw reads a record as it is in the store.
func (c *Controller) Raw(ctx context.Context, k string) ([]byte, error) {
	kv, err := c.store.Get(ctx, k)
	return kv.Value, err
}

// HoldLogStreams counts n Machines as being read by somebody else.
func (c *Controller) HoldLogStreams(n int) { c.logStreams.Add(int64(n)) }

// Reach tells the controller how to reach a role of another node.
func (c *Controller) Reach(name string, n key.Node, socket string) error {
	conn, err := rpc.Dial(c.identity, socket, name, n)
	if err != nil {
		return err
	}
	c.peers.mu.Lock()
	defer c.peers.mu.Unlock()
	c.peers.conns[name+"/"+string(n)] = conn
	return nil
}

// RefuseNode does the first half of a node's removal, as when the controller is killed
// after it.
func (c *Controller) RefuseNode(ctx context.Context, n key.Node) error {
	return c.refuseNode(ctx, n, "admin", true)
}

// Endpoints lists the patterns of all routes.
func (c *Controller) Endpoints() []string {
	var out []string
	for _, e := range c.endpoints() {
		out = append(out, e.pattern)
	}
	return out
}

// Held counts what calls hold while they are served and must give back.
func (c *Controller) Held() map[string]int {
	c.view.mu.Lock()
	waiters := len(c.view.waiters)
	c.view.mu.Unlock()
	c.reserved.mu.Lock()
	reserved := len(c.reserved.all)
	c.reserved.mu.Unlock()
	finishing := 1
	if c.finishing.TryLock() {
		finishing = 0
		c.finishing.Unlock()
	}
	return map[string]int{"waiters": waiters, "reservations": reserved, "log streams": int(c.logStreams.Load()), "locks": finishing}
}

// State is what the store holds, as far as calls change it: keys without what is
// random in them, and of records what is wanted.
func (c *Controller) State(ctx context.Context) ([]string, error) {
	kvs, _, err := c.store.List(ctx, "/")
	var out []string
	for _, kv := range kvs {
		k := random.ReplaceAllString(kv.Key, "*")
		switch {
		case strings.HasPrefix(k, record.PrefixMachine):
			r, err := record.Decode[record.Machine](kv)
			if err != nil {
				return nil, err
			}
			k += fmt.Sprintf(" %s force=%v cordoned=%v gone=%v nonces=%d,%d env=%v metadata=%v", r.Desired, r.Force, r.Cordoned, r.Gone != nil, r.StartNonce, r.RestartNonce, r.Config.Env, r.Config.Metadata)
		case strings.HasPrefix(k, record.PrefixApp):
			a, err := record.Decode[record.App](kv)
			if err != nil {
				return nil, err
			}
			k += fmt.Sprintf(" deleting=%v", a.Deleting)
		case strings.HasPrefix(k, record.PrefixRemoved):
			r, err := record.Decode[record.Removal](kv)
			if err != nil {
				return nil, err
			}
			k += fmt.Sprintf(" readmit=%v", r.Readmit)
		case strings.HasPrefix(k, "/secret/"):
			s, err := record.Decode[appSecrets](kv)
			if err != nil {
				return nil, err
			}
			for _, name := range slices.Sorted(maps.Keys(s.Secrets)) {
				k += " " + name
			}
			k += fmt.Sprintf(" version=%d keys=%d", s.Version, len(s.Keys))
		case strings.HasPrefix(k, "/counter/"), strings.HasPrefix(k, prefixPending), strings.HasPrefix(k, record.PrefixHost):
			continue
		}
		out = append(out, k)
	}
	slices.Sort(out)
	return out, err
}

// random matches what differs between two runs: ids of Machines and versions, and times.
var random = regexp.MustCompile(`[0-9a-f]{16}|[0-9a-f]{14}|[0-9A-HJKMNP-TV-Z]{26}|[0-9]{12}|[a-z]+-[a-z]+-[0-9]{4}$`)

// MayCall is the decision about a call of an endpoint: by a user's token, by a Machine of
// an app (by = "machine:<app>/<id>"), or by a claim's bearer (by = "claim").
func (c *Controller) MayCall(pattern, by string, path map[string]string) error {
	for _, e := range c.endpoints() {
		if e.pattern != pattern {
			continue
		}
		r := &call{Request: new(http.Request)}
		for k, v := range path {
			r.SetPathValue(k, v)
		}
		switch kind, rest, _ := strings.Cut(by, ":"); kind {
		case "machine":
			app, id, _ := strings.Cut(rest, "/")
			r.who = access.Caller{Kind: access.ByMachine, Name: by, App: key.AppName(app), Machine: key.MachineID(id)}
		case "claim":
			r.who = access.Caller{Kind: access.ByClaim, Name: by}
		default:
			who, err := c.authenticate(context.Background(), by)
			if err != nil {
				return err
			}
			r.who = who
		}
		return c.mayCall(r, e)
	}
	return fault.New(fault.Internal, "no endpoint %s", pattern)
}

// OpenRequests counts the requests in progress that would end with their token.
func (c *Controller) OpenRequests() int {
	c.open.mu.Lock()
	defer c.open.mu.Unlock()
	return len(c.open.all)
}

// AgeToken makes a token's record older.
func (c *Controller) AgeToken(ctx context.Context, id key.TokenID, by time.Duration) {
	rec := *c.directory.Token(id)
	rec.CreatedAt, rec.ExpiresAt = rec.CreatedAt.Add(-by), rec.ExpiresAt.Add(-by)
	if by < time.Hour { // older, and not over
		rec.ExpiresAt = rec.ExpiresAt.Add(by)
	}
	t := txn{}
	t.do(record.Put(record.TokenKey(id), rec))
	if err := c.commit(ctx, &t); err != nil {
		panic(err)
	}
}

// ForgetRootKey removes a root key, also the one that makes tokens.
func (c *Controller) ForgetRootKey(ctx context.Context, id string) {
	if err := c.commit(ctx, &txn{ops: []store.Op{store.Delete(record.RootKeyKey(id))}}); err != nil {
		panic(err)
	}
}

// SweepTokens removes what is over, and counts it.
func (c *Controller) SweepTokens(ctx context.Context) int {
	before := len(c.directory.AllTokens())
	if err := c.sweepTokens(ctx); err != nil {
		panic(err)
	}
	return before - len(c.directory.AllTokens())
}

// StoredBytes is all that the store holds, as it lies there.
func (c *Controller) StoredBytes(ctx context.Context) (string, error) {
	kvs, _, err := c.store.List(ctx, "/")
	var b strings.Builder
	for _, kv := range kvs {
		b.WriteString(kv.Key + " " + string(kv.Value) + "\n")
	}
	return b.String(), err
}

// AuditReady says whether the audit log can be written.
func (c *Controller) AuditReady() error { return c.audit.Ready() }

// RecordSomething writes a record, if that works.
func (c *Controller) RecordSomething() {
	c.record(context.Background(), audit.Record{Action: "test"})
}

// Ahead sets the clock of what records say; the function it returns sets it back.
func Ahead(by time.Duration) func() {
	old := ahead.Swap(int64(by))
	return func() { ahead.Store(old) }
}

// MarkOrg does the first step of an organization's deletion, as when the controller is
// killed after it.
func (c *Controller) MarkOrg(ctx context.Context, slug string) error {
	return c.markOrg(ctx, slug, true)
}

// ForgetJoinTokens removes the tokens of nodes that are to join.
func (c *Controller) ForgetJoinTokens(ctx context.Context) {
	all, _, _ := c.store.List(ctx, prefixJoin)
	for _, kv := range all {
		c.store.Txn(ctx, nil, []store.Op{store.Delete(kv.Key)})
	}
}

// AdminCalls are the calls that the admin socket has.
func (c *Controller) AdminCalls() []string {
	return slices.Sorted(maps.Keys(c.adminRoutes()))
}

// BelieveWorkers is a fault for tests to find: a worker may speak for every Machine that is
// its node's, whatever is wanted of it.
func (c *Controller) BelieveWorkers() {
	b := *c.machines.bounds.Load()
	b.rule = func(r *record.Machine, _ *seen, node key.Node) error {
		if r == nil || r.Node != node || r.Gone != nil {
			return fault.New(fault.Denied, "not its own")
		}
		return nil
	}
	c.machines.bounds.Store(&b)
}

// MachineTimes shortens what a Machine's connection may take; 0 leaves it.
func (c *Controller) MachineTimes(first, wait, life, end time.Duration) {
	m := *c.machines.bounds.Load()
	for p, d := range map[*time.Duration]time.Duration{&m.first: first, &m.wait: wait, &m.life: life, &m.end: end} {
		if d > 0 {
			*p = d
		}
	}
	c.machines.bounds.Store(&m)
}

// MachineNodeConns is how many connections the Machines of a node may have.
const MachineNodeConns = machineNodeConns
