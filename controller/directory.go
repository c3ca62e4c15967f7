package controller

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"

	"bulkhead/key"
	"bulkhead/store"
	"bulkhead/token"
)

// directory is who there is and what belongs to whom, in memory: organizations, apps'
// owners, users, members and tokens. It follows the store, so that a request is decided
// without asking it, at the same cost whoever else there is.
//
// Who changes such a record calls await before the change is acknowledged: what was
// taken from somebody is refused from then on. Records it gives out are shared and not
// to be changed.
type directory struct {
	loaded chan struct{} // closed when everything has been read once

	mu      sync.RWMutex
	orgs    map[string]*org
	numbers map[int64]string // of orgs
	apps    map[key.AppName]*app
	appsOf  map[string]map[key.AppName]*app // by organization
	users   map[key.UserID]*user
	names   map[string]key.UserID
	members map[string]map[key.UserID]*member // by organization
	belongs map[key.UserID]map[string]*member // the same, by user
	tokens  map[key.TokenID]*tokenRecord
	owned   map[key.UserID]map[key.TokenID]*tokenRecord
	rooted  map[string]int // tokens by root key
	roots   map[string]*rootKey
	claims  map[string]*claim
	ring    *token.Keys // of roots
	// unwrap opens what is secret in a record.
	unwrap func(purpose string, wrapped []byte) ([]byte, error)

	sessions map[string]*signedIn
	signed   map[key.UserID]map[string]*signedIn // the same, by user
	tokenOf  map[key.TokenID]*signedIn           // the same, by token
	sso      map[string]*ssoConfig               // by organization
	passkeys map[key.UserID]map[string]*passkeyRecord

	seen  map[string]int64 // revision reached, by prefix
	moved chan struct{}    // closed and made anew when seen grows
	// changed is told of every change after it is in force; it must not block.
	changed []func(prefix string, e store.Event)
}

func newDirectory() *directory {
	return &directory{
		loaded: make(chan struct{}),
		orgs:   map[string]*org{}, numbers: map[int64]string{},
		apps: map[key.AppName]*app{}, appsOf: map[string]map[key.AppName]*app{},
		users: map[key.UserID]*user{}, names: map[string]key.UserID{},
		members: map[string]map[key.UserID]*member{}, belongs: map[key.UserID]map[string]*member{},
		tokens: map[key.TokenID]*tokenRecord{}, owned: map[key.UserID]map[key.TokenID]*tokenRecord{},
		sessions: map[string]*signedIn{}, signed: map[key.UserID]map[string]*signedIn{}, tokenOf: map[key.TokenID]*signedIn{}, sso: map[string]*ssoConfig{},
		rooted: map[string]int{}, roots: map[string]*rootKey{}, claims: map[string]*claim{},
		passkeys: map[key.UserID]map[string]*passkeyRecord{},
		seen:     map[string]int64{}, moved: make(chan struct{}),
	}
}

// takers says what the directory follows.
func (d *directory) takers() map[string]func(store.Event) {
	return map[string]func(store.Event){
		prefixOrg: d.takeOrg, prefixApp: d.takeApp, prefixUser: d.takeUser, prefixMember: d.takeMember, prefixToken: d.takeToken,
		prefixSession: d.takeSession, prefixSSO: d.takeSSO, prefixPasskey: d.takePasskey,
		prefixRootKey: d.takeRootKey, prefixClaim: d.takeClaim,
	}
}

// run follows the store until ctx ends or the store fails.
func (d *directory) run(ctx context.Context, s store.Store) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all, first sync.WaitGroup
	for prefix, take := range d.takers() {
		first.Add(1)
		all.Go(func() { cancel(d.follow(ctx, s, prefix, take, sync.OnceFunc(first.Done))) })
	}
	read := make(chan struct{})
	go func() { first.Wait(); close(read) }()
	select {
	case <-read:
		close(d.loaded)
	case <-ctx.Done():
	}
	all.Wait()
	return context.Cause(ctx)
}

// follow keeps one kind of record up to date; read is called when it is complete, and
// when it never will be.
func (d *directory) follow(ctx context.Context, s store.Store, prefix string, take func(store.Event), read func()) error {
	for {
		kvs, rev, err := s.List(ctx, prefix)
		if err != nil {
			return err
		}
		d.mu.Lock()
		d.forgetMissing(prefix, kvs, take)
		for _, kv := range kvs {
			take(store.Event{KV: kv})
		}
		d.reached(prefix, rev)
		d.mu.Unlock()
		read()
		err = s.Watch(ctx, prefix, rev, func(es []store.Event) error {
			d.mu.Lock()
			for _, e := range es {
				take(e)
				rev = e.Revision
			}
			d.reached(prefix, rev)
			told := d.changed
			d.mu.Unlock()
			for _, e := range es {
				for _, f := range told {
					f(prefix, e)
				}
			}
			return nil
		})
		if !errors.Is(err, store.ErrCompacted) {
			return err
		}
	}
}

