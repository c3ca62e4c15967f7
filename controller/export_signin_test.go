package controller

import (
	"context"
	"strings"
	"testing"
	"time"

	"bulkhead/controller/record"
	"bulkhead/key"
	"bulkhead/store"
)

// Values are the store's values below a prefix, as they lie there.
func (c *Controller) Values(t testing.TB, prefix string) string {
	t.Helper()
	kvs, _, err := c.store.List(t.Context(), prefix)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, kv := range kvs {
		b.Write(kv.Value)
	}
	return b.String()
}

// PublicEndpoints lists the patterns that answer without a token.
func (c *Controller) PublicEndpoints() []string {
	var out []string
	for _, e := range c.publicEndpoints() {
		out = append(out, e.pattern)
	}
	return out
}

// ForgetLimits begins all limits per address anew.
func (c *Controller) ForgetLimits() {
	c.rates.public.Forget()
	c.rates.codes.Forget()
}

// Members counts events of the cluster's membership by outcome.
func (c *Controller) Members(event string) map[string]int {
	out := map[string]int{}
	families, _ := c.metrics.registry.Gather()
	for _, f := range families {
		if f.GetName() != "bulkhead_membership_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == event {
				out[m.GetLabel()[1].GetValue()] = int(m.GetCounter().GetValue())
			}
		}
	}
	return out
}

// BindToken makes a login one for an organization, as those are that come by its single
// sign-on.
func (c *Controller) BindToken(ctx context.Context, id key.TokenID, org string) {
	rec := *c.directory.Token(id)
	rec.Org = org
	if err := c.commit(ctx, &txn{ops: []store.Op{record.Put(record.TokenKey(id), rec)}}); err != nil {
		panic(err)
	}
}

// AddSession makes a session of a user's, by an organization's single sign-on if one is
// named, and returns its id as the API says it.
func (c *Controller) AddSession(ctx context.Context, name, org string) string {
	s := record.Session{User: c.directory.UserNamed(name).ID, Kind: kindBrowser, Method: "test"}
	if conf := c.directory.SSOOf(org); conf != nil {
		s.Org, s.Config = org, conf.ID
	}
	var t txn
	_, made := c.newSession(&t, s)
	if err := c.commit(ctx, &t); err != nil {
		panic(err)
	}
	return made.ID[:16]
}

// OldDischarge is a discharge of a ticket that was given some time ago.
func (c *Controller) OldDischarge(t testing.TB, ticket []byte, secret string, ago time.Duration) string {
	t.Helper()
	tk, err := c.directory.RootKeys().OpenTicket(c.sessionLocation(), ticket)
	if err != nil {
		t.Fatal(err)
	}
	at := now().Add(-ago)
	d, err := tk.Discharge(sessionID(secret), at, at.Add(dischargeLife))
	if err != nil {
		t.Fatal(err)
	}
	return d
}
