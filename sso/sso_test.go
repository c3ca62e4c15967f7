package sso_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/fault"
	"bulkhead/sso"
	"bulkhead/sso/ssotest"
)

const redirect = "https://api.test.localhost/sso/callback"

func reason(err error) sso.Reason {
	var f *fault.Error
	if errors.As(err, &f) {
		return sso.Reason(f.Status)
	}
	return ""
}

// TestRealProvider signs in at npm's oidc-provider: discovery, PKCE, the code, the
// token, and the claims that it tells in userinfo alone.
func TestRealProvider(t *testing.T) {
	idp := ssotest.Start(t, redirect)
	idp.SetAccounts(map[string]ssotest.Account{"u1": {Email: "Ann@Example.com", Verified: true, Name: "Ann", Groups: []string{"staff", "ops"}}})
	hc := sso.NewClient(ssotest.Loopback, nil)
	cfg := sso.Config{Issuer: idp.Issuer, ClientID: idp.ClientID, ClientSecret: idp.Secret, Scopes: []string{"groups"}, Allow: ssotest.Loopback}
	ctx := context.Background()
	p, err := sso.Discover(ctx, hc, cfg)
	if err != nil {
		t.Fatal(err)
	}
	back := func(a sso.Attempt) url.Values {
		u, err := url.Parse(idp.SignIn(ssotest.Browser(t, nil), p.AuthURL(redirect, a), "u1", redirect))
		if err != nil {
			t.Fatal(err)
		}
		return u.Query()
	}
	a := sso.NewAttempt()
	q := back(a)
	if q.Get("iss") != idp.Issuer {
		t.Errorf("the real provider sends no iss (RFC 9207), so the mix-up check was not seen to pass: %v", q)
	}
	id, err := p.Redeem(ctx, redirect, a, q)
	if err != nil {
		t.Fatal(err)
	}
	if id.Issuer != idp.Issuer || id.Subject != "u1" || id.Email != "ann@example.com" || !id.EmailVerified || id.Name != "Ann" || !slices.Equal(id.Groups, []string{"staff", "ops"}) {
		t.Errorf("identity %+v", id)
	}
	if _, err := p.Redeem(ctx, redirect, a, q); reason(err) != sso.RefusedByIDP {
		t.Errorf("a code used twice: %v", err)
	}
	// The provider holds the verifier against the challenge: a stolen code is worth nothing.
	b := sso.NewAttempt()
	q = back(b)
	b.Verifier = sso.NewAttempt().Verifier
	if _, err := p.Redeem(ctx, redirect, b, q); reason(err) != sso.RefusedByIDP {
		t.Errorf("a code redeemed with another verifier: %v", err)
	}
	cfg.ClientSecret = "another secret"
	if p, err = sso.Discover(ctx, hc, cfg); err != nil {
		t.Fatal(err)
	}
	c := sso.NewAttempt()
	if _, err := p.Redeem(ctx, redirect, c, back(c)); reason(err) != sso.RefusedByIDP {
		t.Errorf("a wrong client secret: %v", err)
	}
}

