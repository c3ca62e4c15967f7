package sso

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"bulkhead/fault"
)

// Bounds of what a provider says about a person.
const (
	maxSubject = 255 // of the specification
	maxEmail   = 254
	maxGroups  = 1000
	skew       = time.Minute // that clocks may differ
)

// Identity is a person as a provider vouches for them. Issuer and Subject are who it
// is; everything else may change, and identifies nobody.
type Identity struct {
	Issuer        string
	Subject       string
	Email         string // lower case; "" if there is none
	EmailVerified bool
	Name          string
	Groups        []string
}

// check verifies an ID token of one attempt: algorithm, signature, issuer, audience,
// time, nonce, in this order. It returns the token and its claims.
func (p *Provider) check(ctx context.Context, raw, nonce string) (*oidc.IDToken, map[string]json.RawMessage, error) {
	algs := make([]jose.SignatureAlgorithm, len(Algorithms))
	for i, a := range Algorithms {
		algs[i] = jose.SignatureAlgorithm(a)
	}
	if _, err := jose.ParseSignedCompact(raw, algs); err != nil {
		var alg *jose.ErrUnexpectedSignatureAlgorithm
		if errors.As(err, &alg) {
			return nil, nil, Refuse(BadAlgorithm, err, "the ID token is signed with %q; accepted are %s", fault.Clip(string(alg.Got)), strings.Join(Algorithms, ", "))
		}
		return nil, nil, Refuse(BadResponse, err, "the ID token is malformed")
	}
	id, err := p.verifier.Verify(ctx, raw)
	if err != nil && strings.Contains(err.Error(), "fetching keys") { // go-oidc wraps it by its text alone
		return nil, nil, fetchFailure(ctx, err, "the key set", p.cfg.Issuer)
	}
	if err != nil {
		return nil, nil, Refuse(BadSignature, err, "the ID token is not signed by a key of %s", p.cfg.Issuer)
	}
	claims := map[string]json.RawMessage{}
	if err := id.Claims(&claims); err != nil {
		return nil, nil, Refuse(BadResponse, err, "the ID token's claims are not an object")
	}
	if id.Issuer != p.cfg.Issuer {
		return nil, nil, Refuse(BadIssuer, nil, "the ID token is issued by %q, not by %q", fault.Clip(id.Issuer), p.cfg.Issuer)
	}
	var azp string
	json.Unmarshal(claims["azp"], &azp)
	if !slices.Contains(id.Audience, p.cfg.ClientID) || azp != "" && azp != p.cfg.ClientID || len(id.Audience) > 1 && azp == "" {
		return nil, nil, Refuse(BadAudience, nil, "the ID token is for %q, not for client %q", fault.Clip(strings.Join(id.Audience, " ")), p.cfg.ClientID)
	}
	now := time.Now()
	if id.Expiry.Before(now.Add(-skew)) {
		return nil, nil, Refuse(Expired, nil, "the ID token expired at %s; if that has not been yet, a clock is wrong", id.Expiry.UTC().Format(time.RFC3339))
	}
	var nbf float64
	json.Unmarshal(claims["nbf"], &nbf)
	if id.IssuedAt.After(now.Add(skew)) || time.Unix(int64(nbf), 0).After(now.Add(skew)) {
		return nil, nil, Refuse(Expired, nil, "the ID token is from the future: a clock is wrong, here or there")
	}
	if nonce == "" || subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(nonce)) != 1 {
		return nil, nil, Refuse(BadNonce, nil, "the ID token belongs to another sign-in")
	}
	if id.Subject == "" || len(id.Subject) > maxSubject {
		return nil, nil, Refuse(BadSubject, nil, "the ID token names nobody")
	}
	return id, claims, nil
}

// identity reads who it is from checked claims.
func (p *Provider) identity(id *oidc.IDToken, claims map[string]json.RawMessage) (*Identity, error) {
	who := &Identity{Issuer: p.cfg.Issuer, Subject: id.Subject}
	json.Unmarshal(claims["email"], &who.Email)
	json.Unmarshal(claims["name"], &who.Name)
	who.Email = strings.ToLower(who.Email)
	if local, domain, ok := strings.Cut(who.Email, "@"); !ok || local == "" || domain == "" || strings.ContainsAny(domain, "@ ") || len(who.Email) > maxEmail || strings.ContainsFunc(who.Email, func(r rune) bool { return r <= ' ' || r > '~' }) {
		who.Email = ""
	}
	if r := []rune(who.Name); len(r) > 100 {
		who.Name = string(r[:100])
	}
	// Some send the word instead of the boolean.
	switch strings.Trim(string(claims["email_verified"]), `"`) {
	case "true":
		who.EmailVerified = who.Email != ""
	}
	if raw, ok := claims[p.cfg.GroupsClaim]; ok {
		var one string
		if err := json.Unmarshal(raw, &who.Groups); err != nil {
			if err := json.Unmarshal(raw, &one); err != nil {
				return nil, Refuse(BadResponse, err, "the claim %q is not a list of groups", p.cfg.GroupsClaim)
			}
			who.Groups = []string{one}
		}
		if len(who.Groups) > maxGroups {
			return nil, Refuse(BadResponse, nil, "the claim %q has %d groups; at most %d can be used: let the provider send those that matter", p.cfg.GroupsClaim, len(who.Groups), maxGroups)
		}
	}
	return who, nil
}
