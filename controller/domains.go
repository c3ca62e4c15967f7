package controller

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"bulkhead/audit"
	"bulkhead/controller/access"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/sso"
	"bulkhead/store"
)

// Who may vouch for an e-mail domain. Names of users are the whole cluster's, and an
// organization's admins choose its identity provider and whom they invite: so a name that
// is an e-mail address is given only by the organization to which an operator has granted
// the address's domain. Each domain is one organization's at a time.

// domainGrant says which organization vouches for addresses of a domain.
type domainGrant struct {
	Domain string `json:"domain"`
	Org    string `json:"org"`
	Number int64  `json:"number"` // of the organization: another that gets its name has not this
	By     string `json:"by"`
	At     string `json:"at"`
}

const prefixDomain = "/domain/"

// Domain is a grant as the API answers it.
type Domain struct {
	Domain string `json:"domain"`
	Org    string `json:"organization"`
	By     string `json:"granted_by"`
	At     string `json:"granted_at"`
}

// grantOf is the organization that vouches for a domain, if there is one that still is.
func (c *Controller) grantOf(ctx context.Context, domain string) (*domainGrant, int64, error) {
	g, rev, err := record.Get[domainGrant](ctx, c.store, prefixDomain+domain)
	if err != nil || g == nil || !c.holds(g) {
		return nil, rev, err
	}
	return g, rev, nil
}

// holds reports whether the organization of a grant is there, and the same.
func (c *Controller) holds(g *domainGrant) bool {
	o := c.directory.Org(g.Org)
	return o != nil && o.Number == g.Number && !o.Deleting
}

// vouches reports whether an organization may make users of an address's name, and has a
// transaction depend on that.
func (c *Controller) vouches(ctx context.Context, t *txn, org, address string) (bool, error) {
	local, domain, _ := strings.Cut(address, "@")
	if local == "" || checkDomain(domain) != nil {
		return false, nil
	}
	g, rev, err := c.grantOf(ctx, domain)
	if err != nil || g == nil || g.Org != org {
		return false, err
	}
	t.when(prefixDomain+domain, rev)
	return true, nil
}

// mayName refuses names that whoever invites may not give: addresses of a domain that is
// not the organization's, what single sign-on names people by, another's id, by which users
// are found before their names, and what the audit log calls root.
func (c *Controller) mayName(ctx context.Context, t *txn, cl *record.Claim, name string) error {
	if strings.HasPrefix(name, "sso-") {
		return fault.New(fault.Invalid, "name %q begins with sso-, as names that single sign-on gives do; choose another", fault.Clip(name))
	}
	if _, err := key.ParseUserID(name); err == nil || name == "root" && !cl.Operator {
		return fault.New(fault.Invalid, "name %q would be taken for somebody else, in the audit log or by who looks for a user; choose another", name)
	}
	if !strings.Contains(name, "@") || cl.Operator {
		return nil
	}
	ok, err := c.vouches(ctx, t, cl.Org, name)
	if err != nil || ok {
		return err
	}
	return fault.New(fault.Denied, "name %q is an e-mail address, and organization %q does not vouch for its domain; choose a name without @, or ask an operator: bulkhead orgs domains grant DOMAIN %s",
		fault.Clip(name), cl.Org, cl.Org).WithStatus("domain_not_granted")
}

func checkDomain(d string) error {
	if strings.Contains(d, "@") {
		return fault.New(fault.Invalid, "domain %q is none", fault.Clip(d))
	}
	return sso.Policy{Domains: []string{d}, Role: string(record.Viewer)}.Check()
}

// roomForUser refuses one more user of an organization's making, by its provider or by an
// invitation, than the cluster takes, and one more when so many may come yet.
func (c *Controller) roomForUser(org string, open int) error {
	n := c.directory.CameBy(org)
	if most := c.cfg.Role.MaxSSOUsers(); n+open >= most {
		also := ""
		if open > 0 {
			also = fmt.Sprintf(" and has %d open invitations", open)
		}
		return fault.New(fault.TooMany, "organization %q has made %d users by its identity provider and by invitations%s, as many as it may (sso_users); take invitations back (bulkhead orgs uninvite), or have an operator remove users who are gone (bulkhead users remove NAME) or raise sso_users in bulkhead.toml", org, n, also).WithStatus("sso_users")
	}
	return nil
}

// listDomains lists the grants.
//
//	GET /v1/platform/domains
func (c *Controller) listDomains(r *call) (int, any, error) {
	out := struct {
		Domains []Domain `json:"domains"`
	}{Domains: []Domain{}}
	all, _, err := record.List[domainGrant](r.Context(), c.store, prefixDomain)
	if err != nil {
		return 0, nil, err
	}
	for _, g := range all {
		if c.holds(g) {
			out.Domains = append(out.Domains, Domain{g.Domain, g.Org, g.By, g.At})
		}
	}
	return http.StatusOK, out, nil
}

// grantDomain has an organization vouch for the addresses of a domain.
//
//	PUT /v1/platform/domains/{domain} {"organization": "acme"}
func (c *Controller) grantDomain(r *call) (int, any, error) {
	var in struct {
		Org string `json:"organization"`
	}
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	d := r.PathValue("domain")
	if err := checkDomain(d); err != nil {
		return 0, nil, fault.New(fault.Invalid, "%q is no e-mail domain; it is in lower case, such as example.com, and is for no subdomains", fault.Clip(d))
	}
	slug, err := key.ParseOrg(in.Org)
	if err != nil {
		return 0, nil, err
	}
	r.pending.change(func(rec *audit.Record) { rec.Detail = "organization=" + slug })
	var g domainGrant
	err = retry(r.Context(), func() error {
		o, orgRev, err := record.Get[record.Org](r.Context(), c.store, record.OrgKey(slug))
		if err != nil {
			return err
		}
		if o == nil || o.Deleting {
			return access.NoOrg(slug)
		}
		old, rev, err := c.grantOf(r.Context(), d)
		if err != nil {
			return err
		}
		if old != nil && old.Org != slug {
			return fault.New(fault.Conflict, "domain %s is organization %q's; withdraw it first: bulkhead orgs domains withdraw %s", d, old.Org, d)
		}
		g = domainGrant{Domain: d, Org: slug, Number: o.Number, By: r.who.Name, At: stamp(now())}
		var t txn
		t.when(record.OrgKey(slug), orgRev)
		t.when(prefixDomain+d, rev)
		t.do(record.Put(prefixDomain+d, g))
		return c.commit(r.Context(), &t)
	})
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, Domain{g.Domain, g.Org, g.By, g.At}, nil
}

// withdrawDomain ends a grant. Users who have got their names by it keep them.
//
//	DELETE /v1/platform/domains/{domain}
func (c *Controller) withdrawDomain(r *call) (int, any, error) {
	d := r.PathValue("domain")
	g, _, err := c.grantOf(r.Context(), d)
	if err != nil {
		return 0, nil, err
	}
	if g == nil {
		return 0, nil, fault.New(fault.NotFound, "domain %q is granted to nobody", fault.Clip(d))
	}
	if err := c.commit(r.Context(), &txn{ops: []store.Op{store.Delete(prefixDomain + d)}}); err != nil {
		return 0, nil, err
	}
	return ok()
}
