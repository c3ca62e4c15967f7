package controller

import (
	"time"

	"bulkhead/key"
	"bulkhead/token"
)

// Who there is, and what they are to an organization. In JSON, as model.go says.

// memberRole is what a member may do in an organization, or to one app: see rights.
type memberRole string

// The roles there are, the mightiest first.
const (
	roleOwner    memberRole = "owner"    // everything, the organization's end included
	roleAdmin    memberRole = "admin"    // everything but owners and the organization's end
	roleDeployer memberRole = "deployer" // apps, Machines, their secrets and commands in them
	roleViewer   memberRole = "viewer"   // sees apps, Machines and their output
	roleAuditor  memberRole = "auditor"  // sees who did and may do what, and no app's output
)

var memberRoles = []memberRole{roleOwner, roleAdmin, roleDeployer, roleViewer, roleAuditor}

// user is a person. A record is never changed into another person's.
type user struct {
	ID        key.UserID `json:"id"`
	Number    int64      `json:"number"`
	Name      string     `json:"name"` // unique: a handle or an e-mail address
	Email     string     `json:"email,omitempty"`
	Issuer    string     `json:"issuer,omitempty"`   // the provider at which the user came about, if at one
	Operator  bool       `json:"operator,omitempty"` // may do what concerns the cluster as a whole
	CreatedAt time.Time  `json:"created_at"`
}

// userName gives a name to one user.
type userName struct {
	ID key.UserID `json:"id"`
}

// member says what a user is to an organization. Role may be empty when Apps is not:
// such a member has to do with these apps alone.
type member struct {
	Org       string                     `json:"org"`
	User      key.UserID                 `json:"user"`
	Role      memberRole                 `json:"role,omitempty"`
	Apps      map[key.AppName]memberRole `json:"apps,omitempty"`
	Source    string                     `json:"source,omitempty"` // "sso" when single sign-on made and keeps it
	CreatedAt time.Time                  `json:"created_at"`
}

// claim is what a one-time token is good for: to become a user, or a member. Its own
// token is kept as a SHA-256 alone.
type claim struct {
	ID        string                     `json:"id"`
	SHA256    []byte                     `json:"sha256"`
	Org       string                     `json:"org"`
	Role      memberRole                 `json:"role,omitempty"`
	Apps      map[key.AppName]memberRole `json:"apps,omitempty"`
	Name      string                     `json:"name,omitempty"` // the only user name it is good for, if set
	Operator  bool                       `json:"operator,omitempty"`
	By        string                     `json:"by,omitempty"`
	ByUser    key.UserID                 `json:"by_user,omitempty"` // of an invitation: good while this user may still give it
	CreatedAt time.Time                  `json:"created_at"`
	ExpiresAt time.Time                  `json:"expires_at,omitzero"` // zero: the installation's, good until it is used
}

func (c *claim) expired(now time.Time) bool {
	return !c.ExpiresAt.IsZero() && !now.Before(c.ExpiresAt)
}

// tokenRecord is what is kept of a token: never the token.
type tokenRecord struct {
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
