package controller

import (
	"context"
	"net/http"

	"bulkhead/controller/access"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/store"
)

// User is a user as the API answers it.
type User struct {
	ID        key.UserID `json:"id"`
	Name      string     `json:"name"`
	Email     string     `json:"email,omitempty"`
	Org       string     `json:"sso_organization,omitempty"` // whose identity provider vouched for the user
	Operator  *bool      `json:"operator,omitempty"`         // absent where members see each other
	CreatedAt string     `json:"created_at"`
}

func userBody(u *record.User) User {
	return User{ID: u.ID, Name: u.Name, Email: u.Email, Org: u.Org, Operator: &u.Operator, CreatedAt: stamp(u.CreatedAt)}
}

// Self is who the caller is.
type Self struct {
	User
	Organizations []Membership `json:"organizations"`
	Token         *SelfToken   `json:"token,omitempty"`
}

// SelfToken is what the caller is told of the token it uses.
type SelfToken struct {
	ID        key.TokenID `json:"id"`
	Kind      string      `json:"kind"`
	Org       string      `json:"organization,omitempty"`
	ExpiresAt string      `json:"expires_at"`
}

// Membership is what a user is to an organization.
type Membership struct {
	Org  string                      `json:"organization"`
	Role record.Role                 `json:"role,omitempty"`
	Apps map[key.AppName]record.Role `json:"apps,omitempty"`
}

// showSelf answers who the caller is.
//
//	GET /v1/user
func (c *Controller) showSelf(r *call) (int, any, error) {
	u := c.directory.User(r.who.User)
	if u == nil {
		return 0, nil, access.ErrToken
	}
	out := Self{User: userBody(u), Organizations: []Membership{}}
	for _, m := range c.directory.OrgsOf(u.ID) {
		if c.authorize(r.who, access.Request{Act: access.Read, What: access.Org, Org: m.Org}) != nil {
			continue // not what the token is for
		}
		out.Organizations = append(out.Organizations, Membership{Org: m.Org, Role: m.Role, Apps: m.Apps})
	}
	if t := r.who.Token; t != nil {
		out.Token = &SelfToken{ID: t.ID, Kind: string(t.Kind), Org: t.Org, ExpiresAt: stamp(t.ExpiresAt)}
	}
	return http.StatusOK, out, nil
}

// listUsers lists the cluster's users, for operators.
//
//	GET /v1/users
func (c *Controller) listUsers(*call) (int, any, error) {
	out := struct {
		Users []User `json:"users"`
	}{Users: []User{}}
	for _, u := range c.directory.AllUsers() {
		out.Users = append(out.Users, userBody(u))
	}
	return http.StatusOK, out, nil
}

// findUser knows a user by id or name.
func (c *Controller) findUser(s string) (*record.User, error) {
	if id, err := key.ParseUserID(s); err == nil {
		if u := c.directory.User(id); u != nil {
			return u, nil
		}
	} else if u := c.directory.UserNamed(s); u != nil {
		return u, nil
	}
	return nil, fault.New(fault.NotFound, "user %q not found", fault.Clip(s))
}

// setOperator makes a user an operator of the cluster, or ends that.
//
//	PATCH /v1/users/{user} {"operator": true}
func (c *Controller) setOperator(r *call) (int, any, error) {
	var in struct {
		Operator *bool `json:"operator"`
	}
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	if in.Operator == nil {
		return 0, nil, fault.New(fault.Invalid, "operator is missing: true or false")
	}
	found, err := c.findUser(r.PathValue("user"))
	if err != nil {
		return 0, nil, err
	}
	var u *record.User
	err = retry(r.Context(), func() error {
		var rev int64
		u, rev, err = record.Get[record.User](r.Context(), c.store, record.UserKey(found.ID))
		if err != nil {
			return err
		}
		if u == nil {
			return fault.New(fault.NotFound, "user %q not found", found.Name)
		}
		var t txn
		if u.Operator && !*in.Operator {
			if err := c.anotherOperator(r.Context(), &t, u.ID); err != nil {
				return err
			}
		}
		u.Operator = *in.Operator
		t.when(record.UserKey(u.ID), rev)
		t.do(record.Put(record.UserKey(u.ID), u))
		return c.commit(r.Context(), &t)
	})
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, userBody(u), nil
}

// anotherOperator refuses to take the last operator away. The condition is on another
// one's record, so that two who go at once do not both go.
func (c *Controller) anotherOperator(ctx context.Context, t *txn, but key.UserID) error {
	for _, o := range c.directory.AllUsers() {
		if o.ID == but || !o.Operator {
			continue
		}
		cur, rev, err := record.Get[record.User](ctx, c.store, record.UserKey(o.ID))
		if err != nil {
			return err
		}
		if cur != nil && cur.Operator {
			t.when(record.UserKey(o.ID), rev)
			return nil
		}
	}
	return fault.New(fault.Conflict, "this is the cluster's last operator; make another one first: bulkhead users operator NAME")
}

// deleteUser removes a user from every organization and ends their tokens. The name is
// free then; the id is never used again.
//
//	DELETE /v1/users/{user}
func (c *Controller) deleteUser(r *call) (int, any, error) {
	u, err := c.findUser(r.PathValue("user"))
	if err != nil {
		return 0, nil, err
	}
	ctx, cancel := toItsEnd(r.Context())
	defer cancel()
	// The user's record goes first: no token of theirs is good from then on. What a kill
	// leaves of the rest names a user that there is not, and gives nobody anything.
	err = retry(ctx, func() error {
		cur, rev, err := record.Get[record.User](ctx, c.store, record.UserKey(u.ID))
		if err != nil || cur == nil {
			return err
		}
		var t txn
		for _, m := range c.directory.OrgsOf(u.ID) {
			if err := c.mayGo(ctx, &t, m); err != nil {
				return err
			}
		}
		if cur.Operator {
			if err := c.anotherOperator(ctx, &t, u.ID); err != nil {
				return err
			}
		}
		t.when(record.UserKey(u.ID), rev)
		t.do(store.Delete(record.UserKey(u.ID)), store.Delete(record.UserNameKey(u.Name)))
		if err := c.dropPasskeys(ctx, &t, u.ID); err != nil {
			return err
		}
		return c.commit(ctx, &t)
	})
	if err != nil {
		return 0, nil, err
	}
	if err := c.dropTokens(ctx, u.ID, ""); err != nil {
		return 0, nil, err
	}
	for _, m := range c.directory.OrgsOf(u.ID) {
		t := txn{ops: []store.Op{store.Delete(record.MemberKey(m.Org, u.ID))}}
		if err := c.commit(ctx, &t); err != nil {
			return 0, nil, err
		}
	}
	c.log.Info("user removed", "user", u.Name, "by", r.who.Name)
	return ok()
}

// dropTokens ends a user's sessions and tokens: all, or those for one organization.
func (c *Controller) dropTokens(ctx context.Context, id key.UserID, org string) error {
	for _, s := range c.directory.SessionsOf(id) { // or they lived again with a new membership
		if org == "" || s.Org == org {
			if err := c.endSession(ctx, s); err != nil {
				return err
			}
		}
	}
	var t txn
	flush := func() error {
		if len(t.ops) == 0 {
			return nil
		}
		err := c.commit(ctx, &t)
		t = txn{}
		return err
	}
	for _, rec := range c.directory.TokensOf(id) {
		if org != "" && rec.Org != org {
			continue
		}
		t.do(store.Delete(record.TokenKey(rec.ID)))
		if len(t.ops) == store.MaxOps {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}
