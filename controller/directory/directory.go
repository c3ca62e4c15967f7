// Package directory is who there is and what belongs to whom, in memory: organizations,
// users, members, tokens, sessions, and whose each app is. It follows the store, so that a
// request is decided without asking it, at the same cost whoever else there is.
//
// It knows facts alone. What somebody may do is decided in package access.
package directory

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"bulkhead/controller/record"
	"bulkhead/key"
	"bulkhead/store"
	"bulkhead/token"
)

// Directory follows the records of identity. Make it with New; Run keeps it up to date.
//
// Who changes such a record calls AwaitOp before the change is acknowledged: what was
// taken from somebody is refused from then on. Records it gives out are shared and not
// to be changed; what there is not is nil.
type Directory struct {
	loaded chan struct{}   // closed when everything has been read once
	kinds  map[string]kind // what is followed, by prefix

	mu      sync.RWMutex
	orgs    map[string]*record.Org
	numbers map[int64]string // of orgs
	apps    map[key.AppName]*record.App
	appsOf  map[string]map[key.AppName]*record.App // by organization
	users   map[key.UserID]*record.User
	names   map[string]key.UserID
	came    map[string]int                           // users by the organization whose provider they came by
	members map[string]map[key.UserID]*record.Member // by organization
	belongs map[key.UserID]map[string]*record.Member // the same, by user
	tokens  map[key.TokenID]*record.Token
	owned   map[key.UserID]map[key.TokenID]*record.Token
	rooted  map[string]int // tokens by root key
	roots   map[string]*record.RootKey
	claims  map[string]*record.Claim
	invited map[string]int // invitations by organization
	ring    *token.Keys    // of roots
	// unwrap opens what is secret in a record.
	unwrap func(purpose string, wrapped []byte) ([]byte, error)
	now    func() time.Time

	sessions map[string]*record.Session
	signed   map[key.UserID]map[string]*record.Session // the same, by user
	tokenOf  map[key.TokenID]*record.Session           // the same, by token
	sso      map[string]*record.SSO                    // by organization
	passkeys map[key.UserID]map[string]*record.Passkey

	seen  map[string]int64 // revision reached, by prefix
	moved chan struct{}    // closed and made anew when seen grows
	// changed is told of every change after it is in force; it must not block.
	changed []func(prefix string, e store.Event)
}

// New returns a directory that knows nobody yet. now is the clock that records are judged
// by; unwrap opens what is secret in them, as secret.Ring.Unwrap does.
func New(now func() time.Time, unwrap func(purpose string, wrapped []byte) ([]byte, error)) *Directory {
	d := &Directory{
		now: now, unwrap: unwrap, loaded: make(chan struct{}), ring: token.NoKeys,
		orgs: map[string]*record.Org{}, numbers: map[int64]string{},
		apps: map[key.AppName]*record.App{}, appsOf: map[string]map[key.AppName]*record.App{},
		users: map[key.UserID]*record.User{}, names: map[string]key.UserID{}, came: map[string]int{},
		members: map[string]map[key.UserID]*record.Member{}, belongs: map[key.UserID]map[string]*record.Member{},
		tokens: map[key.TokenID]*record.Token{}, owned: map[key.UserID]map[key.TokenID]*record.Token{},
		sessions: map[string]*record.Session{}, signed: map[key.UserID]map[string]*record.Session{}, tokenOf: map[key.TokenID]*record.Session{}, sso: map[string]*record.SSO{},
		rooted: map[string]int{}, roots: map[string]*record.RootKey{}, claims: map[string]*record.Claim{}, invited: map[string]int{},
		passkeys: map[key.UserID]map[string]*record.Passkey{},
		seen:     map[string]int64{}, moved: make(chan struct{}),
	}
	d.kinds = d.kindsOfRecords()
	return d
}

// Loaded is closed when everything has been read once: before that, nobody is known.
func (d *Directory) Loaded() <-chan struct{} { return d.loaded }

// Now is the time by the directory's clock.
func (d *Directory) Now() time.Time { return d.now() }

// Run follows the store until ctx ends or the store fails.
func (d *Directory) Run(ctx context.Context, s store.Store) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all, first sync.WaitGroup
	for prefix, k := range d.kinds {
		first.Add(1)
		all.Go(func() { cancel(d.follow(ctx, s, prefix, k, sync.OnceFunc(first.Done))) })
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
func (d *Directory) follow(ctx context.Context, s store.Store, prefix string, of kind, read func()) error {
	for {
		kvs, rev, err := s.List(ctx, prefix)
		if err != nil {
			return err
		}
		d.mu.Lock()
		d.forgetMissing(prefix, kvs, of)
		for _, kv := range kvs {
			of.take(store.Event{KV: kv})
		}
		d.reached(prefix, rev)
		d.mu.Unlock()
		read()
		err = s.Watch(ctx, prefix, rev, func(es []store.Event) error {
			d.mu.Lock()
			for _, e := range es {
				of.take(e)
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
func (d *Directory) forgetMissing(prefix string, kvs []store.KV, of kind) {
	have := make(map[string]bool, len(kvs))
	for _, kv := range kvs {
		have[kv.Key] = true
	}
	for _, rest := range of.all() {
		if k := prefix + rest; !have[k] {
			of.take(store.Event{KV: store.KV{Key: k}, Deleted: true})
		}
	}
}

// reached notes how far a prefix was followed. d.mu is held.
func (d *Directory) reached(prefix string, rev int64) {
	if rev > d.seen[prefix] {
		d.seen[prefix] = rev
		close(d.moved)
		d.moved = make(chan struct{})
	}
}

// prefixOf is the prefix under which the directory follows a key, or "".
func (d *Directory) prefixOf(k string) string {
	for p := range d.kinds {
		if strings.HasPrefix(k, p) {
			return p
		}
	}
	return ""
}

// Follows reports whether a key is one of the directory's.
func (d *Directory) Follows(k string) bool { return d.prefixOf(k) != "" }

// Await returns when the change that was made to a key at a revision is in force.
func (d *Directory) Await(ctx context.Context, k string, rev int64) error {
	prefix := d.prefixOf(k)
	if prefix == "" {
		panic("directory: it does not follow " + k)
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

// AwaitOp is await for one change of a transaction. Removing what was gone already is no
// change, which nobody is told of: there is nothing to wait for.
func (d *Directory) AwaitOp(ctx context.Context, op store.Op, rev int64) error {
	prefix := d.prefixOf(op.Key)
	for op.Delete {
		d.mu.RLock()
		seen, moved, held := d.seen[prefix], d.moved, d.kinds[prefix].holds(strings.TrimPrefix(op.Key, prefix))
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
	return d.Await(ctx, op.Key, rev)
}

// Notify has f called with every change, after it is in force.
func (d *Directory) Notify(f func(prefix string, e store.Event)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changed = append(d.changed, f)
}
