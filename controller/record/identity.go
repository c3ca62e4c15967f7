package record

import (
	"cmp"
	"slices"
	"time"

	"bulkhead/key"
	"bulkhead/passkey"
	"bulkhead/sso"
	"bulkhead/token"
)

// Who there is, and what they are to an organization.

// Org is an organization.
type Org struct {
	Slug      string    `json:"slug"`
	Name      string    `json:"name"`
	Number    int64     `json:"number"`
	CreatedAt time.Time `json:"created_at"`
	// Deleting is set while it is being deleted: it takes no new app.
	Deleting bool `json:"deleting,omitempty"`
	// TokenDefault and TokenMax bound the life of the organization's tokens; 0 means the
	// cluster's own bounds, which they cannot exceed.
	TokenDefault time.Duration `json:"token_default,omitempty"`
	TokenMax     time.Duration `json:"token_max,omitempty"`
}

// Role is what a member may do in an organization, or to one app: see access/rights.go.
type Role string

// The roles there are, the mightiest first.
const (
	Owner    Role = "owner"    // everything, the organization's end included
	Admin    Role = "admin"    // everything but owners and the organization's end
	Deployer Role = "deployer" // apps, Machines, their secrets and commands in them
	Viewer   Role = "viewer"   // sees apps, Machines and their output
	Auditor  Role = "auditor"  // sees who did and may do what, and no app's output
)

// Roles are all of them.
var Roles = []Role{Owner, Admin, Deployer, Viewer, Auditor}

// User is a person. A record is never changed into another person's.
type User struct {
	ID        key.UserID `json:"id"`
	Number    int64      `json:"number"`
	Name      string     `json:"name"` // unique: a handle or an e-mail address
	Email     string     `json:"email,omitempty"`
	Issuer    string     `json:"issuer,omitempty"`   // the provider at which the user came about, if at one
	Org       string     `json:"org,omitempty"`      // the organization whose provider that was
	Invited   string     `json:"invited,omitempty"`  // the organization whose invitation made the user, if one did
	Operator  bool       `json:"operator,omitempty"` // may do what concerns the cluster as a whole
	CreatedAt time.Time  `json:"created_at"`
}

// MadeBy is the organization that made the user, by its provider or an invitation; "" for none.
func (u *User) MadeBy() string { return cmp.Or(u.Org, u.Invited) }

// UserName gives a name to one user.
type UserName struct {
	ID key.UserID `json:"id"`
}

// Member says what a user is to an organization. Role may be empty when Apps is not:
// such a member has to do with these apps alone.
type Member struct {
	Org       string               `json:"org"`
	User      key.UserID           `json:"user"`
	Role      Role                 `json:"role,omitempty"`
	Apps      map[key.AppName]Role `json:"apps,omitempty"`
	Source    string               `json:"source,omitempty"` // "sso" when single sign-on made and keeps it
	CreatedAt time.Time            `json:"created_at"`
}

// Claim is what a one-time token is good for: to become a user, or a member. Its own
// token is kept as a SHA-256 alone.
type Claim struct {
	ID        string               `json:"id"`
	SHA256    []byte               `json:"sha256"`
	Org       string               `json:"org"`
	Role      Role                 `json:"role,omitempty"`
	Apps      map[key.AppName]Role `json:"apps,omitempty"`
	Name      string               `json:"name,omitempty"` // the only user name it is good for, if set
	Operator  bool                 `json:"operator,omitempty"`
	By        string               `json:"by,omitempty"`
	ByUser    key.UserID           `json:"by_user,omitempty"` // of an invitation: good while this user may still give it
	CreatedAt time.Time            `json:"created_at"`
	ExpiresAt time.Time            `json:"expires_at,omitzero"` // zero: the installation's, good until it is used
}

// Expired reports whether it is too late for it.
func (c *Claim) Expired(now time.Time) bool {
	return !c.ExpiresAt.IsZero() && !now.Before(c.ExpiresAt)
}

// Token is what is kept of a token: never the token.
type Token struct {
	ID        key.TokenID `json:"id"`
	User      key.UserID  `json:"user"`          // whose rights it uses
	Org       string      `json:"org,omitempty"` // the only organization it is good for, if set
	App       key.AppName `json:"app,omitempty"` // the only app, if set
	Kind      token.Kind  `json:"kind"`
	Name      string      `json:"name,omitempty"`
	Key       string      `json:"key"` // the root key it was made with
	CreatedAt time.Time   `json:"created_at"`
	ExpiresAt time.Time   `json:"expires_at"`
}

