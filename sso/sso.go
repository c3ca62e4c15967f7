// Package sso is the relying party of OpenID Connect: it sends a person's browser to
// an identity provider that an organization chose, and believes of what comes back
// only what it has checked.
//
// Nothing of a provider is trusted before it is checked, its address included: an
// organization's admin names the issuer, so that every connection is guarded
// (NewClient), and every answer bounded. What is believed in the end is an Identity:
// issuer and subject, signed by the issuer's keys, for this client, in this attempt,
// now. Whether such a person is let in, and as what, is the organization's Policy.
//
// The package holds no state: who calls it keeps an Attempt, bound to one browser, and
// gives it back once.
package sso

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"bulkhead/fault"
)

// Algorithms are the signatures that are accepted, whatever the provider announces:
// public-key ones. Not "none", and no HS*: a client secret is no signing key.
var Algorithms = []string{oidc.RS256, oidc.RS384, oidc.RS512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.EdDSA}

// Config is a provider as an organization configured it.
type Config struct {
	Issuer       string
	ClientID     string
	ClientSecret string   // "" for a public client: PKCE alone
	Scopes       []string // besides openid, email and profile
	GroupsClaim  string   // "groups" if empty
	// Allow are private addresses that the operator lets providers have.
	Allow []netip.Prefix
}

// Provider is an identity provider whose metadata was fetched and checked.
type Provider struct {
	cfg      Config
	hc       *http.Client
	oidc     *oidc.Provider
	verifier *oidc.IDTokenVerifier
	oauth    oauth2.Config
	sendsIss bool // RFC 9207
	userinfo string
}

// Discover fetches a provider's metadata with hc, a client of NewClient. The Provider
// is good for as long as the configuration is; keys are fetched anew when they change.
func Discover(ctx context.Context, hc *http.Client, cfg Config) (*Provider, error) {
	u, err := url.Parse(cfg.Issuer)
	if err != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, Refuse(BadAddress, err, "issuer %q is not an address without query and fragment", fault.Clip(cfg.Issuer))
	}
	if err := checkURL(u, cfg.Allow); err != nil {
		return nil, Refuse(BadAddress, err, "issuer %q cannot be used: it must be an HTTPS address, without a user and a password in it", fault.Clip(u.Redacted()))
	}
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	op, err := oidc.NewProvider(oidc.ClientContext(ctx, hc), cfg.Issuer)
	if err != nil {
		var mismatch *oidc.IssuerMismatchError
		if errors.As(err, &mismatch) {
			return nil, Refuse(BadIssuer, err, "the identity provider at %s says that its issuer is %q; write that into the organization's settings if it is right", fault.Clip(cfg.Issuer), fault.Clip(mismatch.Discovered))
		}
		return nil, fetchFailure(ctx, err, "the metadata", cfg.Issuer)
	}
	var meta struct {
		Iss      bool     `json:"authorization_response_iss_parameter_supported"`
		JWKS     string   `json:"jwks_uri"`
		UserInfo string   `json:"userinfo_endpoint"`
		Auth     []string `json:"token_endpoint_auth_methods_supported"`
		PKCE     []string `json:"code_challenge_methods_supported"`
	}
	if err := op.Claims(&meta); err != nil {
		return nil, fetchFailure(ctx, err, "the metadata", cfg.Issuer)
	}
	if len(meta.PKCE) > 0 && !slices.Contains(meta.PKCE, "S256") {
		return nil, Refuse(BadResponse, nil, "the identity provider at %s does not offer PKCE with S256", fault.Clip(cfg.Issuer))
	}
	for what, where := range map[string]string{"the authorization endpoint": op.Endpoint().AuthURL, "the token endpoint": op.Endpoint().TokenURL, "the key set": meta.JWKS, "the userinfo endpoint": meta.UserInfo} {
		if where == "" && what == "the userinfo endpoint" {
			continue
		}
		u, err := url.Parse(where)
		if err == nil {
			err = checkURL(u, cfg.Allow)
		}
		if err != nil {
			return nil, Refuse(BadAddress, err, "%s of the identity provider, %q, is not an HTTPS address", what, fault.Clip(where))
		}
	}
	return newProvider(cfg, hc, op, meta.JWKS, meta.UserInfo, meta.Auth, meta.Iss), nil
}

func newProvider(cfg Config, hc *http.Client, op *oidc.Provider, jwks, userinfo string, auth []string, iss bool) *Provider {
	endpoint := op.Endpoint()
	endpoint.AuthStyle = oauth2.AuthStyleInHeader // the default of the specification
	if len(auth) > 0 && !slices.Contains(auth, "client_secret_basic") || cfg.ClientSecret == "" {
		endpoint.AuthStyle = oauth2.AuthStyleInParams
	}
	if cfg.GroupsClaim == "" {
		cfg.GroupsClaim = "groups"
	}
	// The key set outlives the request: its fetches are bounded by the client.
	keys := oidc.NewRemoteKeySet(oidc.ClientContext(context.Background(), hc), jwks)
	return &Provider{
		cfg: cfg, hc: hc, oidc: op, sendsIss: iss, userinfo: userinfo,
		// Issuer, audience and time are checked by check, so that each refusal has its reason.
		verifier: oidc.NewVerifier(cfg.Issuer, keys, &oidc.Config{SupportedSigningAlgs: Algorithms, SkipClientIDCheck: true, SkipIssuerCheck: true, SkipExpiryCheck: true}),
		oauth: oauth2.Config{
			ClientID: cfg.ClientID, ClientSecret: cfg.ClientSecret, Endpoint: endpoint,
			Scopes: append([]string{oidc.ScopeOpenID, "email", "profile"}, cfg.Scopes...),
		},
	}
}

