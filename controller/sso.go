package controller

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"bulkhead/audit"
	"bulkhead/controller/access"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/sso"
	"bulkhead/store"
)

// purposeSSO is what client secrets are wrapped for.
const purposeSSO = "sso client secret"

// SSO is an organization's single sign-on as the API takes and answers it. The client's
// secret is taken and never answered.
type SSO struct {
	Issuer       string            `json:"issuer"`
	ClientID     string            `json:"client_id"`
	ClientSecret string            `json:"client_secret,omitempty"`
	HasSecret    bool              `json:"has_client_secret,omitempty"`
	Scopes       []string          `json:"scopes,omitempty"`
	GroupsClaim  string            `json:"groups_claim,omitempty"`
	Domains      []string          `json:"domains,omitempty"`
	Groups       map[string]string `json:"groups,omitempty"`
	Role         string            `json:"role,omitempty"`
	Mode         string            `json:"mode"`
	SessionHours int               `json:"session_hours"`
	// ServiceTokens says whether deploy, machine-exec and readonly tokens of one app are good
	// without a session: "refused", or "allowed", which only an owner may say.
	ServiceTokens string `json:"service_tokens,omitempty"`
	RedirectURL   string `json:"redirect_url,omitempty"` // what the provider must let the browser come back to
	ChangedAt     string `json:"changed_at,omitempty"`
	ChangedBy     string `json:"changed_by,omitempty"`
}

func (c *Controller) ssoBody(s *record.SSO) SSO {
	return SSO{
		Issuer: s.Issuer, ClientID: s.ClientID, HasSecret: len(s.ClientSecret) > 0, Scopes: s.Scopes, GroupsClaim: s.GroupsClaim,
		Domains: s.Policy.Domains, Groups: s.Policy.Groups, Role: s.Policy.Role, Mode: s.Mode, SessionHours: int(s.Life() / time.Hour),
		ServiceTokens: cmp.Or(s.ServiceTokens, record.ServicesRefused), RedirectURL: c.publicURL("/sso/callback"), ChangedAt: stamp(s.ChangedAt), ChangedBy: s.ChangedBy,
	}
}

// showSSO answers an organization's single sign-on.
//
//	GET /v1/orgs/{org}/sso
func (c *Controller) showSSO(r *call) (int, any, error) {
	s := c.directory.SSOOf(r.PathValue("org"))
	if s == nil {
		return 0, nil, noSSO(r.PathValue("org"))
	}
	return http.StatusOK, c.ssoBody(s), nil
}

func noSSO(slug string) error {
	return fault.New(fault.NotFound, "organization %q has no single sign-on, or there is no such organization", fault.Clip(slug)).WithStatus("sso_none")
}

// Bounds of a configuration.
const (
	maxScopes       = 20
	maxSessionHours = 30 * 24
)

// check says what of the input cannot be, and fills in what is not said.
func (in *SSO) check() error {
	if in.Mode == "" {
		in.Mode = record.SSOOptional
	}
	switch {
	case in.Mode != record.SSOOptional && in.Mode != record.SSORequired:
		return fault.New(fault.Invalid, "mode is %q; it is optional or required", fault.Clip(in.Mode))
	case in.ServiceTokens != "" && in.ServiceTokens != record.ServicesRefused && in.ServiceTokens != record.ServicesAllowed:
		return fault.New(fault.Invalid, "service_tokens is %q; it is refused or allowed", fault.Clip(in.ServiceTokens))
	case in.Issuer == "" || len(in.Issuer) > 500:
		return fault.New(fault.Invalid, "issuer is missing or longer than 500 bytes; it is the provider's address, such as https://accounts.example.com")
	case in.ClientID == "" || len(in.ClientID) > 500 || len(in.ClientSecret) > 2000:
		return fault.New(fault.Invalid, "client_id is missing, or it or client_secret is too long")
	case in.SessionHours < 0 || in.SessionHours > maxSessionHours:
		return fault.New(fault.Invalid, "session_hours is %d; it is 1 to %d", in.SessionHours, maxSessionHours)
	case len(in.Scopes) > maxScopes:
		return fault.New(fault.Invalid, "scopes has %d entries; at most %d", len(in.Scopes), maxScopes)
	case len(in.GroupsClaim) > 100:
		return fault.New(fault.Invalid, "groups_claim is longer than 100 bytes")
	}
	for i, s := range in.Scopes {
		if s == "" || len(s) > 100 || slices.ContainsFunc([]byte(s), func(b byte) bool { return b <= ' ' || b > '~' || b == '"' || b == '\\' }) {
			return fault.New(fault.Invalid, "scopes[%d] is %q; it is a word of at most 100 bytes", i, fault.Clip(s))
		}
	}
	return sso.Policy{Domains: in.Domains, Groups: in.Groups, Role: in.Role}.Check()
}