// Passkey is a passkey of a user. It lies under the user, so that one look finds
// what belongs to somebody, and nobody's is found under another's name.
//
// What makes or removes one rewrites the user's record too: such changes exclude each
// other, and the user's own end.
type Passkey struct {
	ID         string             `json:"id"` // SHA-256 of the credential's id, in hexadecimal
	User       key.UserID         `json:"user"`
	Name       string             `json:"name"`
	Credential passkey.Credential `json:"credential"`
	CreatedAt  time.Time          `json:"created_at"`
	UsedAt     time.Time          `json:"used_at,omitzero"`
	// SuspectAt is when its counter went back: somebody has a copy. It signs nobody in
	// from then on, and the sessions that came by it are over.
	SuspectAt time.Time `json:"suspect_at,omitzero"`
}

// RootKey is a key that tokens are made with. The newest makes them; the others are good
// for those that they have made.
type RootKey struct {
	ID        string    `json:"id"`
	Wrapped   []byte    `json:"wrapped"` // by the cluster key
	CreatedAt time.Time `json:"created_at"`
}

// Session is a session: somebody has shown who they are, and may go on as they until it
// ends. A browser's is a cookie; a CLI's goes with one token, which ends with it. The
// secret is kept nowhere: the record lies under its SHA-256.
type Session struct {
	ID   string     `json:"id"` // SHA-256 of the secret, in hexadecimal
	User key.UserID `json:"user"`
	Kind string     `json:"kind"` // "browser" or "cli"
	// Org and Config say by which organization's single sign-on they came; both are empty
	// for a passkey and for a token.
	Org    string `json:"org,omitempty"`
	Config string `json:"config,omitempty"`
	Method string `json:"method"` // "sso", "passkey"
	// Passkey is the one they came by: the session is over with it.
	Passkey string `json:"passkey,omitempty"`

	TokenID key.TokenID `json:"token,omitempty"` // of a CLI: ends with the session
	Name    string      `json:"name,omitempty"`  // of the host that asked
	From    string      `json:"from,omitempty"`

	CreatedAt time.Time     `json:"created_at"`
	SeenAt    time.Time     `json:"seen_at"`
	ExpiresAt time.Time     `json:"expires_at"`
	Idle      time.Duration `json:"idle"` // it ends when it was not used for that long
}

// SSOLife is how long a session by single sign-on lasts, unless the organization says
// otherwise: for so long at most somebody stays who has lost their account there.
const SSOLife = 12 * time.Hour

// SSO is an organization's single sign-on.
type SSO struct {
	ID           string     `json:"id"` // new with each issuer and client: sessions of another do not live
	Org          string     `json:"org"`
	Issuer       string     `json:"issuer"`
	ClientID     string     `json:"client_id"`
	ClientSecret []byte     `json:"client_secret,omitempty"` // wrapped by the cluster key
	Scopes       []string   `json:"scopes,omitempty"`
	GroupsClaim  string     `json:"groups_claim,omitempty"`
	Policy       sso.Policy `json:"policy"`
	Mode         string     `json:"mode"` // "optional" or "required"
	// SessionHours is how long a session lasts; 0: 12.
	SessionHours int `json:"session_hours,omitempty"`
	// ServiceTokens is "allowed" when tokens of programs need no session: see Exempts.
	ServiceTokens string    `json:"service_tokens,omitempty"`
	ChangedAt     time.Time `json:"changed_at"`
	ChangedBy     string    `json:"changed_by"`
}

// Words of SSO.Mode.
const (
	SSOOptional = "optional"
	SSORequired = "required"
)

// Life is how long a session by it lasts.
func (s *SSO) Life() time.Duration {
	if s.SessionHours == 0 {
		return SSOLife
	}
	return time.Duration(s.SessionHours) * time.Hour
}

// servants are the kinds of tokens that programs use where nobody is.
var servants = []token.Kind{token.Deploy, token.MachineExec, token.ReadOnly}

// Words of SSO.ServiceTokens.
const (
	ServicesRefused = "refused"
	ServicesAllowed = "allowed"
)

// Exempts reports whether a token needs no session, because owners let those of programs be
// without: it is for one app and of a kind for programs, or for metrics alone.
func (s *SSO) Exempts(rec *Token) bool {
	return s.ServiceTokens == ServicesAllowed && (rec.App != "" && slices.Contains(servants, rec.Kind) || rec.Kind == token.Metrics)
}

// Lives of tokens, where the organization does not say less.
const (
	DefaultTokenLife = 30 * 24 * time.Hour
	MaxTokenLife     = 365 * 24 * time.Hour
	MinTokenLife     = time.Minute
)

// TokenLife is how long an organization's tokens live when nobody says, and at most.
func (o *Org) TokenLife() (usual, most time.Duration) {
	usual, most = DefaultTokenLife, MaxTokenLife
	if o.TokenMax > 0 {
		most = min(most, o.TokenMax)
	}
	if o.TokenDefault > 0 {
		usual = o.TokenDefault
	}
	return min(usual, most), most
}