// forgetMissing takes out what a complete list no longer holds. d.mu is held.
func (d *directory) forgetMissing(prefix string, kvs []store.KV, take func(store.Event)) {
	have := make(map[string]bool, len(kvs))
	for _, kv := range kvs {
		have[kv.Key] = true
	}
	for _, k := range d.keys(prefix) {
		if !have[k] {
			take(store.Event{KV: store.KV{Key: k}, Deleted: true})
		}
	}
}

// keys lists the keys of what is held of a prefix. d.mu is held.
func (d *directory) keys(prefix string) []string {
	var out []string
	switch prefix {
	case prefixOrg:
		for slug := range d.orgs {
			out = append(out, orgKey(slug))
		}
	case prefixApp:
		for name := range d.apps {
			out = append(out, appKey(name))
		}
	case prefixUser:
		for id := range d.users {
			out = append(out, userKey(id))
		}
	case prefixMember:
		for slug, ms := range d.members {
			for id := range ms {
				out = append(out, memberKey(slug, id))
			}
		}
	case prefixToken:
		for id := range d.tokens {
			out = append(out, tokenKey(id))
		}
	case prefixSession:
		for id := range d.sessions {
			out = append(out, sessionKey(id))
		}
	case prefixSSO:
		for slug := range d.sso {
			out = append(out, ssoKey(slug))
		}
	case prefixPasskey:
		for id, ps := range d.passkeys {
			for sum := range ps {
				out = append(out, passkeyKey(id, sum))
			}
		}
	case prefixRootKey:
		for id := range d.roots {
			out = append(out, rootKeyKey(id))
		}
	case prefixClaim:
		for id := range d.claims {
			out = append(out, claimKey(id))
		}
	}
	return out
}

// reached notes how far a prefix was followed. d.mu is held.
func (d *directory) reached(prefix string, rev int64) {
	if rev > d.seen[prefix] {
		d.seen[prefix] = rev
		close(d.moved)
		d.moved = make(chan struct{})
	}
}

// prefixOf is the prefix under which the directory follows a key, or "".
func (d *directory) prefixOf(k string) string {
	for p := range d.takers() {
		if strings.HasPrefix(k, p) {
			return p
		}
	}
	return ""
}

// follows reports whether a key is one of the directory's.
func (d *directory) follows(k string) bool { return d.prefixOf(k) != "" }

