package ssotest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Liar is a provider that tells the truth except where a test has it lie. Its sign-in
// asks nobody: whoever comes is Claims.
type Liar struct {
	URL      string
	ClientID string
	Secret   string

	t      testing.TB
	server *httptest.Server
	key    *ecdsa.PrivateKey

	mu   sync.Mutex
	lie  Lie
	by   map[string]url.Values // the authorization request, by code
	hits map[string]int        // requests, by path
}

// Lie is what a Liar says that is not so; a zero Lie is the truth.
type Lie struct {
	Claims   map[string]any    // over the token's own; nil removes one
	Userinfo map[string]any    // what userinfo says; nil: {"sub": "alice"} and the like
	Metadata map[string]any    // over the metadata's own
	Back     map[string]string // over the parameters that the browser brings back; "" removes one
	Alg      string            // "none", "HS256", "unsigned" (ES256 without signature)
	Key      bool              // sign with a key that is not in the key set, under the same name
	Large    bool              // the token endpoint's answer does not end
	Slow     time.Duration     // before the token endpoint answers
	Redirect string            // where the token endpoint redirects to
}

// StartLiar starts one that tells the truth.
func StartLiar(t testing.TB) *Liar {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	l := &Liar{t: t, ClientID: "bulkhead", Secret: "the liar's secret of 32 bytes....", key: k, by: map[string]url.Values{}, hits: map[string]int{}}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", l.metadata)
	mux.HandleFunc("/auth", l.auth)
	mux.HandleFunc("/token", l.token)
	mux.HandleFunc("/jwks", l.jwks)
	mux.HandleFunc("/me", l.me)
	l.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.mu.Lock()
		l.hits[r.URL.Path]++
		l.mu.Unlock()
		mux.ServeHTTP(w, r)
	}))
	l.URL = l.server.URL
	t.Cleanup(l.server.Close)
	return l
}

// Tell has it lie from now on.
func (l *Liar) Tell(lie Lie) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lie = lie
}

// Requests says how often a path was asked for.
func (l *Liar) Requests(path string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hits[path]
}

func (l *Liar) lies() Lie {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lie
}

func (l *Liar) answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

func (l *Liar) metadata(w http.ResponseWriter, _ *http.Request) {
	m := map[string]any{
		"issuer": l.URL, "authorization_endpoint": l.URL + "/auth", "token_endpoint": l.URL + "/token", "jwks_uri": l.URL + "/jwks",
		"userinfo_endpoint": l.URL + "/me", "response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"},
		"id_token_signing_alg_values_supported": []string{"ES256", "none", "HS256"}, "code_challenge_methods_supported": []string{"S256"},
		"authorization_response_iss_parameter_supported": true,
	}
	maps.Copy(m, l.lies().Metadata)
	l.answer(w, m)
}

func (l *Liar) auth(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	code := base64.RawURLEncoding.EncodeToString([]byte(q.Get("state")))
	l.mu.Lock()
	l.by[code] = q
	l.mu.Unlock()
	back := url.Values{"code": {code}, "state": {q.Get("state")}, "iss": {l.URL}}
	for k, v := range l.lies().Back {
		back.Set(k, v)
		if v == "" {
			back.Del(k)
		}
	}
	http.Redirect(w, r, q.Get("redirect_uri")+"?"+back.Encode(), http.StatusSeeOther)
}

func (l *Liar) token(w http.ResponseWriter, r *http.Request) {
	lie := l.lies()
	r.ParseForm()
	l.mu.Lock()
	q, ok := l.by[r.Form.Get("code")]
	delete(l.by, r.Form.Get("code"))
	l.mu.Unlock()
	if lie.Redirect != "" {
		http.Redirect(w, r, lie.Redirect, http.StatusTemporaryRedirect)
		return
	}
	if !ok {
		w.WriteHeader(http.StatusBadRequest)
		l.answer(w, map[string]string{"error": "invalid_grant"})
		return
	}
	if lie.Slow > 0 {
		select {
		case <-time.After(lie.Slow):
		case <-r.Context().Done():
			return
		}
	}
	if lie.Large {
		w.Header().Set("Content-Type", "application/json")
		w.Write([]byte(`{"access_token":"`))
		for range 40 {
			w.Write([]byte(strings.Repeat("a", 64<<10)))
		}
		return
	}
	claims := map[string]any{
		"iss": l.URL, "sub": "alice", "aud": l.ClientID, "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix(), "nonce": q.Get("nonce"),
		"email": "alice@example.com", "email_verified": true, "groups": []string{"staff"},
	}
	for k, v := range lie.Claims {
		claims[k] = v
		if v == nil {
			delete(claims, k)
		}
	}
	l.answer(w, map[string]any{"access_token": "at", "token_type": "Bearer", "expires_in": 3600, "id_token": l.sign(lie, claims)})
}

// sign makes the token: honestly, or in one of the ways that were once believed.
func (l *Liar) sign(lie Lie, claims map[string]any) string {
	payload, _ := json.Marshal(claims)
	b64 := base64.RawURLEncoding.EncodeToString
	key, alg := any(l.key), jose.ES256
	switch {
	case lie.Alg == "none":
		return b64([]byte(`{"alg":"none"}`)) + "." + b64(payload) + "."
	case lie.Alg == "unsigned":
		return b64([]byte(`{"alg":"ES256","kid":"liar"}`)) + "." + b64(payload) + "."
	case lie.Alg == "HS256": // with the client's secret, which the specification allows
		key, alg = []byte(l.Secret), jose.HS256
	case lie.Key:
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			panic(err)
		}
		key = k
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", "liar"))
	if err != nil {
		panic(err)
	}
	jws, err := s.Sign(payload)
	if err != nil {
		panic(err)
	}
	out, err := jws.CompactSerialize()
	if err != nil {
		panic(err)
	}
	return out
}

func (l *Liar) jwks(w http.ResponseWriter, _ *http.Request) {
	l.answer(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: l.key.Public(), KeyID: "liar", Algorithm: "ES256", Use: "sig"}}})
}

func (l *Liar) me(w http.ResponseWriter, _ *http.Request) {
	m := map[string]any{"sub": "alice", "name": "Alice"}
	if u := l.lies().Userinfo; u != nil {
		m = u
	}
	l.answer(w, m)
}
