package workload

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// plain wraps with a byte that says for what.
type plain struct{}

func (plain) Wrap(purpose string, b []byte) ([]byte, error) {
	return append([]byte(purpose+"|"), b...), nil
}
func (plain) Unwrap(purpose string, b []byte) ([]byte, error) {
	out, ok := strings.CutPrefix(string(b), purpose+"|")
	if !ok {
		return nil, errors.New("it was wrapped for something else")
	}
	return []byte(out), nil
}

var claims = Claims{
	AppID: "7", AppName: "web", Image: "registry.example.com/web:1", ImageDigest: "sha256:aa", MachineID: "0123456789abcd", MachineName: "quiet-sea-1",
	MachineVersion: "01H", OrgID: "1", OrgName: "personal", Region: "local",
}

var aLongTimeAgo = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// step does what an issuer does from time to time.
func (ks *Keys) step(t *testing.T, now time.Time) {
	t.Helper()
	*ks = ks.Kept(now)
	if from, due := ks.NextFrom(now); due {
		k, err := NewKey(plain{}, now, from)
		if err != nil {
			t.Fatal(err)
		}
		*ks = append(*ks, k)
	}
}

func (ks Keys) sign(t *testing.T, issuer, aud string, now time.Time) string {
	t.Helper()
	k, err := ks.Current(now)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSigner(plain{}, k)
	if err != nil {
		t.Fatal(err)
	}
	token, err := s.Sign(issuer, aud, claims, now)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// TestVerified: a real verifier of OpenID Connect finds the keys by the documents, takes
// the token, and reads the claims; and refuses what it must.
func TestVerified(t *testing.T) {
	now := time.Now()
	var ks Keys
	ks.step(t, now)
	mux := http.NewServeMux()
	srv := httptest.NewTLSServer(mux)
	defer srv.Close()
	issuer := srv.URL + "/oidc/personal"
	mux.HandleFunc("GET /oidc/{org}/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
		b, _ := Discovery(srv.URL + "/oidc/" + r.PathValue("org"))
		w.Write(b)
	})
	mux.HandleFunc("GET /oidc/{org}/.well-known/jwks", func(w http.ResponseWriter, r *http.Request) {
		b, _ := ks.Publish()
		w.Write(b)
	})
	ctx := oidc.ClientContext(t.Context(), srv.Client())
	verifier := func(issuer, aud string, at time.Time) *oidc.IDTokenVerifier {
		p, err := oidc.NewProvider(ctx, issuer)
		if err != nil {
			t.Fatal(err)
		}
		return p.Verifier(&oidc.Config{ClientID: aud, Now: func() time.Time { return at }})
	}
	token := ks.sign(t, issuer, "sts.amazonaws.com", now)
	got, err := verifier(issuer, "sts.amazonaws.com", now).Verify(ctx, token)
	if err != nil {
		t.Fatal(err)
	}
	var c Claims
	if err := got.Claims(&c); err != nil || c != claims {
		t.Errorf("the claims are %+v, %v", c, err)
	}
	if got.Subject != "personal:web:quiet-sea-1" || got.Expiry.Sub(got.IssuedAt) != Life {
		t.Errorf("subject %q, good for %v", got.Subject, got.Expiry.Sub(got.IssuedAt))
	}
	for what, v := range map[string]*oidc.IDTokenVerifier{
		"another audience":     verifier(issuer, "vault", now),
		"another organization": verifier(srv.URL+"/oidc/other", "sts.amazonaws.com", now),
		"after its time":       verifier(issuer, "sts.amazonaws.com", now.Add(Life+time.Second)),
		"long before its time": verifier(issuer, "sts.amazonaws.com", now.Add(-time.Hour)),
	} {
		if _, err := v.Verify(ctx, token); err == nil {
			t.Errorf("%s: the token is taken", what)
		}
	}
	for what, at := range map[string]time.Time{"a clock that is behind": now.Add(-Skew), "a clock that is ahead": now.Add(Life - time.Second)} {
		if _, err := verifier(issuer, "sts.amazonaws.com", at).Verify(ctx, token); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Not before is dated back by Skew, to the second, and the time of issue is true.
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	var std jwt.Claims
	if err := parsed.UnsafeClaimsWithoutVerification(&std); err != nil || std.NotBefore.Time().Unix() != now.Add(-Skew).Unix() || std.IssuedAt.Time().Unix() != now.Unix() {
		t.Errorf("not before %v, issued %v: %v", std.NotBefore.Time(), std.IssuedAt.Time(), err)
	}
	stranger := Keys{}
	stranger.step(t, now)
	if _, err := verifier(issuer, "x", now).Verify(ctx, stranger.sign(t, issuer, "x", now)); err == nil {
		t.Error("a token of somebody else's key is taken")
	}
}

// snapshot is a verifier that fetches the key set when what it has is older than MaxAge,
// and at no other time: the least that one may do.
type snapshot struct {
	at   time.Time
	keys jose.JSONWebKeySet
}

func (s *snapshot) verify(t *testing.T, ks Keys, token string, now time.Time) error {
	if now.Sub(s.at) >= MaxAge {
		b, err := ks.Publish()
		if err != nil {
			t.Fatal(err)
		}
		s.at, s.keys = now, jose.JSONWebKeySet{}
		if err := json.Unmarshal(b, &s.keys); err != nil {
			t.Fatal(err)
		}
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	found := s.keys.Key(parsed.Headers[0].KeyID)
	if len(found) != 1 {
		return errors.New("its key is not published")
	}
	var std jwt.Claims
	if err := parsed.Claims(found[0].Key, &std); err != nil {
		return err
	}
	return std.ValidateWithLeeway(jwt.Expected{Time: now}, 0)
}

// TestRotation: five weeks, in which every token is good until it expires, for a
// verifier that fetches the keys as seldom as it may; the keys change every week, and a
// rotation by hand changes them too. At the end the old ones are gone.
func TestRotation(t *testing.T) {
	var ks Keys
	v := &snapshot{}
	used := map[string]bool{}
	most, byHand := 0, false
	type issued struct {
		token string
		at    time.Time
	}
	var live []issued
	checks := 0
	for now := aLongTimeAgo; now.Before(aLongTimeAgo.Add(5 * 7 * 24 * time.Hour)); now = now.Add(13 * time.Minute / 5) {
		if now.Sub(aLongTimeAgo)%(time.Hour) < 3*time.Minute { // an issuer that looks once an hour
			ks.step(t, now)
		}
		if !byHand && now.Sub(aLongTimeAgo) > 17*24*time.Hour {
			k, err := NewKey(plain{}, now, now.Add(SoonLead))
			if err != nil {
				t.Fatal(err)
			}
			ks, byHand = append(ks, k), true
		}
		most = max(most, len(ks))
		// Tokens around each change of keys, and one a day besides.
		near := slices.ContainsFunc(ks, func(k Key) bool { return now.Sub(k.From).Abs() < 15*time.Minute })
		if near || now.Sub(aLongTimeAgo)%(24*time.Hour) < 3*time.Minute {
			cur, _ := ks.Current(now)
			used[cur.ID] = true
			live = append(live, issued{ks.sign(t, "https://api.example.com/oidc/personal", "x", now), now})
		}
		live = slices.DeleteFunc(live, func(i issued) bool { return now.Sub(i.at) >= Life })
		for _, i := range live {
			checks++
			if err := v.verify(t, ks, i.token, now); err != nil {
				t.Fatalf("at %v a token of %v: %v", now, i.at, err)
			}
		}
	}
	t.Logf("%d keys signed, at most %d were published at once, %d checks", len(used), most, checks)
	if len(used) < 6 || most > 3 || checks < 100 {
		t.Error("the keys did not change as they should")
	}
	if ks.step(t, aLongTimeAgo.Add(365*24*time.Hour)); len(ks) > 2 {
		t.Errorf("%d keys are kept after a year", len(ks))
	}
}

// TestRotationControl: a key that is used at once is what such a verifier does not know.
func TestRotationControl(t *testing.T) {
	var ks Keys
	v := &snapshot{}
	now := aLongTimeAgo
	ks.step(t, now)
	if err := v.verify(t, ks, ks.sign(t, "i", "x", now), now); err != nil {
		t.Fatal(err)
	}
	k, err := NewKey(plain{}, now, now)
	if err != nil {
		t.Fatal(err)
	}
	ks = append(ks, k)
	now = now.Add(time.Minute)
	if v.verify(t, ks, ks.sign(t, "i", "x", now), now) == nil {
		t.Error("a key that nobody could know is known: TestRotation tests nothing")
	}
}

func TestSchedule(t *testing.T) {
	var none Keys
	if _, err := none.Current(aLongTimeAgo); err == nil {
		t.Error("there is a key where there is none")
	}
	ks := Keys{{ID: "a", From: aLongTimeAgo}, {ID: "b", From: aLongTimeAgo.Add(Period)}}
	for at, want := range map[time.Duration]string{-time.Hour: "a", 0: "a", Period - 1: "a", Period: "b", 10 * Period: "b"} {
		if k, _ := ks.Current(aLongTimeAgo.Add(at)); k.ID != want {
			t.Errorf("after %v key %s signs, want %s", at, k.ID, want)
		}
	}
	if from, due := ks[:1].NextFrom(aLongTimeAgo.Add(Period - Lead)); !due || !from.Equal(aLongTimeAgo.Add(Period)) {
		t.Errorf("the next key is due %v from %v", due, from)
	}
	if _, due := ks.NextFrom(aLongTimeAgo.Add(Period)); due {
		t.Error("a key is due while another waits")
	}
	if n := len(ks.Kept(aLongTimeAgo.Add(Period + Life + Keep - 1))); n != 2 {
		t.Errorf("%d keys are kept while a token of the first may be good", n)
	}
	if kept := ks.Kept(aLongTimeAgo.Add(Period + Life + Keep)); len(kept) != 1 || kept[0].ID != "b" {
		t.Errorf("kept are %v", kept)
	}
}

func TestTokensAreUnique(t *testing.T) {
	var ks Keys
	ks.step(t, aLongTimeAgo)
	seen := map[string]bool{}
	for range 200 {
		parsed, err := jwt.ParseSigned(ks.sign(t, "i", "x", aLongTimeAgo), []jose.SignatureAlgorithm{jose.RS256})
		if err != nil {
			t.Fatal(err)
		}
		var std jwt.Claims
		if err := parsed.UnsafeClaimsWithoutVerification(&std); err != nil || len(std.ID) != 32 || seen[std.ID] {
			t.Fatalf("identifier %q, %v", std.ID, err)
		}
		seen[std.ID] = true
	}
}

// TestPrivateKeyIsWrapped: what is kept is of no use to who has no cluster key, nor in
// another key's place.
func TestPrivateKeyIsWrapped(t *testing.T) {
	a, err := NewKey(plain{}, aLongTimeAgo, aLongTimeAgo)
	if err != nil {
		t.Fatal(err)
	}
	b := a
	b.ID = "another"
	if _, err := NewSigner(plain{}, b); err == nil {
		t.Error("a key is taken for another")
	}
	public, _ := Keys{a}.Publish()
	for _, part := range []string{`"d"`, `"p"`, `"q"`, `"dp"`} {
		if strings.Contains(string(public), part) {
			t.Errorf("the key set holds %s: %s", part, public)
		}
	}
}

func TestAudience(t *testing.T) {
	for _, ok := range []string{"sts.amazonaws.com", "https://vault.example.com/a b", "", "ü"} {
		if err := CheckAudience(ok); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	for _, bad := range []string{"a\nb", "\x00", strings.Repeat("x", 513), "\xff", "\x7f"} {
		if CheckAudience(bad) == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	tags := claims.WithAWSTags().AWSTags
	if tags.Principal["app_name"][0] != "web" || len(tags.Transitive) != len(tags.Principal) || claims.AWSTags != nil {
		t.Errorf("tags are %+v", tags)
	}
	for slug, want := range map[string]bool{"personal": true, "a-b1": true, "": false, "..": false, "a/b": false, "-a": false, "A": false} {
		if ValidSlug(slug) != want {
			t.Errorf("slug %q: %v", slug, !want)
		}
	}
}

// BenchmarkSign is one token.
func BenchmarkSign(b *testing.B) {
	k, err := NewKey(plain{}, aLongTimeAgo, aLongTimeAgo)
	if err != nil {
		b.Fatal(err)
	}
	s, err := NewSigner(plain{}, k)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.Sign("https://api.example.com/oidc/personal", "x", claims, aLongTimeAgo); err != nil {
			b.Fatal(err)
		}
	}
}