// TestLiesAreRefused: each lie of a provider, and each answer that belongs elsewhere,
// has its own refusal; the truth in between is believed, so that it is the lie that is refused.
func TestLiesAreRefused(t *testing.T) {
	l := ssotest.StartLiar(t)
	cfg := sso.Config{Issuer: l.URL, ClientID: l.ClientID, ClientSecret: l.Secret, Allow: ssotest.Loopback}
	try := func(change func(*sso.Attempt, url.Values)) (*sso.Identity, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		defer cancel()
		p, err := sso.Discover(ctx, sso.NewClient(ssotest.Loopback, nil), cfg)
		if err != nil {
			return nil, err
		}
		a := sso.NewAttempt()
		resp, err := ssotest.Browser(t, nil).Get(p.AuthURL(redirect, a))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		loc, err := resp.Location()
		if err != nil {
			t.Fatal(err)
		}
		q := loc.Query()
		if change != nil {
			change(&a, q)
		}
		return p.Redeem(ctx, redirect, a, q)
	}
	claims := func(kv ...any) ssotest.Lie {
		m := map[string]any{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i].(string)] = kv[i+1]
		}
		return ssotest.Lie{Claims: m}
	}
	now := time.Now()
	tests := map[string]struct {
		lie    ssotest.Lie
		change func(*sso.Attempt, url.Values)
		want   sso.Reason
	}{
		"issuer of the token":        {lie: claims("iss", "https://accounts.example.com"), want: sso.BadIssuer},
		"issuer with a slash":        {lie: claims("iss", l.URL+"/"), want: sso.BadIssuer},
		"issuer of the metadata":     {lie: ssotest.Lie{Metadata: map[string]any{"issuer": "https://accounts.example.com"}}, want: sso.BadIssuer},
		"audience":                   {lie: claims("aud", "somebody"), want: sso.BadAudience},
		"no audience":                {lie: claims("aud", nil), want: sso.BadAudience},
		"two audiences, no azp":      {lie: claims("aud", []string{l.ClientID, "somebody"}), want: sso.BadAudience},
		"authorized is another":      {lie: claims("aud", []string{l.ClientID, "somebody"}, "azp", "somebody"), want: sso.BadAudience},
		"nonce":                      {lie: claims("nonce", "n"), want: sso.BadNonce},
		"no nonce":                   {lie: claims("nonce", nil), want: sso.BadNonce},
		"expired":                    {lie: claims("exp", now.Add(-2*time.Minute).Unix()), want: sso.Expired},
		"no expiry":                  {lie: claims("exp", nil), want: sso.Expired},
		"issued in the future":       {lie: claims("iat", now.Add(time.Hour).Unix()), want: sso.Expired},
		"not yet":                    {lie: claims("nbf", now.Add(time.Hour).Unix()), want: sso.Expired},
		"no subject":                 {lie: claims("sub", nil), want: sso.BadSubject},
		"a subject of 256 bytes":     {lie: claims("sub", strings.Repeat("a", 256)), want: sso.BadSubject},
		"foreign key, same name":     {lie: ssotest.Lie{Key: true}, want: sso.BadSignature},
		"empty signature":            {lie: ssotest.Lie{Alg: "unsigned"}, want: sso.BadSignature},
		"alg none":                   {lie: ssotest.Lie{Alg: "none"}, want: sso.BadAlgorithm},
		"HS256 with the secret":      {lie: ssotest.Lie{Alg: "HS256"}, want: sso.BadAlgorithm},
		"userinfo of another":        {lie: ssotest.Lie{Userinfo: map[string]any{"sub": "bob"}}, want: sso.BadSubject},
		"groups are a number":        {lie: claims("groups", 7), want: sso.BadResponse},
		"mixed up":                   {lie: ssotest.Lie{Back: map[string]string{"iss": "https://other.example.com"}}, want: sso.MixedUp},
		"iss left out":               {lie: ssotest.Lie{Back: map[string]string{"iss": ""}}, want: sso.MixedUp},
		"another state":              {lie: ssotest.Lie{Back: map[string]string{"state": "s"}}, want: sso.BadState},
		"no state":                   {lie: ssotest.Lie{Back: map[string]string{"state": ""}}, want: sso.BadState},
		"no attempt":                 {change: func(a *sso.Attempt, _ url.Values) { *a = sso.Attempt{} }, want: sso.BadState},
		"an error":                   {lie: ssotest.Lie{Back: map[string]string{"error": "access_denied"}}, want: sso.RefusedByIDP},
		"no code":                    {lie: ssotest.Lie{Back: map[string]string{"code": ""}}, want: sso.BadResponse},
		"another's code":             {lie: ssotest.Lie{Back: map[string]string{"code": "c"}}, want: sso.RefusedByIDP},
		"no PKCE":                    {lie: ssotest.Lie{Metadata: map[string]any{"code_challenge_methods_supported": []string{"plain"}}}, want: sso.BadResponse},
		"an answer without end":      {lie: ssotest.Lie{Large: true}, want: sso.Unreachable},
		"token endpoint elsewhere":   {lie: ssotest.Lie{Redirect: "http://127.0.0.1:1/"}, want: sso.Unreachable},
		"token endpoint is metadata": {lie: ssotest.Lie{Metadata: map[string]any{"token_endpoint": "http://169.254.169.254/token"}}, want: sso.BadAddress},
		"key set is a file":          {lie: ssotest.Lie{Metadata: map[string]any{"jwks_uri": "file:///etc/passwd"}}, want: sso.BadAddress},
		"browser sent to plain HTTP": {lie: ssotest.Lie{Metadata: map[string]any{"authorization_endpoint": "http://example.com/auth"}}, want: sso.BadAddress},
		"key set is away":            {lie: ssotest.Lie{Metadata: map[string]any{"jwks_uri": l.URL + "/nothing"}}, want: sso.Unreachable},
	}
	for name, tt := range tests {
		l.Tell(ssotest.Lie{})
		if id, err := try(nil); err != nil || id.Subject != "alice" || id.Name != "Alice" || !id.EmailVerified {
			t.Fatalf("the truth, before %q: %+v %v", name, id, err)
		}
		l.Tell(tt.lie)
		if id, err := try(tt.change); reason(err) != tt.want {
			t.Errorf("%s: %+v %v, want %s", name, id, err, tt.want)
		}
	}
	t.Logf("%d lies refused", len(tests))
}