// setSSO configures single sign-on. The provider is asked for its metadata, so that what
// cannot work is refused here. A client_secret that is left out stays as it is.
//
//	PUT /v1/orgs/{org}/sso
func (c *Controller) setSSO(r *call) (int, any, error) {
	var in SSO
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	if err := in.check(); err != nil {
		return 0, nil, err
	}
	slug := r.PathValue("org")
	mayOwn := c.authorize(r.who, access.Request{Act: access.Write, What: access.Owner, Org: slug})
	var out *record.SSO
	err := retry(r.Context(), func() error {
		old, rev, err := record.Get[record.SSO](r.Context(), c.store, record.SSOKey(slug))
		if err != nil {
			return err
		}
		// Who may not make or unmake owners may not have a provider do it.
		if mayOwn != nil && (in.makesOwners() || old != nil && c.ssoBody(old).makesOwners()) {
			return mayOwn
		}
		o, orgRev, err := record.Get[record.Org](r.Context(), c.store, record.OrgKey(slug))
		if err != nil {
			return err
		}
		if o == nil || o.Deleting {
			return access.NoOrg(slug)
		}
		if out, err = c.newSSO(r, old, in); err != nil {
			return err
		}
		var t txn
		t.when(record.OrgKey(slug), orgRev)
		t.when(record.SSOKey(slug), rev)
		t.do(record.Put(record.SSOKey(slug), out))
		return c.commit(r.Context(), &t)
	})
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, c.ssoBody(out), nil
}

// newSSO makes the record of a configuration that is checked, against the provider too.
func (c *Controller) newSSO(r *call, old *record.SSO, in SSO) (*record.SSO, error) {
	s := &record.SSO{
		ID: newSecret()[:16], Org: r.PathValue("org"), Issuer: in.Issuer, ClientID: in.ClientID, Scopes: in.Scopes, GroupsClaim: in.GroupsClaim,
		Policy: sso.Policy{Domains: in.Domains, Groups: in.Groups, Role: in.Role}, Mode: in.Mode, SessionHours: in.SessionHours, ServiceTokens: in.ServiceTokens,
		ChangedAt: now(), ChangedBy: r.who.Name,
	}
	same := old != nil && old.Issuer == s.Issuer && old.ClientID == s.ClientID
	if same {
		s.ID, s.ClientSecret = old.ID, old.ClientSecret
	}
	if in.ClientSecret != "" {
		w, err := c.ring.Wrap(purposeSSO+" "+s.Org, []byte(in.ClientSecret))
		if err != nil {
			return nil, err
		}
		s.ClientSecret = w
	}
	// Who may not make owners may not let tokens be where nobody is, and nobody does it unseen.
	if s.ServiceTokens == record.ServicesAllowed && (old == nil || old.ServiceTokens != record.ServicesAllowed) {
		if err := c.authorize(r.who, access.Request{Act: access.Write, What: access.Owner, Org: s.Org}); err != nil {
			return nil, err
		}
	}
	if p := recordIn(r.Context()); p != nil {
		p.change(func(rec *audit.Record) {
			rec.Detail = "mode: " + s.Mode + ", service_tokens: " + cmp.Or(s.ServiceTokens, record.ServicesRefused)
		})
	}
	// Whoever shuts the other ways must have come in by this one: otherwise one wrong word
	// shuts everybody out.
	if s.Mode == record.SSORequired && (old == nil || old.Mode != record.SSORequired) {
		if from := c.ssoSessionOf(r.who, s.Org); !same || from == nil {
			return nil, fault.New(fault.Conflict, "set mode to optional first, sign in by it once (bulkhead auth login --org %s), and then require it: otherwise a mistake would shut everybody out", s.Org).WithStatus("sso_untried")
		}
	}
	if _, err := c.discover(r.Context(), s); err != nil {
		return nil, err
	}
	return s, nil
}

