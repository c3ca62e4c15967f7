package controller

import (
	"context"
	"net/http"
	"strings"

	"bulkhead/controller/record"
	"bulkhead/doctor/posture"
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
	one, _, err := record.Get[record.Claim](ctx, c.store, record.ClaimKey(installationClaim))
	if err != nil {
		return p, err
	}
	if one != nil && !one.Expired(now()) {
		p.Unclaimed = one.CreatedAt
	}
	p.Audit = &posture.Audit{Required: c.cfg.Role.AuditWitnessRequired}
	for line := range strings.Lines(c.cfg.Role.AuditWitnesses) {
		if f := strings.Fields(line); len(f) > 0 && f[0] == "witness" {
			p.Audit.Witnesses++
		}
	}
	p.Orgs, p.Tokens = c.directory.Posture()
	return p, nil
}

func (c *Controller) showPosture(w http.ResponseWriter, r *http.Request) {
	p, err := c.posture(r.Context())
	if err != nil {
		writeError(w, c.log, err)
		return
	}
	writeJSON(w, http.StatusOK, p)
}