// Attempt is one sign-in on its way. All three are secrets of the relying party; State
// and Nonce become known to the browser and the provider.
type Attempt struct {
	State    string
	Nonce    string
	Verifier string // of PKCE
}

// NewAttempt returns an attempt of fresh random values, 256 bits each.
func NewAttempt() Attempt {
	return Attempt{State: random(), Nonce: random(), Verifier: oauth2.GenerateVerifier()}
}

func random() string {
	var b [32]byte
	rand.Read(b[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// AuthURL is where the browser is sent; it comes back to redirect.
func (p *Provider) AuthURL(redirect string, a Attempt) string {
	c := p.oauth
	c.RedirectURL = redirect
	return c.AuthCodeURL(a.State, oidc.Nonce(a.Nonce), oauth2.S256ChallengeOption(a.Verifier))
}

// Redeem checks what the browser brought back to redirect and returns who it is. The
// attempt must be the one whose state q names, and must not be used again, whatever
// the outcome. Errors are refusals with a Reason.
func (p *Provider) Redeem(ctx context.Context, redirect string, a Attempt, q url.Values) (*Identity, error) {
	if a.State == "" || q.Get("state") != a.State {
		return nil, Refuse(BadState, nil, "this answer belongs to no sign-in of this browser; begin again")
	}
	if iss := q.Get("iss"); iss != p.cfg.Issuer && (iss != "" || p.sendsIss) {
		return nil, Refuse(MixedUp, nil, "the answer comes from %q, and the sign-in was begun with %q", fault.Clip(iss), p.cfg.Issuer)
	}
	if e := q.Get("error"); e != "" {
		return nil, Refuse(RefusedByIDP, nil, "the identity provider refused the sign-in: %s %s", fault.Clip(e), fault.Clip(q.Get("error_description")))
	}
	code := q.Get("code")
	if code == "" || len(code) > 4096 {
		return nil, Refuse(BadResponse, nil, "the identity provider's answer holds no code")
	}
	ctx, cancel := context.WithTimeout(oidc.ClientContext(ctx, p.hc), 2*answerLimit)
	defer cancel()
	c := p.oauth
	c.RedirectURL = redirect
	tok, err := c.Exchange(ctx, code, oauth2.VerifierOption(a.Verifier))
	if err != nil {
		var re *oauth2.RetrieveError
		if errors.As(err, &re) && re.Response != nil && re.Response.StatusCode < 500 {
			return nil, Refuse(RefusedByIDP, err, "the identity provider does not accept the code: %s", fault.Clip(re.ErrorCode))
		}
		return nil, fetchFailure(ctx, err, "the token endpoint", c.Endpoint.TokenURL)
	}
	raw, _ := tok.Extra("id_token").(string)
	if raw == "" {
		return nil, Refuse(BadResponse, nil, "the identity provider's answer holds no ID token")
	}
	id, claims, err := p.check(ctx, raw, a.Nonce)
	if err != nil {
		return nil, err
	}
	if p.userinfo != "" {
		if err := p.addUserinfo(ctx, id, claims, tok); err != nil {
			return nil, err
		}
	}
	return p.identity(id, claims)
}

// addUserinfo completes the token's claims by those that the provider tells on request.
// The token's own, which are signed, win.
func (p *Provider) addUserinfo(ctx context.Context, id *oidc.IDToken, claims map[string]json.RawMessage, tok *oauth2.Token) error {
	info, err := p.oidc.UserInfo(ctx, oauth2.StaticTokenSource(tok))
	if err != nil {
		return fetchFailure(ctx, err, "the userinfo endpoint", p.userinfo)
	}
	if info.Subject != id.Subject {
		return Refuse(BadSubject, nil, "the identity provider tells about somebody else than it signed for")
	}
	more := map[string]json.RawMessage{}
	if err := info.Claims(&more); err != nil {
		return Refuse(BadResponse, err, "the identity provider's userinfo is not an object")
	}
	_, hasEmail := claims["email"]
	for k, v := range more {
		if _, ok := claims[k]; ok || k == "email_verified" && hasEmail {
			continue // what is said of one address is not said of another
		}
		claims[k] = v
	}
	return nil
}

// SameIssuer reports whether the provider is still the one that cfg names.
func (p *Provider) SameIssuer(cfg Config) bool {
	return p.cfg.Issuer == cfg.Issuer && p.cfg.ClientID == cfg.ClientID && p.cfg.ClientSecret == cfg.ClientSecret &&
		strings.Join(p.cfg.Scopes, " ") == strings.Join(cfg.Scopes, " ")
}
