package controller

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"bulkhead/controller/access"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/store"
)

// Member is a member of an organization as the API answers it.
type Member struct {
	User   User                        `json:"user"`
	Role   record.Role                 `json:"role,omitempty"`
	Apps   map[key.AppName]record.Role `json:"apps,omitempty"`
	Source string                      `json:"source,omitempty"`
	Since  string                      `json:"since"`
}

// listMembers lists who belongs to an organization.
//
//	GET /v1/orgs/{org}/members
func (c *Controller) listMembers(r *call) (int, any, error) {
	out := struct {
		Members []Member `json:"members"`
	}{Members: []Member{}}
	for _, m := range c.directory.MembersIn(r.PathValue("org")) {
		if u := c.directory.User(m.User); u != nil {
			out.Members = append(out.Members, memberBody(u, m))
		}
	}
	slices.SortFunc(out.Members, func(a, b Member) int { return strings.Compare(a.User.Name, b.User.Name) })
	return http.StatusOK, out, nil
}

// memberBody is a member as other members see it: it does not say whether the user operates
// the cluster.
func memberBody(u *record.User, m *record.Member) Member {
	shown := userBody(u)
	shown.Operator = nil
	return Member{User: shown, Role: m.Role, Apps: m.Apps, Source: m.Source, Since: stamp(m.CreatedAt)}
}

// roles is a role in an organization and roles for apps of it, as bodies hold them.
type roles struct {
	Role record.Role                 `json:"role"`
	Apps map[key.AppName]record.Role `json:"apps"`
}

// maxAppRoles bounds the apps for which one member has roles of their own.
const maxAppRoles = 100

// check refuses roles that there are not, and those that the caller may not give.
func (c *Controller) checkRoles(who access.Caller, slug string, in roles) error {
	if in.Role == "" && len(in.Apps) == 0 {
		return fault.New(fault.Invalid, "role is missing: one of %s", roleNames())
	}
	if in.Role != "" && !slices.Contains(record.Roles, in.Role) {
		return fault.New(fault.Invalid, "role is %q; it is one of %s", fault.Clip(string(in.Role)), roleNames())
	}
	if len(in.Apps) > maxAppRoles {
		return fault.New(fault.Invalid, "apps names %d apps, at most %d", len(in.Apps), maxAppRoles)
	}
	for name, r := range in.Apps {
		if !slices.Contains(record.Roles, r) || r == record.Owner {
			return fault.New(fault.Invalid, "the role for app %q is %q; it is one of admin, deployer, viewer, auditor", fault.Clip(string(name)), fault.Clip(string(r)))
		}
		if a := c.directory.App(name); a == nil || a.Org != slug {
			return fault.New(fault.NotFound, "organization %q has no app %q", slug, fault.Clip(string(name)))
		}
	}
	if in.Role == record.Owner {
		return c.authorize(who, access.Request{Act: access.Write, What: access.Owner, Org: slug})
	}
	return nil
}

func roleNames() string {
	var names []string
	for _, r := range record.Roles {
		names = append(names, string(r))
	}
	return strings.Join(names, ", ")
}

// setMember gives a user of the cluster a role.
//
//	PUT /v1/orgs/{org}/members/{user} {"role": "deployer", "apps": {"web": "admin"}}
func (c *Controller) setMember(r *call) (int, any, error) {
	var in roles
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	slug := r.PathValue("org")
	if err := c.checkRoles(r.who, slug, in); err != nil {
		return 0, nil, err
	}
	u, err := c.findMember(slug, r.PathValue("user"))
	if err != nil {
		return 0, nil, err
	}
	var m *record.Member
	err = retry(r.Context(), func() error {
		var t txn
		o, orgRev, err := record.Get[record.Org](r.Context(), c.store, record.OrgKey(slug))
		if err != nil {
			return err
		}
		if o == nil || o.Deleting {
			return access.NoOrg(slug)
		}
		t.when(record.OrgKey(slug), orgRev)
		var rev int64
		if m, rev, err = record.Get[record.Member](r.Context(), c.store, record.MemberKey(slug, u.ID)); err != nil {
			return err
		}
		switch {
		case m == nil:
			return noMember(slug, r.PathValue("user"))
		case m.Role == record.Owner && in.Role != record.Owner:
			if err := c.ownerMayGo(r, &t, m); err != nil {
				return err
			}
		}
		m.Role, m.Apps, m.Source = in.Role, in.Apps, ""
		t.when(record.MemberKey(slug, u.ID), rev)
		t.do(record.Put(record.MemberKey(slug, u.ID), m))
		return c.commit(r.Context(), &t)
	})
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, memberBody(u, m), nil
}

// findMember knows a member by the user's id or name. Somebody outside comes in by invitation:
// a name alone makes nobody a member, and whoever may invite does not learn who else there is.
func (c *Controller) findMember(slug, s string) (*record.User, error) {
	u, err := c.findUser(s)
	if err != nil || c.directory.Member(slug, u.ID) == nil {
		return nil, noMember(slug, s)
	}
	return u, nil
}

