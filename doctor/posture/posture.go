// Package posture is what the controller tells the doctor about the installation: the
// choices of its operator and the state of what only the controller knows. No secret
// is in it.
package posture

import "time"

// Posture is the answer to GET /posture on the admin socket.
type Posture struct {
	// Unclaimed is when the one-time token was made that makes whoever has it an
	// operator; zero when there is none that anybody may still use.
	Unclaimed time.Time `json:"unclaimed,omitzero"`
	// RootKey is the state of the authority's root key, in the words of package pki.
	RootKey string `json:"root_key"`
	// RootEnds is when the first of the roots ends.
	RootEnds time.Time `json:"root_ends,omitzero"`
	Orgs     []Org     `json:"orgs"`
	Tokens   []Token   `json:"tokens"`
	// Audit is nil when there is no audit log.
	Audit *Audit `json:"audit,omitempty"`
}

// Org is an organization.
type Org struct {
	Slug string `json:"slug"`
	// TokenMax is how long its tokens may live; 0: as long as the cluster lets them.
	TokenMax time.Duration `json:"token_max"`
	// SSO is "required" or "optional"; empty: off.
	SSO    string `json:"sso"`
	Owners int    `json:"owners"`
	// Members counts its members; 0: a controller of before this field.
	Members int `json:"members"`
}

// Token is what is known of a token.
type Token struct {
	ID        string    `json:"id"`
	User      string    `json:"user"` // name
	Name      string    `json:"name,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at,omitzero"` // zero: never
}

// Audit is how the audit log is watched.
type Audit struct {
	Witnesses int  `json:"witnesses"` // that are configured
	Required  bool `json:"required"`  // changes are refused without them
}
