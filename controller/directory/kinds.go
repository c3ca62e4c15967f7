package directory

import (
	"cmp"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/superfly/macaroon"

	"bulkhead/controller/record"
	"bulkhead/key"
	"bulkhead/store"
	"bulkhead/token"
)

// kind is one kind of record: how a change of it is taken in, and what is held of it, by the
// rest of a record's key behind the kind's prefix. d.mu is held during all three.
type kind struct {
	take  func(store.Event)
	holds func(rest string) bool
	all   func() []string
}

// kindsOfRecords says what the directory follows, by prefix.
func (d *Directory) kindsOfRecords() map[string]kind {
	return map[string]kind{
		record.PrefixOrg:     flat(d.takeOrg, d.orgs),
		record.PrefixApp:     flat(d.takeApp, d.apps),
		record.PrefixUser:    flat(d.takeUser, d.users),
		record.PrefixMember:  nested(d.takeMember, d.members),
		record.PrefixToken:   flat(d.takeToken, d.tokens),
		record.PrefixClaim:   flat(d.takeClaim, d.claims),
		record.PrefixSession: flat(d.takeSession, d.sessions),
		record.PrefixSSO:     flat(d.takeSSO, d.sso),
		record.PrefixPasskey: nested(d.takePasskey, d.passkeys),
		record.PrefixRootKey: flat(d.takeRootKey, d.roots),
	}
}

// flat is a kind whose keys end in one name, by which its records are held in m.
func flat[K ~string, V any](take func(store.Event), m map[K]V) kind {
	return kind{
		take:  take,
		holds: func(rest string) bool { _, ok := m[K(rest)]; return ok },
		all: func() (out []string) {
			for k := range m {
				out = append(out, string(k))
			}
			return out
		},
	}
}

// nested is a kind whose keys end in two names.
func nested[A, B ~string, V any](take func(store.Event), m map[A]map[B]V) kind {
	return kind{
		take: take,
		holds: func(rest string) bool {
			a, b, _ := strings.Cut(rest, "/")
			_, ok := m[A(a)][B(b)]
			return ok
		},
		all: func() (out []string) {
			for a, of := range m {
				for b := range of {
					out = append(out, string(a)+"/"+string(b))
				}
			}
			return out
		},
	}
}

// The takers: each replaces one record. A record that cannot be read counts as gone,
// which refuses.

func (d *Directory) takeOrg(e store.Event) {
	slug := strings.TrimPrefix(e.Key, record.PrefixOrg)
	if old := d.orgs[slug]; old != nil {
		delete(d.numbers, old.Number)
		delete(d.orgs, slug)
	}
	if o := live[record.Org](e); o != nil {
		d.orgs[slug], d.numbers[o.Number] = o, slug
	}
}

func (d *Directory) takeApp(e store.Event) {
	name := key.AppName(strings.TrimPrefix(e.Key, record.PrefixApp))
	if old := d.apps[name]; old != nil {
		drop(d.appsOf, old.Org, name)
		delete(d.apps, name)
	}
	if a := live[record.App](e); a != nil {
		d.apps[name] = a
		add(d.appsOf, a.Org, name, a)
	}
}

func (d *Directory) takeUser(e store.Event) {
	id := key.UserID(strings.TrimPrefix(e.Key, record.PrefixUser))
	if old := d.users[id]; old != nil {
		delete(d.names, old.Name)
		delete(d.users, id)
		less(d.came, old.MadeBy())
	}
	if u := live[record.User](e); u != nil {
		d.users[id], d.names[u.Name] = u, id
		d.came[u.MadeBy()]++
	}
}

func (d *Directory) takeMember(e store.Event) {
	slug, id, _ := strings.Cut(strings.TrimPrefix(e.Key, record.PrefixMember), "/")
	uid := key.UserID(id)
	drop(d.members, slug, uid)
	drop(d.belongs, uid, slug)
	if m := live[record.Member](e); m != nil {
		add(d.members, slug, uid, m)
		add(d.belongs, uid, slug, m)
	}
}

func (d *Directory) takeToken(e store.Event) {
	id := key.TokenID(strings.TrimPrefix(e.Key, record.PrefixToken))
	if old := d.tokens[id]; old != nil {
		drop(d.owned, old.User, id)
		delete(d.tokens, id)
		less(d.rooted, old.Key)
	}
	if t := live[record.Token](e); t != nil {
		d.tokens[id] = t
		d.rooted[t.Key]++
		add(d.owned, t.User, id, t)
	}
}

func (d *Directory) takeClaim(e store.Event) {
	id := strings.TrimPrefix(e.Key, record.PrefixClaim)
	if old := d.claims[id]; old != nil {
		delete(d.claims, id)
		if old.ByUser != "" {
			less(d.invited, old.Org)
		}
	}
	if cl := live[record.Claim](e); cl != nil {
		d.claims[id] = cl
		if cl.ByUser != "" {
			d.invited[cl.Org]++
		}
	}
}

func (d *Directory) takeSession(e store.Event) {
	id := strings.TrimPrefix(e.Key, record.PrefixSession)
	if old := d.sessions[id]; old != nil {
		drop(d.signed, old.User, id)
		delete(d.tokenOf, old.TokenID)
		delete(d.sessions, id)
	}
	if s := live[record.Session](e); s != nil {
		d.sessions[id] = s
		add(d.signed, s.User, id, s)
		if s.TokenID != "" {
			d.tokenOf[s.TokenID] = s
		}
	}
}

func (d *Directory) takeSSO(e store.Event) {
	slug := strings.TrimPrefix(e.Key, record.PrefixSSO)
	delete(d.sso, slug)
	if s := live[record.SSO](e); s != nil {
		d.sso[slug] = s
	}
}

func (d *Directory) takePasskey(e store.Event) {
	user, id, _ := strings.Cut(strings.TrimPrefix(e.Key, record.PrefixPasskey), "/")
	drop(d.passkeys, key.UserID(user), id)
	if p := live[record.Passkey](e); p != nil {
		add(d.passkeys, key.UserID(user), id, p)
	}
}

// PurposeRootKey is what the cluster key wraps them for.
const PurposeRootKey = "token-root"

// takeRootKey makes the ring anew. A key that cannot be unwrapped
// is left out, and its tokens are refused.
func (d *Directory) takeRootKey(e store.Event) {
	id := strings.TrimPrefix(e.Key, record.PrefixRootKey)
	delete(d.roots, id)
	if k := live[record.RootKey](e); k != nil {
		d.roots[id] = k
	}
	all := sorted(d.roots)
	slices.SortStableFunc(all, func(a, b *record.RootKey) int { return cmp.Compare(b.CreatedAt.UnixNano(), a.CreatedAt.UnixNano()) })
	var keys []token.Key
	for _, k := range all {
		secret, err := d.unwrap(PurposeRootKey, k.Wrapped)
		b, err2 := hex.DecodeString(k.ID)
		if err == nil && err2 == nil && len(b) == len(token.KeyID{}) {
			keys = append(keys, token.Key{ID: token.KeyID(b), Secret: macaroon.SigningKey(secret)})
		}
	}
	d.ring = token.NoKeys
	if ring, err := token.NewKeys(keys); err == nil {
		d.ring = ring
	}
}

// less counts one less of k.
func less(m map[string]int, k string) {
	if m[k]--; m[k] == 0 {
		delete(m, k)
	}
}

// live is the record an event leaves, or nil.
func live[T any](e store.Event) *T {
	if e.Deleted {
		return nil
	}
	v, err := record.Decode[T](e.KV)
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