func noMember(slug, s string) error {
	return fault.New(fault.NotFound, "organization %q has no member %q; invite them: bulkhead orgs invite", slug, fault.Clip(s))
}

// ownerMayGo refuses to unmake an owner to whoever is none, and to unmake the last.
func (c *Controller) ownerMayGo(r *call, t *txn, m *record.Member) error {
	if err := c.authorize(r.who, access.Request{Act: access.Delete, What: access.Owner, Org: m.Org}); err != nil {
		return err
	}
	return c.mayGo(r.Context(), t, m)
}

// mayGo refuses to take an organization's last owner away. As with anotherOperator the
// condition is on another owner's record.
func (c *Controller) mayGo(ctx context.Context, t *txn, m *record.Member) error {
	if m.Role != record.Owner {
		return nil
	}
	for _, o := range c.directory.MembersIn(m.Org) {
		if o.User == m.User || o.Role != record.Owner {
			continue
		}
		u, userRev, err := record.Get[record.User](ctx, c.store, record.UserKey(o.User))
		if err != nil {
			return err
		}
		cur, rev, err := record.Get[record.Member](ctx, c.store, record.MemberKey(o.Org, o.User))
		if err != nil {
			return err
		}
		if u != nil && cur != nil && cur.Role == record.Owner {
			t.when(record.MemberKey(o.Org, o.User), rev)
			t.when(record.UserKey(o.User), userRev)
			return nil
		}
	}
	return fault.New(fault.Conflict, "organization %q has no other owner; make one first: bulkhead orgs role %s NAME owner", m.Org, m.Org)
}

// removeMember ends a membership, and with it the user's tokens for the organization: the
// rights that other tokens took from it are gone at once.
//
//	DELETE /v1/orgs/{org}/members/{user}
func (c *Controller) removeMember(r *call) (int, any, error) {
	slug := r.PathValue("org")
	u, err := c.findMember(slug, r.PathValue("user"))
	if err != nil {
		return 0, nil, err
	}
	ctx, cancel := toItsEnd(r.Context())
	defer cancel()
	err = retry(ctx, func() error {
		m, rev, err := record.Get[record.Member](ctx, c.store, record.MemberKey(slug, u.ID))
		if err != nil {
			return err
		}
		if m == nil {
			return noMember(slug, r.PathValue("user"))
		}
		var t txn
		if m.Role == record.Owner {
			if err := c.ownerMayGo(r, &t, m); err != nil {
				return err
			}
		}
		t.when(record.MemberKey(slug, u.ID), rev)
		t.do(store.Delete(record.MemberKey(slug, u.ID)))
		return c.commit(ctx, &t)
	})
	if err != nil {
		return 0, nil, err
	}
	if err := c.dropTokens(ctx, u.ID, slug); err != nil {
		return 0, nil, err
	}
	c.log.Info("member removed", "org", slug, "user", u.Name, "by", r.who.Name)
	return ok()
}

// Times of invitations.
const (
	inviteLife    = 7 * 24 * time.Hour
	maxInviteLife = 30 * 24 * time.Hour
)

// Invitation is an invitation as the API answers it. Token is in the answer that makes it,
// and never again.
type Invitation struct {
	ID        string                      `json:"id"`
	Org       string                      `json:"organization"`
	Name      string                      `json:"name,omitempty"`
	Role      record.Role                 `json:"role,omitempty"`
	Apps      map[key.AppName]record.Role `json:"apps,omitempty"`
	By        string                      `json:"by"`
	ExpiresAt string                      `json:"expires_at"`
	Token     string                      `json:"token,omitempty"`
}

func invitationBody(cl *record.Claim) Invitation {
	return Invitation{ID: cl.ID, Org: cl.Org, Name: cl.Name, Role: cl.Role, Apps: cl.Apps, By: cl.By, ExpiresAt: stamp(cl.ExpiresAt)}
}

