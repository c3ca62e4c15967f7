package controller

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net/http"
	"regexp"
	"strings"
	"time"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/store"
	"bulkhead/token"
)

const (
	// installationClaim is the id of the claim that the installation makes, and whose
	// token the first login spends.
	installationClaim = "c_installation"
	// recoveryLife is how long a claim made by root later is good.
	recoveryLife = time.Hour
	// loginLife is how long the token of a login is good.
	loginLife = 30 * 24 * time.Hour
)

var claimRE = regexp.MustCompile(`^c_(installation|[0-9a-f]{16})$`)

// newClaimToken is a fresh claim token and what is kept of its secret.
func newClaimToken(id string) (token string, sum []byte) {
	secret := newSecret()
	s := sha256.Sum256([]byte(secret))
	return claimPrefix + id + "." + secret, s[:]
}

// mintClaim makes the one-time token with which an operator logs in, and voids the one
// before. With onlyFirst it is a Conflict when the cluster had one already: that one was
// shown then. A later one is good for an hour.
func (c *Controller) mintClaim(ctx context.Context, onlyFirst bool) (string, error) {
	token, sum := newClaimToken(installationClaim)
	err := retry(ctx, func() error {
		old, rev, err := get[claim](ctx, c.store, claimKey(installationClaim))
		if err != nil {
			return err
		}
		first, firstRev, err := get[counter](ctx, c.store, counterKey("user"))
		if err != nil {
			return err
		}
		used := first != nil && first.Last > 0
		if onlyFirst && (old != nil || used) {
			return fault.New(fault.Conflict, "the installation's token was made already and cannot be shown again; ask for a new one without if_none")
		}
		cl := claim{ID: installationClaim, SHA256: sum, Org: orgPersonal, Role: roleOwner, Operator: true, By: "root", CreatedAt: now()}
		if used {
			cl.ExpiresAt = cl.CreatedAt.Add(recoveryLife)
		}
		var t txn
		t.when(claimKey(installationClaim), rev)
		t.when(counterKey("user"), firstRev)
		t.do(put(claimKey(installationClaim), cl))
		return c.commit(ctx, &t)
	})
	if err != nil {
		return "", err
	}
	return token, nil
}

// Claimed is the answer to a claim: the user there is now, and the user's own token,
// which is shown this once.
type Claimed struct {
	User    User   `json:"user"`
	Org     string `json:"organization"`
	Role    string `json:"role,omitempty"`
	Token   string `json:"token"`
	Expires string `json:"token_expires_at"`
}

// claimAccount spends a one-time token: its bearer becomes a user of the name given, with
// the membership that the token carries, and gets a token of their own.
//
//	POST /v1/claim {"name": "alice"}
func (c *Controller) claimAccount(r *call) (int, any, error) {
	var in struct {
		Name string `json:"name"`
	}
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	name, err := key.ParseUserName(in.Name)
	if err != nil {
		return 0, nil, err
	}
	cl := r.who.Claim
	if cl.Name != "" && cl.Name != name {
		return 0, nil, fault.New(fault.Denied, "this invitation is for %q", cl.Name)
	}
	var (
		u    *user
		text string
		rec  *tokenRecord
	)
	err = retry(r.Context(), func() (err error) {
		u, text, rec, err = c.spend(r.Context(), cl, name)
		return err
	})
	if err != nil {
		return 0, nil, err
	}
	c.log.Info("a claim was spent", "claim", cl.ID, "user", u.Name, "org", cl.Org)
	return http.StatusCreated, Claimed{User: userBody(u), Org: cl.Org, Role: string(cl.Role), Token: text, Expires: stamp(rec.ExpiresAt)}, nil
}

// spend makes the user, the membership and the user's first token, and removes the claim,
// in one transaction. For the installation's claim a user of the name may exist: root
// vouches for who asks.
func (c *Controller) spend(ctx context.Context, cl *claim, name string) (*user, string, *tokenRecord, error) {
	var t txn
	if err := c.take(ctx, &t, cl); err != nil {
		return nil, "", nil, err
	}
	u, err := c.userToBe(ctx, &t, name, cl)
	if err != nil {
		return nil, "", nil, err
	}
	if err := c.joining(ctx, &t, u.ID, cl); err != nil {
		return nil, "", nil, err
	}
	text, rec, err := c.newToken(ctx, &t, u, tokenRecord{Kind: token.Login, Name: "first login"}, loginLife)
	if err != nil {
		return nil, "", nil, err
	}
	return u, text, rec, c.commit(ctx, &t)
}

// take has a claim spent by a transaction.
func (c *Controller) take(ctx context.Context, t *txn, cl *claim) error {
	cur, rev, err := get[claim](ctx, c.store, claimKey(cl.ID))
	if err != nil {
		return err
	}
	if cur == nil || subtle.ConstantTimeCompare(cur.SHA256, cl.SHA256) != 1 || !c.directory.good(cur) {
		return errToken
	}
	t.when(claimKey(cl.ID), rev)
	t.do(store.Delete(claimKey(cl.ID)))
	return nil
}

// userToBe is the user of a name, new unless the claim is the installation's.
func (c *Controller) userToBe(ctx context.Context, t *txn, name string, cl *claim) (*user, error) {
	taken, _, err := get[userName](ctx, c.store, userNameKey(name))
	if err != nil {
		return nil, err
	}
	if taken == nil {
		return c.newUser(ctx, t, user{Name: name, Operator: cl.Operator})
	}
	if cl.ID != installationClaim {
		return nil, fault.New(fault.Unprocessable, "there is a user %q already; log in as that user and accept the invitation with \"bulkhead orgs join\"", name).WithStatus("name_taken")
	}
	u, rev, err := get[user](ctx, c.store, userKey(taken.ID))
	if err != nil {
		return nil, err
	}
	if u == nil {
		return nil, fault.New(fault.Internal, "the user %q has a name and no record", name)
	}
	u.Operator = true
	t.when(userKey(u.ID), rev)
	t.do(put(userKey(u.ID), u))
	return u, nil
}

