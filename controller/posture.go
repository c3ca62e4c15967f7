package controller

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"bulkhead/doctor/posture"
	"bulkhead/key"
)

// posture tells root, over the admin socket, what the operator's choices come to.
func (c *Controller) posture(ctx context.Context) (posture.Posture, error) {
	ca := c.ca.Status()
	p := posture.Posture{RootKey: ca.RootKey.State, Orgs: []posture.Org{}, Tokens: []posture.Token{}}
	for _, r := range ca.Roots {
		if p.RootEnds.IsZero() || r.NotAfter.Before(p.RootEnds) {
			p.RootEnds = r.NotAfter
		}
	}
	one, _, err := get[claim](ctx, c.store, claimKey(installationClaim))
	if err != nil {
		return p, err
	}
	if one != nil && !one.expired(now()) {
		p.Unclaimed = one.CreatedAt
	}
	p.Audit = &posture.Audit{Required: c.cfg.Role.AuditWitnessRequired}
	for line := range strings.Lines(c.cfg.Role.AuditWitnesses) {
		if f := strings.Fields(line); len(f) > 0 && f[0] == "witness" {
			p.Audit.Witnesses++
		}
	}
	p.Orgs, p.Tokens = c.directory.posture()
	return p, nil
}

// posture lists organizations and tokens for the doctor.
func (d *directory) posture() (orgs []posture.Org, tokens []posture.Token) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for slug, rec := range d.orgs {
		o := posture.Org{Slug: slug, TokenMax: rec.TokenMax}
		if conf := d.sso[slug]; conf != nil {
			o.SSO = conf.Mode
		}
		for _, m := range d.members[slug] {
			if m.Role == roleOwner {
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
func (d *directory) nameOf(id key.UserID) string {
	if u := d.users[id]; u != nil {
		return u.Name
	}
	return string(id)
}

func (c *Controller) showPosture(w http.ResponseWriter, r *http.Request) {
	p, err := c.posture(r.Context())
	if err != nil {
		writeError(w, c.log, err)
		return
	}
	writeJSON(w, http.StatusOK, p)
}
