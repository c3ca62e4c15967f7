package controller

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"

	"bulkhead/controller/access"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/store"
)

// Organization is an organization as the API answers it.
type Organization struct {
	Slug              string `json:"slug"`
	Name              string `json:"name"`
	InternalNumericID int64  `json:"internal_numeric_id"`
	Apps              int    `json:"app_count"`
	Members           int    `json:"member_count"`
	CreatedAt         string `json:"created_at"`
	// How long its tokens live, where that is less than the cluster's own bounds.
	TokenDefault string `json:"token_default_expiry,omitempty"`
	TokenMax     string `json:"token_max_expiry,omitempty"`
}

func (c *Controller) orgBody(o *record.Org) Organization {
	out := Organization{
		Slug: o.Slug, Name: o.Name, InternalNumericID: o.Number, CreatedAt: stamp(o.CreatedAt),
		Apps: len(c.directory.AppsIn(o.Slug)), Members: len(c.directory.MembersIn(o.Slug)),
	}
	if o.TokenDefault > 0 {
		out.TokenDefault = o.TokenDefault.String()
	}
	if o.TokenMax > 0 {
		out.TokenMax = o.TokenMax.String()
	}
	return out
}

// listOrgs lists the organizations that the caller may see.
//
//	GET /v1/orgs
func (c *Controller) listOrgs(r *call) (int, any, error) {
	out := struct {
		Organizations []Organization `json:"organizations"`
	}{Organizations: []Organization{}}
	var all []*record.Org
	if c.authorize(r.who, access.Request{Act: access.Read, What: access.Cluster}) == nil {
		all = c.directory.AllOrgs()
	} else {
		for _, m := range c.directory.OrgsOf(r.who.User) {
			if o := c.directory.Org(m.Org); o != nil && c.authorize(r.who, access.Request{Act: access.Read, What: access.Org, Org: o.Slug}) == nil {
				all = append(all, o)
			}
		}
	}
	for _, o := range all {
		out.Organizations = append(out.Organizations, c.orgBody(o))
	}
	return http.StatusOK, out, nil
}

// createOrg makes an organization, and the operator who asks its owner.
//
//	POST /v1/orgs {"slug": "acme", "name": "Acme GmbH"}
func (c *Controller) createOrg(r *call) (int, any, error) {
	var in struct {
		Slug string `json:"slug"`
		Name string `json:"name"`
	}
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	slug, err := key.ParseOrg(in.Slug)
	if err != nil {
		return 0, nil, err
	}
	if in.Name == "" {
		in.Name = slug
	}
	if len(in.Name) > 128 {
		return 0, nil, fault.New(fault.Invalid, "name is longer than 128 bytes")
	}
	o := &record.Org{Slug: slug, Name: in.Name, CreatedAt: now()}
	err = retry(r.Context(), func() error {
		n, rev, err := record.Get[record.Counter](r.Context(), c.store, record.CounterKey("org"))
		if err != nil {
			return err
		}
		if n == nil {
			n = &record.Counter{Last: 1} // the installation's own
		}
		if old, _, err := record.Get[record.Org](r.Context(), c.store, record.OrgKey(slug)); err != nil {
			return err
		} else if old != nil {
			return fault.New(fault.Unprocessable, "organization %q exists already", slug).WithStatus("name_taken")
		}
		n.Last++
		o.Number = n.Last
		var t txn
		t.when(record.CounterKey("org"), rev)
		t.when(record.OrgKey(slug), 0)
		t.when(record.MemberKey(slug, r.who.User), 0)
		t.do(record.Put(record.CounterKey("org"), n), record.Put(record.OrgKey(slug), o),
			record.Put(record.MemberKey(slug, r.who.User), record.Member{Org: slug, User: r.who.User, Role: record.Owner, CreatedAt: now()}))
		return c.commit(r.Context(), &t)
	})
	if err != nil {
		return 0, nil, err
	}
	return http.StatusCreated, c.orgBody(o), nil
}

// showOrg answers one organization.
//
//	GET /v1/orgs/{org}
func (c *Controller) showOrg(r *call) (int, any, error) {
	o := c.directory.Org(r.PathValue("org"))
	if o == nil {
		return 0, nil, access.NoOrg(r.PathValue("org"))
	}
	return http.StatusOK, c.orgBody(o), nil
}