// ssoSessionOf is the session by the organization's single sign-on that the caller's
// token came with, or nil.
func (c *Controller) ssoSessionOf(who access.Caller, slug string) *record.Session {
	if who.Token == nil {
		return nil
	}
	if s := c.directory.SessionWith(who.Token.ID); s != nil && s.Org == slug {
		return c.directory.Lives(s.ID, now())
	}
	return nil
}

// deleteSSO ends single sign-on: sessions that came by it live no more. Members stay
// members, and sign in by passkeys if they have any. Operators may do it for any
// organization: it is the way back when the provider is gone.
//
//	DELETE /v1/orgs/{org}/sso
func (c *Controller) deleteSSO(r *call) (int, any, error) {
	slug := r.PathValue("org")
	old := c.directory.SSOOf(slug)
	if old == nil {
		return 0, nil, noSSO(slug)
	}
	if c.ssoBody(old).makesOwners() && !c.operator(r.who) { // see setSSO: this and a new one would do the same
		if err := c.authorize(r.who, access.Request{Act: access.Write, What: access.Owner, Org: slug}); err != nil {
			return 0, nil, err
		}
	}
	t := txn{ops: []store.Op{store.Delete(record.SSOKey(slug))}}
	if err := c.commit(r.Context(), &t); err != nil {
		return 0, nil, err
	}
	c.log.Info("single sign-on removed", "org", slug, "by", r.who.Name)
	for _, s := range c.directory.AllSessions() { // they live no more; their tokens end here
		if s.Org == slug {
			if err := c.endSession(r.Context(), s); err != nil {
				return 0, nil, err
			}
		}
	}
	return ok()
}

// providers keeps what was discovered about the providers in use.
type providers struct {
	mu  sync.Mutex
	all map[string]*discovered // by configuration
}

type discovered struct {
	p  *sso.Provider
	at time.Time
}

// metadataLife is how long a provider's metadata is used.
const metadataLife = 15 * time.Minute

// discover returns the provider of a configuration.
func (c *Controller) discover(ctx context.Context, s *record.SSO) (*sso.Provider, error) {
	cfg := sso.Config{Issuer: s.Issuer, ClientID: s.ClientID, Scopes: s.Scopes, GroupsClaim: s.GroupsClaim, Allow: c.cfg.Role.PrivateIssuers}
	if len(s.ClientSecret) > 0 {
		b, err := c.ring.Unwrap(purposeSSO+" "+s.Org, s.ClientSecret)
		if err != nil {
			return nil, err
		}
		cfg.ClientSecret = string(b)
	}
	c.providers.mu.Lock()
	had := c.providers.all[s.ID]
	c.providers.mu.Unlock()
	if had != nil && now().Sub(had.at) < metadataLife && had.p.SameIssuer(cfg) {
		return had.p, nil
	}
	p, err := sso.Discover(ctx, c.ssoClient, cfg)
	if err != nil {
		return nil, err
	}
	c.providers.mu.Lock()
	defer c.providers.mu.Unlock()
	for id, d := range c.providers.all {
		if now().Sub(d.at) >= metadataLife {
			delete(c.providers.all, id)
		}
	}
	c.providers.all[s.ID] = &discovered{p, now()}
	return p, nil
}

// makesOwners reports whether anybody comes in as an owner.
func (in SSO) makesOwners() bool {
	return in.Role == string(record.Owner) || slices.Contains(slices.Collect(maps.Values(in.Groups)), string(record.Owner))
}