// invite makes a one-time token that makes its bearer a member.
//
//	POST /v1/orgs/{org}/invitations {"role": "viewer", "name": "bob", "expiry": "48h"}
func (c *Controller) invite(r *call) (int, any, error) {
	var in struct {
		roles
		Name   string `json:"name"`
		Expiry string `json:"expiry"`
	}
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	slug := r.PathValue("org")
	if err := c.checkRoles(r.who, slug, in.roles); err != nil {
		return 0, nil, err
	}
	if in.Name != "" {
		if _, err := key.ParseUserName(in.Name); err != nil {
			return 0, nil, err
		}
	}
	if err := c.roomForUser(slug, c.directory.InvitationsOf(slug)); err != nil {
		return 0, nil, err
	}
	life, err := expiry(in.Expiry, inviteLife, maxInviteLife)
	if err != nil {
		return 0, nil, err
	}
	cl := &record.Claim{
		ID: "c_" + strings.TrimPrefix(string(key.NewTokenID()), "t_"), Org: slug, Role: in.Role, Apps: in.Apps, Name: in.Name,
		By: r.who.Name, ByUser: r.who.User, CreatedAt: now(), ExpiresAt: now().Add(life),
	}
	token, sum := newClaimToken(cl.ID)
	cl.SHA256 = sum
	err = retry(r.Context(), func() error {
		o, rev, err := record.Get[record.Org](r.Context(), c.store, record.OrgKey(slug))
		if err != nil {
			return err
		}
		if o == nil || o.Deleting { // or it were good for another organization that gets the name
			return access.NoOrg(slug)
		}
		var t txn
		t.when(record.OrgKey(slug), rev)
		t.when(record.ClaimKey(cl.ID), 0)
		t.do(record.Put(record.ClaimKey(cl.ID), cl))
		return c.commit(r.Context(), &t)
	})
	if err != nil {
		return 0, nil, err
	}
	out := invitationBody(cl)
	out.Token = token
	return http.StatusCreated, out, nil
}

// expiry reads how long something is to be good: a Go duration, between a minute and most.
func expiry(s string, def, most time.Duration) (time.Duration, error) {
	if s == "" {
		return min(def, most), nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fault.New(fault.Invalid, "expiry is %q; it is a duration such as 48h", fault.Clip(s))
	}
	if d < time.Minute || d > most {
		return 0, fault.New(fault.Invalid, "expiry is %s; it is from 1m to %s", d, most)
	}
	return d, nil
}

// listInvitations lists those that were not accepted yet.
//
//	GET /v1/orgs/{org}/invitations
func (c *Controller) listInvitations(r *call) (int, any, error) {
	out := struct {
		Invitations []Invitation `json:"invitations"`
	}{Invitations: []Invitation{}}
	for _, cl := range c.directory.AllClaims() {
		if cl.Org == r.PathValue("org") && cl.ID != installationClaim && access.Spendable(c.directory, cl) {
			out.Invitations = append(out.Invitations, invitationBody(cl))
		}
	}
	return http.StatusOK, out, nil
}

// uninvite takes an invitation back.
//
//	DELETE /v1/orgs/{org}/invitations/{invitation}
func (c *Controller) uninvite(r *call) (int, any, error) {
	id := r.PathValue("invitation")
	gone := fault.New(fault.NotFound, "organization %q has no invitation %q", fault.Clip(r.PathValue("org")), fault.Clip(id))
	if !claimRE.MatchString(id) || id == installationClaim {
		return 0, nil, gone
	}
	err := retry(r.Context(), func() error {
		cl, rev, err := record.Get[record.Claim](r.Context(), c.store, record.ClaimKey(id))
		if err != nil {
			return err
		}
		if cl == nil || cl.Org != r.PathValue("org") {
			return gone
		}
		return c.commit(r.Context(), &txn{conds: []store.Cond{record.At(record.ClaimKey(id), rev)}, ops: []store.Op{store.Delete(record.ClaimKey(id))}})
	})
	if err != nil {
		return 0, nil, err
	}
	return ok()
}

// acceptInvitation makes a user who is one already a member.
//
//	POST /v1/invitations/accept {"token": "bh_…"}
func (c *Controller) acceptInvitation(r *call) (int, any, error) {
	var in struct {
		Token string `json:"token"`
	}
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	t, isClaim := strings.CutPrefix(in.Token, claimPrefix)
	if !isClaim {
		return 0, nil, fault.New(fault.Invalid, "token is not that of an invitation, which begins with %s", claimPrefix)
	}
	inv, err := c.authenticateClaim(t)
	if err == access.ErrToken {
		return 0, nil, fault.New(fault.NotFound, "there is no such invitation, or it has expired or was accepted")
	}
	if err != nil {
		return 0, nil, err
	}
	u := c.directory.User(r.who.User)
	cl := inv.Claim
	if cl.Operator {
		return 0, nil, fault.New(fault.Invalid, "this is the installation's token; log in with it: bulkhead login")
	}
	if u == nil || cl.Name != "" && cl.Name != u.Name {
		return 0, nil, fault.New(fault.Denied, "this invitation is for %q", cl.Name)
	}
	err = retry(r.Context(), func() error {
		var t txn
		if err := c.take(r.Context(), &t, cl); err != nil {
			return err
		}
		if err := c.joining(r.Context(), &t, u.ID, cl); err != nil {
			return err
		}
		return c.commit(r.Context(), &t)
	})
	if err != nil {
		return 0, nil, err
	}
	m := c.directory.Member(cl.Org, u.ID)
	if m == nil {
		return 0, nil, access.NoOrg(cl.Org)
	}
	return http.StatusOK, memberBody(u, m), nil
}
