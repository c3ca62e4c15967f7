package directory

import (
	"maps"
	"slices"
	"strings"

	"bulkhead/controller/record"
	"bulkhead/doctor/posture"
	"bulkhead/key"
	"bulkhead/token"
)

// Org is the organization of that slug.
func (d *Directory) Org(slug string) *record.Org {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.orgs[slug]
}

// App is the app of that name.
func (d *Directory) App(name key.AppName) *record.App {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.apps[name]
}

// User is the user of that id.
func (d *Directory) User(id key.UserID) *record.User {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.users[id]
}

// UserNamed is the user of that name.
func (d *Directory) UserNamed(name string) *record.User {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.users[d.names[name]]
}

// InvitationsOf counts an organization's invitations that nobody has taken yet.
func (d *Directory) InvitationsOf(slug string) int {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.invited[slug]
}

// CameBy counts the users that an organization has made, by its identity provider and by
// invitations.
func (d *Directory) CameBy(slug string) int {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.came[slug]
}

// Member is what a user is to an organization.
func (d *Directory) Member(slug string, id key.UserID) *record.Member {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.members[slug][id]
}

// Claim is the one-time token of that id.
func (d *Directory) Claim(id string) *record.Claim {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.claims[id]
}

// Token is the record of a token.
func (d *Directory) Token(id key.TokenID) *record.Token {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.tokens[id]
}

// AllOrgs lists the organizations, in order.
func (d *Directory) AllOrgs() []*record.Org {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return sorted(d.orgs)
}

// AllUsers lists the users, in order.
func (d *Directory) AllUsers() []*record.User {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return sorted(d.users)
}

// AppsIn lists an organization's apps, in order.
func (d *Directory) AppsIn(slug string) []*record.App {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return sorted(d.appsOf[slug])
}

// MembersIn lists an organization's members, in order.
func (d *Directory) MembersIn(slug string) []*record.Member {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return sorted(d.members[slug])
}

// OrgsOf lists what a user is to which organizations, in order.
func (d *Directory) OrgsOf(id key.UserID) []*record.Member {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return sorted(d.belongs[id])
}

// TokensOf lists a user's tokens, in order.
func (d *Directory) TokensOf(id key.UserID) []*record.Token {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return sorted(d.owned[id])
}

// AllClaims lists the one-time tokens, in order.
func (d *Directory) AllClaims() []*record.Claim {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return sorted(d.claims)
}

// AllTokens lists the tokens, in order.
func (d *Directory) AllTokens() []*record.Token {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return sorted(d.tokens)
}

// PasskeysOf are a user's, the oldest first.
func (d *Directory) PasskeysOf(id key.UserID) []*record.Passkey {
	d.mu.RLock()
	defer d.mu.RUnlock()
	out := sorted(d.passkeys[id])
	slices.SortStableFunc(out, func(a, b *record.Passkey) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return out
}

// Posture lists organizations and tokens for the doctor.
func (d *Directory) Posture() (orgs []posture.Org, tokens []posture.Token) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for slug, rec := range d.orgs {
		o := posture.Org{Slug: slug, TokenMax: rec.TokenMax, Members: len(d.members[slug])}
		if conf := d.sso[slug]; conf != nil {
			o.SSO = conf.Mode
		}
		for _, m := range d.members[slug] {
			if m.Role == record.Owner {
				o.Owners++
			}
		}
		orgs = append(orgs, o)
	}
	for id, t := range d.tokens {
		tokens = append(tokens, posture.Token{ID: string(id), User: d.nameOf(t.User), Name: t.Name, CreatedAt: t.CreatedAt, ExpiresAt: t.ExpiresAt})
	}
	slices.SortFunc(orgs, func(a, b posture.Org) int { return strings.Compare(a.Slug, b.Slug) })
	slices.SortFunc(tokens, func(a, b posture.Token) int { return strings.Compare(a.ID, b.ID) })
	return orgs, tokens
}

// nameOf is a user's name, or the id of one who is gone. d.mu is held.
func (d *Directory) nameOf(id key.UserID) string {
	if u := d.users[id]; u != nil {
		return u.Name
	}
	return string(id)
}

// RootKeyUse is a root key of tokens, how many live tokens were made with it, and whether new
// ones are.
type RootKeyUse struct {
	*record.RootKey
	Tokens int
	Makes  bool
}

// RootKeysInUse lists the root keys, in order of their ids.
func (d *Directory) RootKeysInUse() []RootKeyUse {
	d.mu.RLock()
	defer d.mu.RUnlock()
	var out []RootKeyUse
	for _, k := range sorted(d.roots) {
		out = append(out, d.inUse(k))
	}
	return out
}

// RootKey is the root key of that id, and whether there is one.
func (d *Directory) RootKey(id string) (RootKeyUse, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	k := d.roots[id]
	if k == nil {
		return RootKeyUse{}, false
	}
	return d.inUse(k), true
}

// inUse is called while d.mu is held.
func (d *Directory) inUse(k *record.RootKey) RootKeyUse {
	return RootKeyUse{k, d.rooted[k.ID], k.ID == d.ring.First().String()}
}

// RootKeys is the ring in force.
func (d *Directory) RootKeys() *token.Keys {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.ring
}

// SessionWith is the session that a token came with, whether it lives or not.
func (d *Directory) SessionWith(id key.TokenID) *record.Session {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.tokenOf[id]
}

// SSOOf is an organization's single sign-on.
func (d *Directory) SSOOf(slug string) *record.SSO {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.sso[slug]
}

// SessionsOf are a user's, the oldest first.
func (d *Directory) SessionsOf(id key.UserID) []*record.Session {
	d.mu.RLock()
	defer d.mu.RUnlock()
	out := sorted(d.signed[id])
	slices.SortStableFunc(out, func(a, b *record.Session) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return out
}

// AllSessions lists the sessions, those that are over included.
func (d *Directory) AllSessions() []*record.Session {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return sorted(d.sessions)
}

// OrgNumbered is the organization of a number, or nil.
func (d *Directory) OrgNumbered(n int64) *record.Org {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.orgs[d.numbers[n]]
}

// sorted is a map's values, in the order of its keys.
func sorted[K ~string, V any](m map[K]V) []V {
	out := make([]V, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[k])
	}
	return out
}