// TestEmailsAreNotMixed: that userinfo's address is verified says nothing of the token's.
func TestEmailsAreNotMixed(t *testing.T) {
	l := ssotest.StartLiar(t)
	for _, tt := range []struct {
		lie      ssotest.Lie
		email    string
		verified bool
	}{
		{ssotest.Lie{}, "alice@example.com", true},
		{ssotest.Lie{Claims: map[string]any{"email_verified": "true"}}, "alice@example.com", true},
		{ssotest.Lie{Claims: map[string]any{"email_verified": nil}, Userinfo: map[string]any{"sub": "alice", "email": "a@b.example", "email_verified": true}}, "alice@example.com", false},
		{ssotest.Lie{Claims: map[string]any{"email_verified": "yes"}}, "alice@example.com", false},
		{ssotest.Lie{Claims: map[string]any{"email": "a@b.example@example.com"}}, "", false},
		{ssotest.Lie{Claims: map[string]any{"email": "ali\u0441e@example.com"}}, "", false}, // not an ASCII c
		{ssotest.Lie{Claims: map[string]any{"email": "alice@example.com\n"}}, "", false},
	} {
		l.Tell(tt.lie)
		p, err := sso.Discover(context.Background(), sso.NewClient(ssotest.Loopback, nil), sso.Config{Issuer: l.URL, ClientID: l.ClientID, ClientSecret: l.Secret, Allow: ssotest.Loopback})
		if err != nil {
			t.Fatal(err)
		}
		a := sso.NewAttempt()
		resp, err := ssotest.Browser(t, nil).Get(p.AuthURL(redirect, a))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		loc, _ := resp.Location()
		id, err := p.Redeem(context.Background(), redirect, a, loc.Query())
		if err != nil || id.Email != tt.email || id.EmailVerified != tt.verified {
			t.Errorf("%+v: %+v %v", tt.lie, id, err)
		}
	}
}

// TestProvidersAtPrivateAddresses: the issuer is an address that a user chose.
func TestProvidersAtPrivateAddresses(t *testing.T) {
	l := ssotest.StartLiar(t)
	redirects := httptest.NewServer(http.RedirectHandler(l.URL+"/.well-known/openid-configuration", http.StatusFound))
	defer redirects.Close()
	loop := httptest.NewServer(nil)
	loop.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) })
	defer loop.Close()
	port := l.URL[strings.LastIndexByte(l.URL, ':'):]
	private := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	for _, tt := range []struct {
		issuer string
		allow  []netip.Prefix
		want   sso.Reason
	}{
		{l.URL, ssotest.Loopback, ""},
		{l.URL, nil, sso.BadAddress},
		{l.URL, private, sso.BadAddress},
		{"https://127.0.0.1" + port, nil, sso.BadAddress},
		{"https://localhost" + port, nil, sso.BadAddress},
		{"https://[::1]" + port, nil, sso.BadAddress},
		{"https://[::ffff:127.0.0.1]" + port, nil, sso.BadAddress},
		{"https://2130706433" + port, nil, sso.Unreachable}, // 127.0.0.1 as a number: no name, no address
		{"https://169.254.169.254", nil, sso.BadAddress},
		{"https://10.0.0.1", ssotest.Loopback, sso.BadAddress},
		{"http://localhost" + port, ssotest.Loopback, sso.BadAddress}, // plain HTTP to a name
		{"http://10.0.0.1", private, sso.BadAddress},                  // plain HTTP off the host
		{"ftp://127.0.0.1" + port, ssotest.Loopback, sso.BadAddress},
		{"https://user:word@example.com", nil, sso.BadAddress},
		{"https://example.com/?a=b", nil, sso.BadAddress},
		{"", nil, sso.BadAddress},
		{redirects.URL, ssotest.Loopback, sso.BadIssuer}, // followed; another's metadata
		{loop.URL, ssotest.Loopback, sso.Unreachable},
	} {
		_, err := sso.Discover(context.Background(), sso.NewClient(tt.allow, nil), sso.Config{Issuer: tt.issuer, ClientID: "c", Allow: tt.allow})
		if reason(err) != tt.want || (err == nil) != (tt.want == "") {
			t.Errorf("%s, allowed %v: %v, want %q", tt.issuer, tt.allow, err, tt.want)
		}
	}
}

