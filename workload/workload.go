// Package workload issues identity tokens to Machines: short-lived JWTs of OpenID
// Connect, by which others (a cloud's token service, a database, one's own service)
// know a Machine without a secret in it. It holds the keys' schedule, the tokens'
// claims, and the two documents by which verifiers find the keys. It does no I/O: where
// the keys are kept and who asks is its user's.
//
// Tokens are signed with RS256. It is what every verifier has: OpenID Connect Discovery
// requires it, and not all take anything else.
package workload

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"regexp"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"bulkhead/fault"
)

// The keys' schedule. A verifier that keeps the key set for MaxAge always has the key
// of a token that it meets, also one that was made just before a rotation.
const (
	// Period is how long a key signs.
	Period = 7 * 24 * time.Hour
	// Lead is how long a key is published before it signs, in the ordinary case.
	Lead = 24 * time.Hour
	// Keep is how long a key is published after it has signed for the last time.
	Keep = 24 * time.Hour
	// MaxAge is how long verifiers may keep the documents.
	MaxAge = 5 * time.Minute
	// SoonLead is the lead of a rotation that somebody asked for.
	SoonLead = 3 * MaxAge
)

// Life is how long a token is good for, and Skew how far back its beginning is dated,
// for verifiers whose clock is behind.
const (
	Life = 10 * time.Minute
	Skew = 2 * time.Minute
)

const keyBits = 2048

// Key signs tokens from From on, until another key does.
type Key struct {
	ID   string    `json:"id"`
	From time.Time `json:"from"`
	Made time.Time `json:"made"`
	// Public is the key that verifiers get, in PKIX form; Private is in PKCS #8 form,
	// wrapped.
	Public  []byte `json:"public"`
	Private []byte `json:"private"`
}

// Keys are an issuer's keys, the oldest first.
type Keys []Key

// Wrapper keeps private keys from whoever reads the store; a secret.Ring is one.
type Wrapper interface {
	Wrap(purpose string, plaintext []byte) ([]byte, error)
	Unwrap(purpose string, wrapped []byte) ([]byte, error)
}

// purpose is what private keys are wrapped for.
func purpose(id string) string { return "oidc signing key " + id }

// NewKey makes a key that signs from a time on.
func NewKey(w Wrapper, now, from time.Time) (Key, error) {
	private, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return Key{}, err
	}
	var id [8]byte
	rand.Read(id[:])
	k := Key{ID: hex.EncodeToString(id[:]), From: from.UTC(), Made: now.UTC()}
	if k.Public, err = x509.MarshalPKIXPublicKey(&private.PublicKey); err != nil {
		return Key{}, err
	}
	b, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return Key{}, err
	}
	k.Private, err = w.Wrap(purpose(k.ID), b)
	return k, err
}

// current is the index of the key that signs now: the newest whose time has come. With a
// clock before them all it is the oldest. It is -1 when there is none.
func (ks Keys) current(now time.Time) int {
	for i, k := range slices.Backward(ks) {
		if !k.From.After(now) || i == 0 {
			return i
		}
	}
	return -1
}

// Current is the key that signs now.
func (ks Keys) Current(now time.Time) (Key, error) {
	i := ks.current(now)
	if i < 0 {
		return Key{}, fault.New(fault.Unavailable, "there is no key for identity tokens yet; try again")
	}
	return ks[i], nil
}

// Kept leaves out the keys whose tokens have expired since long.
func (ks Keys) Kept(now time.Time) Keys {
	first := 0
	for i := range ks {
		if i > 0 && !ks[i].From.Add(Life+Keep).After(now) {
			first = i
		}
	}
	return slices.Clone(ks[first:])
}

// NextFrom says from when a key signs that has to be made now, if one has: the first at
// once, another when the newest has less than Lead to go.
func (ks Keys) NextFrom(now time.Time) (from time.Time, due bool) {
	if len(ks) == 0 {
		return now, true
	}
	if end := ks[len(ks)-1].From.Add(Period); !end.Add(-Lead).After(now) {
		return now.Add(Lead), true
	}
	return time.Time{}, false
}

// Publish returns the key set as verifiers get it: the keys that signed, sign and will
// sign.
func (ks Keys) Publish() ([]byte, error) {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, k := range ks {
		public, err := x509.ParsePKIXPublicKey(k.Public)
		if err != nil {
			return nil, err
		}
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: public, KeyID: k.ID, Algorithm: string(jose.RS256), Use: "sig"})
	}
	return json.Marshal(set)
}

// slugRE is what an organization's slug looks like in an address.
var slugRE = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// ValidSlug reports whether an issuer may have this organization in its address.
func ValidSlug(org string) bool { return slugRE.MatchString(org) }

