package doctor

import (
	"context"
	"errors"
	"testing"
	"time"

	"bulkhead/doctor/posture"
)

// TestSeededPosture seeds one careless choice after the other into an installation
// without any.
func TestSeededPosture(t *testing.T) {
	const day = 24 * time.Hour
	now := time.Now()
	careful := func() posture.Posture {
		return posture.Posture{
			RootKey: "sealed", RootEnds: now.Add(3000 * day),
			Orgs:   []posture.Org{{Slug: "acme", TokenMax: 30 * day, SSO: "required", Owners: 2}},
			Tokens: []posture.Token{{ID: "t1", User: "alice", CreatedAt: now.Add(-day), ExpiresAt: now.Add(20 * day)}},
			Audit:  &posture.Audit{Witnesses: 2, Required: true},
		}
	}
	ask := func(p posture.Posture, err error) []Finding {
		return Platform{Posture: func(context.Context) (posture.Posture, error) { return p, err }}.posture(t.Context())
	}
	if found := ask(careful(), nil); len(found) != 5 || is(found, Warn, "") || is(found, Fail, "") || is(found, Note, "") {
		t.Fatalf("an installation without fault: %+v", found)
	}
	for _, c := range []struct {
		name  string
		seed  func(p *posture.Posture)
		level Level
		part  string
	}{
		{"an unused one-time token", func(p *posture.Posture) { p.Unclaimed = now.Add(-3 * time.Hour) }, Warn, "made 3 hours ago, has not been used"},
		{"a root key on disk", func(p *posture.Posture) { p.RootKey = "clear" }, Warn, "lies on the controller's disk"},
		{"a lost root key", func(p *posture.Posture) { p.RootKey = "missing" }, Warn, "is gone"},
		{"a root that ends", func(p *posture.Posture) { p.RootEnds = now.Add(20*day + time.Hour) }, Warn, "ends in 20 days"},
		{"a token without end", func(p *posture.Posture) { p.Tokens[0].ExpiresAt = time.Time{} }, Warn, "token t1 of alice never ends"},
		{"a token for a year", func(p *posture.Posture) {
			p.Tokens[0].ExpiresAt = now.Add(300*day + time.Hour)
			p.Tokens[0].Name = "ci"
		}, Warn, "token t1 (ci) of alice is good for another 300 days"},
		{"an old token", func(p *posture.Posture) { p.Tokens[0].CreatedAt = now.Add(-200 * day) }, Warn, "made 200 days ago"},
		{"an organization without a limit", func(p *posture.Posture) { p.Orgs[0].TokenMax = 0 }, Warn, "acme sets no limit"},
		{"no single sign-on", func(p *posture.Posture) { p.Orgs[0].SSO, p.Orgs[0].Members = "", 2 }, Warn, "acme has no single sign-on"},
		{"no single sign-on, by an older controller", func(p *posture.Posture) { p.Orgs[0].SSO = "" }, Warn, "acme has no single sign-on"},
		{"a sole user", func(p *posture.Posture) { p.Orgs[0].SSO, p.Orgs[0].Members = "", 1 }, OK, "1 of 1 organizations have one member"},
		{"optional single sign-on", func(p *posture.Posture) { p.Orgs[0].SSO = "optional" }, Warn, "single sign-on is optional in organization acme"},
		{"no owner", func(p *posture.Posture) { p.Orgs[0].Owners = 0 }, Warn, "acme has no owner"},
		{"no witness", func(p *posture.Posture) { p.Audit.Witnesses = 0 }, Warn, "no witness"},
		{"witnesses that are optional", func(p *posture.Posture) { p.Audit.Required = false }, OK, "go on when they are away"},
		{"no audit log", func(p *posture.Posture) { p.Audit = nil }, Note, "no audit log"},
		{"a token that ended", func(p *posture.Posture) {
			p.Tokens[0].CreatedAt, p.Tokens[0].ExpiresAt = now.Add(-300*day), now.Add(-day)
		}, OK, "none of them old"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := careful()
			c.seed(&p)
			if found := ask(p, nil); !is(found, c.level, c.part) {
				t.Errorf("%+v", found)
			}
		})
	}
	if found := ask(posture.Posture{}, errors.New("no answer")); !is(found, Fail, "no answer") {
		t.Errorf("%+v", found)
	}
}