// deleteOrg removes an organization that has no app any more, with its members,
// invitations and tokens.
//
//	DELETE /v1/orgs/{org}
func (c *Controller) deleteOrg(r *call) (int, any, error) {
	slug := r.PathValue("org")
	if slug == record.OrgPersonal {
		return 0, nil, fault.New(fault.Conflict, "%q is the installation's own organization and stays", slug)
	}
	ctx, cancel := toItsEnd(r.Context())
	defer cancel()
	// The mark keeps new apps out: each is made under the condition that the record is as
	// it was. What a kill leaves marked, the collector finishes.
	if err := c.markOrg(ctx, slug, true); err != nil {
		return 0, nil, err
	}
	if err := c.finishOrg(ctx, slug); err != nil {
		return 0, nil, err
	}
	c.log.Info("organization removed", "org", slug, "by", r.who.Name)
	return ok()
}

// finishOrg removes an organization that is marked, or takes the mark back if it has apps.
func (c *Controller) finishOrg(ctx context.Context, slug string) error {
	apps, _, err := record.List[record.App](ctx, c.store, record.PrefixApp)
	if err != nil {
		return err
	}
	for _, a := range apps {
		if a.Org == slug {
			return errors.Join(fault.New(fault.Conflict, "organization %q still has the app %q; delete its apps first", slug, a.Name), c.markOrg(ctx, slug, false))
		}
	}
	return c.clearOrg(ctx, slug)
}

// finishOrgs takes up the deletions of organizations that a kill cut off.
func (c *Controller) finishOrgs(ctx context.Context) error {
	orgs, _, err := record.List[record.Org](ctx, c.store, record.PrefixOrg)
	if err != nil {
		return err
	}
	for _, o := range orgs {
		if o.Deleting {
			if err := c.finishOrg(ctx, o.Slug); err != nil && !fault.Is(err, fault.Conflict) {
				return err
			}
		}
	}
	return nil
}

// toItsEnd is the context of a change in several steps: it goes on when its caller is
// gone, for as long as a deletion may take.
func toItsEnd(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), deleteLimit)
}

// markOrg sets or takes back the mark of an organization that is being deleted.
func (c *Controller) markOrg(ctx context.Context, slug string, deleting bool) error {
	return retry(ctx, func() error {
		o, rev, err := record.Get[record.Org](ctx, c.store, record.OrgKey(slug))
		if err != nil {
			return err
		}
		if o == nil {
			return access.NoOrg(slug)
		}
		o.Deleting = deleting
		var t txn
		t.when(record.OrgKey(slug), rev)
		t.do(record.Put(record.OrgKey(slug), o))
		return c.commit(ctx, &t)
	})
}

// clearOrg removes all that is an organization's, its record last.
func (c *Controller) clearOrg(ctx context.Context, slug string) error {
	for _, m := range c.directory.MembersIn(slug) {
		if err := c.dropTokens(ctx, m.User, slug); err != nil {
			return err
		}
		if err := c.commit(ctx, &txn{ops: []store.Op{store.Delete(record.MemberKey(slug, m.User))}}); err != nil {
			return err
		}
	}
	claims, _, err := record.List[record.Claim](ctx, c.store, record.PrefixClaim)
	if err != nil {
		return err
	}
	for _, cl := range claims {
		if cl.Org == slug {
			if err := c.commit(ctx, &txn{ops: []store.Op{store.Delete(record.ClaimKey(cl.ID))}}); err != nil {
				return err
			}
		}
	}
	return c.commit(ctx, &txn{ops: []store.Op{store.Delete(record.SSOKey(slug)), store.Delete(record.OrgKey(slug))}})
}

// orgsFor are the organizations that a caller's user has to do with, whatever the token is for.
func (c *Controller) orgsFor(who access.Caller) []string {
	if a := c.directory.App(who.App); a != nil {
		return []string{a.Org}
	}
	var out []string
	for _, m := range c.directory.OrgsOf(who.User) {
		out = append(out, m.Org)
	}
	return out
}

// mayLookInto refuses who has nothing to do with an organization.
func (c *Controller) mayLookInto(who access.Caller, slug string) error {
	return c.authorize(who, access.Request{Act: access.Read, What: access.Org, Org: slug})
}

// orgForNew is the organization for a new app: the one named, or the only one in which the
// caller may make any. Of others the holder of a narrow token does not learn.
func (c *Controller) orgForNew(who access.Caller, slug string) (string, error) {
	if slug != "" {
		return slug, nil
	}
	of := c.orgsFor(who)
	if len(of) == 1 {
		return of[0], nil
	}
	may := slices.DeleteFunc(of, func(slug string) bool {
		return c.authorize(who, access.Request{Act: access.Create, What: access.App, Org: slug}) != nil
	})
	switch len(may) {
	case 0:
		return "", fault.New(fault.Denied, "%s may make apps in no organization with this token; org_slug names one", who.Name)
	case 1:
		return may[0], nil
	}
	return "", fault.New(fault.Invalid, "org_slug is missing: it is one of %s", strings.Join(may, ", "))
}