// await returns when the change that was made to a key at a revision is in force.
func (d *directory) await(ctx context.Context, k string, rev int64) error {
	prefix := d.prefixOf(k)
	if prefix == "" {
		panic("controller: the directory does not follow " + k)
	}
	for {
		d.mu.RLock()
		seen, moved := d.seen[prefix], d.moved
		d.mu.RUnlock()
		if seen >= rev {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// awaitOp is await for one change of a transaction. Removing what was gone already is no
// change, which nobody is told of: there is nothing to wait for.
func (d *directory) awaitOp(ctx context.Context, op store.Op, rev int64) error {
	prefix := d.prefixOf(op.Key)
	for op.Delete {
		d.mu.RLock()
		seen, moved, held := d.seen[prefix], d.moved, d.holds(op.Key)
		d.mu.RUnlock()
		if seen >= rev || !held {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return d.await(ctx, op.Key, rev)
}

// holds reports whether a record is there. d.mu is held.
func (d *directory) holds(k string) bool {
	prefix := d.prefixOf(k)
	rest := strings.TrimPrefix(k, prefix)
	switch prefix {
	case prefixOrg:
		return d.orgs[rest] != nil
	case prefixApp:
		return d.apps[key.AppName(rest)] != nil
	case prefixUser:
		return d.users[key.UserID(rest)] != nil
	case prefixMember:
		slug, id, _ := strings.Cut(rest, "/")
		return d.members[slug][key.UserID(id)] != nil
	case prefixToken:
		return d.tokens[key.TokenID(rest)] != nil
	case prefixSession:
		return d.sessions[rest] != nil
	case prefixSSO:
		return d.sso[rest] != nil
	case prefixRootKey:
		return d.roots[rest] != nil
	case prefixClaim:
		return d.claims[rest] != nil
	case prefixPasskey:
		id, sum, _ := strings.Cut(rest, "/")
		return d.passkeys[key.UserID(id)][sum] != nil
	}
	return false
}

// notify has f called with every change, after it is in force.
func (d *directory) notify(f func(prefix string, e store.Event)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changed = append(d.changed, f)
}

// The takers: each replaces one record. A record that cannot be read counts as gone,
// which refuses; d.mu is held.

func (d *directory) takeOrg(e store.Event) {
	slug := strings.TrimPrefix(e.Key, prefixOrg)
	if old := d.orgs[slug]; old != nil {
		delete(d.numbers, old.Number)
		delete(d.orgs, slug)
	}
	if o := live[org](e); o != nil {
		d.orgs[slug], d.numbers[o.Number] = o, slug
	}
}

func (d *directory) takeApp(e store.Event) {
	name := key.AppName(strings.TrimPrefix(e.Key, prefixApp))
	if old := d.apps[name]; old != nil {
		drop(d.appsOf, old.Org, name)
		delete(d.apps, name)
	}
	if a := live[app](e); a != nil {
		d.apps[name] = a
		add(d.appsOf, a.Org, name, a)
	}
}

func (d *directory) takeUser(e store.Event) {
	id := key.UserID(strings.TrimPrefix(e.Key, prefixUser))
	if old := d.users[id]; old != nil {
		delete(d.names, old.Name)
		delete(d.users, id)
	}
	if u := live[user](e); u != nil {
		d.users[id], d.names[u.Name] = u, id
	}
}

func (d *directory) takeMember(e store.Event) {
	slug, id, _ := strings.Cut(strings.TrimPrefix(e.Key, prefixMember), "/")
	uid := key.UserID(id)
	drop(d.members, slug, uid)
	drop(d.belongs, uid, slug)
	if m := live[member](e); m != nil {
		add(d.members, slug, uid, m)
		add(d.belongs, uid, slug, m)
	}
}

func (d *directory) takeToken(e store.Event) {
	id := key.TokenID(strings.TrimPrefix(e.Key, prefixToken))
	if old := d.tokens[id]; old != nil {
		drop(d.owned, old.User, id)
		delete(d.tokens, id)
		d.rooted[old.Key]--
	}
	if t := live[tokenRecord](e); t != nil {
		d.tokens[id] = t
		d.rooted[t.Key]++
		add(d.owned, t.User, id, t)
	}
}

// live is the record an event leaves, or nil.
func live[T any](e store.Event) *T {
	if e.Deleted {
		return nil
	}
	v, err := decode[T](e.KV)
	if err != nil {
		return nil
	}
	return v
}

func add[A, B comparable, V any](m map[A]map[B]V, a A, b B, v V) {
	if m[a] == nil {
		m[a] = map[B]V{}
	}
	m[a][b] = v
}

func drop[A, B comparable, V any](m map[A]map[B]V, a A, b B) {
	delete(m[a], b)
	if len(m[a]) == 0 {
		delete(m, a)
	}
}

// The looks-up; nil for what there is not.

func (d *directory) org(slug string) *org {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.orgs[slug]
}

func (d *directory) app(name key.AppName) *app {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.apps[name]
}

func (d *directory) user(id key.UserID) *user {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.users[id]
}

func (d *directory) userNamed(name string) *user {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.users[d.names[name]]
}

func (d *directory) member(slug string, id key.UserID) *member {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.members[slug][id]
}

func (d *directory) token(id key.TokenID) *tokenRecord {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.tokens[id]
}

// allOrgs, allUsers, allTokens, appsIn, membersIn, orgsOf and tokensOf list, in order.

func (d *directory) allOrgs() []*org {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return sorted(d.orgs)
}

func (d *directory) allUsers() []*user {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return sorted(d.users)
}

func (d *directory) appsIn(slug string) []*app {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return sorted(d.appsOf[slug])
}

func (d *directory) membersIn(slug string) []*member {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return sorted(d.members[slug])
}

func (d *directory) orgsOf(id key.UserID) []*member {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return sorted(d.belongs[id])
}

func (d *directory) tokensOf(id key.UserID) []*tokenRecord {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return sorted(d.owned[id])
}

func (d *directory) allTokens() []*tokenRecord {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return sorted(d.tokens)
}

// sorted is a map's values, in the order of its keys.
func sorted[K ~string, V any](m map[K]V) []V {
	out := make([]V, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[k])
	}
	return out
}