// discovery is the part of OpenID Connect Discovery that verifiers of tokens read.
type discovery struct {
	Issuer        string   `json:"issuer"`
	JWKS          string   `json:"jwks_uri"`
	ResponseTypes []string `json:"response_types_supported"`
	SubjectTypes  []string `json:"subject_types_supported"`
	Algorithms    []string `json:"id_token_signing_alg_values_supported"`
	Scopes        []string `json:"scopes_supported"`
	Claims        []string `json:"claims_supported"`
}

// Discovery returns the document at <issuer>/.well-known/openid-configuration. The key
// set is at <issuer>/.well-known/jwks.
func Discovery(issuer string) ([]byte, error) {
	return json.Marshal(discovery{
		Issuer: issuer, JWKS: issuer + "/.well-known/jwks",
		ResponseTypes: []string{"id_token"}, SubjectTypes: []string{"public"}, Algorithms: []string{string(jose.RS256)}, Scopes: []string{"openid"},
		Claims: []string{
			"app_id", "app_name", "aud", "exp", "iat", "image", "image_digest", "iss", "jti", "machine_id", "machine_name",
			"machine_version", "nbf", "org_id", "org_name", "region", "sub",
		},
	})
}

// Claims is what a token says of a Machine. The names are those that Fly's tokens have.
type Claims struct {
	AppID          string `json:"app_id"`
	AppName        string `json:"app_name"`
	Image          string `json:"image"`
	ImageDigest    string `json:"image_digest"`
	MachineID      string `json:"machine_id"`
	MachineName    string `json:"machine_name"`
	MachineVersion string `json:"machine_version"`
	OrgID          string `json:"org_id"`
	OrgName        string `json:"org_name"`
	Region         string `json:"region"`
	// AWSTags are session tags for AWS's token service.
	AWSTags *AWSTags `json:"https://aws.amazon.com/tags,omitempty"`
}

// AWSTags is AWS's claim of session tags.
type AWSTags struct {
	Principal  map[string][]string `json:"principal_tags"`
	Transitive []string            `json:"transitive_tag_keys"`
}

// WithAWSTags adds what the token says as session tags.
func (c Claims) WithAWSTags() Claims {
	tags := map[string]string{
		"app_id": c.AppID, "app_name": c.AppName, "machine_id": c.MachineID, "machine_name": c.MachineName, "machine_version": c.MachineVersion,
		"org_id": c.OrgID, "org_name": c.OrgName, "region": c.Region,
	}
	c.AWSTags = &AWSTags{Principal: map[string][]string{}, Transitive: []string{}}
	for name, v := range tags {
		c.AWSTags.Principal[name] = []string{v}
		c.AWSTags.Transitive = append(c.AWSTags.Transitive, name)
	}
	slices.Sort(c.AWSTags.Transitive)
	return c
}

// Subject is the token's subject: who its bearer is.
func (c Claims) Subject() string { return c.OrgName + ":" + c.AppName + ":" + c.MachineName }

// Bounds of a token's audience.
const maxAudience = 512 // bytes

// CheckAudience refuses what is no audience.
func CheckAudience(aud string) error {
	if len(aud) > maxAudience {
		return fault.New(fault.Invalid, "aud has %d bytes; at most %d are allowed", len(aud), maxAudience)
	}
	for _, r := range aud {
		if r < ' ' || r == 0x7f || r == 0xfffd {
			return fault.New(fault.Invalid, "aud has a character that is not allowed: %q", r)
		}
	}
	return nil
}

// Signer signs with one key. Its private key is in memory.
type Signer struct {
	ID     string
	signer jose.Signer
}

// NewSigner unwraps a key.
func NewSigner(w Wrapper, k Key) (*Signer, error) {
	b, err := w.Unwrap(purpose(k.ID), k.Private)
	if err != nil {
		return nil, err
	}
	private, err := x509.ParsePKCS8PrivateKey(b)
	if err != nil {
		return nil, err
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: private, KeyID: k.ID}}, (&jose.SignerOptions{}).WithType("JWT"))
	return &Signer{ID: k.ID, signer: s}, err
}

// Sign makes a token. No two are equal: each has an identifier of its own.
func (s *Signer) Sign(issuer, aud string, c Claims, now time.Time) (string, error) {
	var id [16]byte
	rand.Read(id[:])
	return jwt.Signed(s.signer).Claims(jwt.Claims{
		Issuer: issuer, Subject: c.Subject(), Audience: jwt.Audience{aud}, ID: hex.EncodeToString(id[:]),
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now.Add(-Skew)), Expiry: jwt.NewNumericDate(now.Add(Life)),
	}).Claims(c).Serialize()
}
