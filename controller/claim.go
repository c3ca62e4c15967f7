package controller

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net/http"
	"regexp"
	"time"

	"bulkhead/controller/access"
	"bulkhead/controller/record"
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
		old, rev, err := record.Get[record.Claim](ctx, c.store, record.ClaimKey(installationClaim))
		if err != nil {
			return err
		}
		first, firstRev, err := record.Get[record.Counter](ctx, c.store, record.CounterKey("user"))
		if err != nil {
			return err
		}
		used := first != nil && first.Last > 0
		if onlyFirst && (old != nil || used) {
			return fault.New(fault.Conflict, "the installation's token was made already and cannot be shown again; ask for a new one without if_none")
		}
		cl := record.Claim{ID: installationClaim, SHA256: sum, Org: record.OrgPersonal, Role: record.Owner, Operator: true, By: "root", CreatedAt: now()}
		if used {
			cl.ExpiresAt = cl.CreatedAt.Add(recoveryLife)
		}
		var t txn
		t.when(record.ClaimKey(installationClaim), rev)
		t.when(record.CounterKey("user"), firstRev)
		t.do(record.Put(record.ClaimKey(installationClaim), cl))
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
		u    *record.User
		text string
		rec  *record.Token
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
func (c *Controller) spend(ctx context.Context, cl *record.Claim, name string) (*record.User, string, *record.Token, error) {
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
	text, rec, err := c.newToken(ctx, &t, u, record.Token{Kind: token.Login, Name: "first login"}, loginLife)
	if err != nil {
		return nil, "", nil, err
	}
	return u, text, rec, c.commit(ctx, &t)
}

// take has a claim spent by a transaction.
func (c *Controller) take(ctx context.Context, t *txn, cl *record.Claim) error {
	cur, rev, err := record.Get[record.Claim](ctx, c.store, record.ClaimKey(cl.ID))
	if err != nil {
		return err
	}
	if cur == nil || subtle.ConstantTimeCompare(cur.SHA256, cl.SHA256) != 1 || !access.Spendable(c.directory, cur) {
		return access.ErrToken
	}
	t.when(record.ClaimKey(cl.ID), rev)
	t.do(store.Delete(record.ClaimKey(cl.ID)))
	return nil
}

// userToBe is the user of a name, new unless the claim is the installation's.
func (c *Controller) userToBe(ctx context.Context, t *txn, name string, cl *record.Claim) (*record.User, error) {
	taken, _, err := record.Get[record.UserName](ctx, c.store, record.UserNameKey(name))
	if err != nil {
		return nil, err
	}
	if taken == nil {
		if err := c.mayName(ctx, t, cl, name); err != nil {
			return nil, err
		}
		u := record.User{Name: name, Operator: cl.Operator}
		if !cl.Operator {
			if err := c.roomForUser(cl.Org, 0); err != nil {
				return nil, err
			}
			u.Invited = cl.Org
		}
		return c.newUser(ctx, t, u)
	}
	if cl.ID != installationClaim {
		return nil, fault.New(fault.Unprocessable, "there is a user %q already; log in as that user and accept the invitation with \"bulkhead orgs join\"", name).WithStatus("name_taken")
	}
	u, rev, err := record.Get[record.User](ctx, c.store, record.UserKey(taken.ID))
	if err != nil {
		return nil, err
	}
	if u == nil {
		return nil, fault.New(fault.Internal, "the user %q has a name and no record", name)
	}
	u.Operator = true
	t.when(record.UserKey(u.ID), rev)
	t.do(record.Put(record.UserKey(u.ID), u))
	return u, nil
}

// newUser has a transaction make a user; u has the name and what else is known.
func (c *Controller) newUser(ctx context.Context, t *txn, u record.User) (*record.User, error) {
	n, rev, err := record.Get[record.Counter](ctx, c.store, record.CounterKey("user"))
	if err != nil {
		return nil, err
	}
	if n == nil {
		n = &record.Counter{}
	}
	n.Last++
	u.ID, u.Number, u.CreatedAt = key.NewUserID(), n.Last, now()
	t.when(record.UserNameKey(u.Name), 0)
	t.when(record.CounterKey("user"), rev)
	t.do(record.Put(record.CounterKey("user"), n), record.Put(record.UserNameKey(u.Name), record.UserName{ID: u.ID}), record.Put(record.UserKey(u.ID), u))
	return &u, nil
}

// joining has a transaction make a user a member as a claim says. A membership there is
// already grows, and never shrinks; single sign-on, if it made it, keeps it no more.
func (c *Controller) joining(ctx context.Context, t *txn, id key.UserID, cl *record.Claim) error {
	o, orgRev, err := record.Get[record.Org](ctx, c.store, record.OrgKey(cl.Org))
	if err != nil {
		return err
	}
	if o == nil || o.Deleting {
		return fault.New(fault.NotFound, "the organization %q is gone", cl.Org)
	}
	m, rev, err := record.Get[record.Member](ctx, c.store, record.MemberKey(cl.Org, id))
	if err != nil {
		return err
	}
	if m == nil {
		m = &record.Member{Org: cl.Org, User: id, CreatedAt: now()}
	}
	m.Role, m.Source = mightier(m.Role, cl.Role), ""
	for app, r := range cl.Apps {
		if m.Apps == nil {
			m.Apps = map[key.AppName]record.Role{}
		}
		m.Apps[app] = mightier(m.Apps[app], r)
	}
	t.when(record.OrgKey(cl.Org), orgRev)
	t.when(record.MemberKey(cl.Org, id), rev)
	t.do(record.Put(record.MemberKey(cl.Org, id), m))
	return nil
}

// mightier is the role of the two that stands first in record.Roles.
func mightier(a, b record.Role) record.Role {
	for _, r := range record.Roles {
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
	case <-c.directory.Loaded():
	case <-ctx.Done():
		return ctx.Err()
	}
	for _, cl := range c.directory.AllClaims() {
		var err error
		switch {
		case cl.ID == installationClaim:
		case cl.Expired(now()):
			err = c.commit(ctx, &txn{ops: []store.Op{store.Delete(record.ClaimKey(cl.ID))}})
		case cl.ByUser != "" && c.directory.Member(cl.Org, cl.ByUser) == nil:
			err = c.dropOrphan(ctx, record.MemberKey(cl.Org, cl.ByUser), record.ClaimKey(cl.ID))
		}
		if err != nil {
			return err
		}
	}
	for _, rec := range c.directory.AllTokens() {
		var err error
		switch {
		case c.directory.User(rec.User) == nil:
			err = c.dropOrphan(ctx, record.UserKey(rec.User), record.TokenKey(rec.ID))
		case rec.Org != "" && c.directory.Member(rec.Org, rec.User) == nil: // or it were good again with a new membership
			err = c.dropOrphan(ctx, record.MemberKey(rec.Org, rec.User), record.TokenKey(rec.ID))
		}
		if err != nil {
			return err
		}
	}
	for _, o := range c.directory.AllOrgs() {
		for _, m := range c.directory.MembersIn(o.Slug) {
			if c.directory.User(m.User) == nil {
				if err := c.dropOrphan(ctx, record.UserKey(m.User), record.MemberKey(o.Slug, m.User)); err != nil {
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
	err := c.commit(ctx, &txn{conds: []store.Cond{record.At(other, 0)}, ops: []store.Op{store.Delete(k)}})
	if errors.Is(err, store.ErrChanged) {
		return nil
	}
	return err
}