// TestSecretIsNotRedirected: what a token endpoint redirects to never sees the code or the secret.
func TestSecretIsNotRedirected(t *testing.T) {
	l, other := ssotest.StartLiar(t), ssotest.StartLiar(t)
	p, err := sso.Discover(context.Background(), sso.NewClient(ssotest.Loopback, nil), sso.Config{Issuer: l.URL, ClientID: l.ClientID, ClientSecret: l.Secret, Allow: ssotest.Loopback})
	if err != nil {
		t.Fatal(err)
	}
	l.Tell(ssotest.Lie{Redirect: other.URL + "/token"})
	a := sso.NewAttempt()
	if _, err := p.Redeem(context.Background(), redirect, a, url.Values{"state": {a.State}, "iss": {l.URL}, "code": {"c"}}); reason(err) != sso.Unreachable {
		t.Error(err)
	}
	if n := l.Requests("/token"); n != 1 {
		t.Errorf("%d requests of the token endpoint", n)
	}
	if n := other.Requests("/token"); n != 0 {
		t.Error("the redirect was followed with the client's secret")
	}
}

// TestPolicy: who is let in, as what.
func TestPolicy(t *testing.T) {
	p := sso.Policy{Domains: []string{"example.com"}, Groups: map[string]string{"ops": "admin", "staff": "viewer"}}
	person := func(email string, verified bool, groups ...string) *sso.Identity {
		return &sso.Identity{Subject: "s", Email: email, EmailVerified: verified, Groups: groups}
	}
	open := p
	open.Role = "deployer"
	for _, tt := range []struct {
		p    sso.Policy
		id   *sso.Identity
		role string
		want sso.Reason
	}{
		{p, person("a@example.com", true, "staff"), "viewer", ""},
		{p, person("a@example.com", true, "staff", "ops"), "admin", ""},
		{p, person("a@example.com", true, "others"), "", sso.NoGroup},
		{p, person("a@example.com", true, "", "OPS"), "", sso.NoGroup},
		{p, person("a@example.com", true), "", sso.NoGroup},
		{p, person("a@example.com", false, "ops"), "", sso.Unverified},
		{p, person("", true, "ops"), "", sso.Unverified},
		{p, person("a@sub.example.com", true, "ops"), "", sso.BadDomain},
		{p, person("a@notexample.com", true, "ops"), "", sso.BadDomain},
		{p, person("a@example.com.evil.example", true, "ops"), "", sso.BadDomain},
		{open, person("a@example.com", true), "deployer", ""},
		{open, person("a@example.com", true, "staff"), "deployer", ""},
		{open, person("a@example.com", true, "ops"), "admin", ""},
		{sso.Policy{}, person("a@example.com", true, "ops"), "", sso.NoGroup},
		{sso.Policy{Groups: p.Groups}, person("", false, "ops"), "admin", ""},
	} {
		role, err := tt.p.Admit(tt.id)
		if role != tt.role || reason(err) != tt.want {
			t.Errorf("%+v: %q %v, want %q %q", tt.id, role, err, tt.role, tt.want)
		}
	}
	for name, bad := range map[string]sso.Policy{
		"nobody":        {Domains: []string{"example.com"}},
		"everybody":     {Role: "viewer"},
		"a wildcard":    {Domains: []string{"*.example.com"}, Role: "viewer"},
		"an address":    {Domains: []string{"a@example.com"}, Role: "viewer"},
		"upper case":    {Domains: []string{"Example.com"}, Role: "viewer"},
		"no such role":  {Groups: map[string]string{"ops": "root"}},
		"a nameless":    {Groups: map[string]string{"": "viewer"}},
		"no such role2": {Domains: []string{"example.com"}, Role: "root"},
	} {
		if err := bad.Check(); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, good := range []sso.Policy{p, open, {Groups: p.Groups}} {
		if err := good.Check(); err != nil {
			t.Error(err)
		}
	}
}