// newUser has a transaction make a user; u has the name and what else is known.
func (c *Controller) newUser(ctx context.Context, t *txn, u user) (*user, error) {
	n, rev, err := get[counter](ctx, c.store, counterKey("user"))
	if err != nil {
		return nil, err
	}
	if n == nil {
		n = &counter{}
	}
	n.Last++
	u.ID, u.Number, u.CreatedAt = key.NewUserID(), n.Last, now()
	t.when(userNameKey(u.Name), 0)
	t.when(counterKey("user"), rev)
	t.do(put(counterKey("user"), n), put(userNameKey(u.Name), userName{ID: u.ID}), put(userKey(u.ID), u))
	return &u, nil
}

// joining has a transaction make a user a member as a claim says. A membership there is
// already grows, and never shrinks; single sign-on, if it made it, keeps it no more.
func (c *Controller) joining(ctx context.Context, t *txn, id key.UserID, cl *claim) error {
	o, orgRev, err := get[org](ctx, c.store, orgKey(cl.Org))
	if err != nil {
		return err
	}
	if o == nil || o.Deleting {
		return fault.New(fault.NotFound, "the organization %q is gone", cl.Org)
	}
	m, rev, err := get[member](ctx, c.store, memberKey(cl.Org, id))
	if err != nil {
		return err
	}
	if m == nil {
		m = &member{Org: cl.Org, User: id, CreatedAt: now()}
	}
	m.Role, m.Source = mightier(m.Role, cl.Role), ""
	for app, r := range cl.Apps {
		if m.Apps == nil {
			m.Apps = map[key.AppName]memberRole{}
		}
		m.Apps[app] = mightier(m.Apps[app], r)
	}
	t.when(orgKey(cl.Org), orgRev)
	t.when(memberKey(cl.Org, id), rev)
	t.do(put(memberKey(cl.Org, id), m))
	return nil
}

// mightier is the role of the two that stands first in memberRoles.
func mightier(a, b memberRole) memberRole {
	for _, r := range memberRoles {
		if a == r || b == r {
			return r
		}
	}
	return ""
}

// clearExpired forgets invitations that are good no more, and what is left of
// users who were removed when a kill cut that off.
func (c *Controller) clearExpired(ctx context.Context) error {
	select {
	case <-c.directory.loaded:
	case <-ctx.Done():
		return ctx.Err()
	}
	for _, cl := range c.directory.allClaims() {
		var err error
		switch {
		case cl.ID == installationClaim:
		case cl.expired(now()):
			err = c.commit(ctx, &txn{ops: []store.Op{store.Delete(claimKey(cl.ID))}})
		case cl.ByUser != "" && c.directory.member(cl.Org, cl.ByUser) == nil:
			err = c.dropOrphan(ctx, memberKey(cl.Org, cl.ByUser), claimKey(cl.ID))
		}
		if err != nil {
			return err
		}
	}
	for _, rec := range c.directory.allTokens() {
		var err error
		switch {
		case c.directory.user(rec.User) == nil:
			err = c.dropOrphan(ctx, userKey(rec.User), tokenKey(rec.ID))
		case rec.Org != "" && c.directory.member(rec.Org, rec.User) == nil: // or it were good again with a new membership
			err = c.dropOrphan(ctx, memberKey(rec.Org, rec.User), tokenKey(rec.ID))
		}
		if err != nil {
			return err
		}
	}
	for _, o := range c.directory.allOrgs() {
		for _, m := range c.directory.membersIn(o.Slug) {
			if c.directory.user(m.User) == nil {
				if err := c.dropOrphan(ctx, userKey(m.User), memberKey(o.Slug, m.User)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// dropOrphan removes a record that needs another, if the store too has no such other: the
// directory may have heard of the record first.
func (c *Controller) dropOrphan(ctx context.Context, other, k string) error {
	err := c.commit(ctx, &txn{conds: []store.Cond{at(other, 0)}, ops: []store.Op{store.Delete(k)}})
	if errors.Is(err, store.ErrChanged) {
		return nil
	}
	return err
}

// The directory's claims.

func (d *directory) takeClaim(e store.Event) {
	id := strings.TrimPrefix(e.Key, prefixClaim)
	delete(d.claims, id)
	if cl := live[claim](e); cl != nil {
		d.claims[id] = cl
	}
}

func (d *directory) claim(id string) *claim {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.claims[id]
}

// good reports whether a claim may be spent now. An invitation may for as long as whoever made it
// may make it: nobody who was removed leaves themselves a way back.
func (d *directory) good(cl *claim) bool {
	if cl.expired(now()) {
		return false
	}
	if cl.ByUser == "" {
		return true
	}
	may := d.user(cl.ByUser) != nil && d.memberMay(cl.ByUser, access{Act: actCreate, What: whatMember, Org: cl.Org})
	if cl.Role == roleOwner {
		may = may && d.memberMay(cl.ByUser, access{Act: actWrite, What: whatOwner, Org: cl.Org})
	}
	return may
}

func (d *directory) allClaims() []*claim {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return sorted(d.claims)
}
