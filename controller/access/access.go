// Package access decides what a known caller of the API may do: Authorize is the only place
// that does. It knows who there is by package directory, and keeps nothing itself.
//
// A person may do what their role gives (rights.go), as far as their token's caveats let them
// (token.go) and their organization's single sign-on does. A Machine may act on itself.
package access

import "bulkhead/key"

// Action is what a caller wants to do to an object.
type Action string

// The actions there are.
const (
	Read    Action = "read"    // see it
	Write   Action = "write"   // change it
	Create  Action = "create"  // make one
	Delete  Action = "delete"  // remove it
	Control Action = "control" // start, stop, signal it, run commands in it
)

// Kind is the kind of thing an action is about.
type Kind string

// Kinds of things of an app.
const (
	App          Kind = "app"
	Machine      Kind = "machine"
	Metadata     Kind = "metadata" // of a Machine
	Exec         Kind = "exec"     // commands in a Machine
	Logs         Kind = "logs"     // what an app writes
	Image        Kind = "image"    // in the registry
	Secret       Kind = "secret"   // names and digests to read, values to write
	SecretKey    Kind = "secret key"
	SecretKeyUse Kind = "use of a secret key"
	OIDC         Kind = "identity token" // of a Machine
)

// Kinds of things of an organization.
const (
	Org      Kind = "organization"
	Member   Kind = "member"    // who has which role, and invitations
	Owner    Kind = "owner"     // making and unmaking owners
	OwnToken Kind = "own token" // of the caller's own
	Tokens   Kind = "token"     // of anybody's in the organization
	SSO      Kind = "single sign-on"
	Audit    Kind = "audit log"
	Metrics  Kind = "metrics" // what its Machines use
)

// Kinds of things of nobody's or everybody's.
const (
	Self     Kind = "own account"   // as far as the token has to do with it
	Account  Kind = "whole account" // what is the user's in every organization: not for a token of one
	Any      Kind = "any"           // the endpoint decides by itself, about each thing that it is about
	Platform Kind = "platform"      // regions and placements
	Cluster  Kind = "cluster"       // nodes, users, organizations as a whole, keys: the operators'
	Claim    Kind = "claim"

	PlatformMetrics Kind = "platform metrics" // of every role and Machine: the operators'
)

// Request is one act on one thing. Org is set for everything of an organization's or an
// app's, App for everything of an app's, Machine for what is one Machine's.
type Request struct {
	Act     Action
	What    Kind
	Org     string
	App     key.AppName
	Machine key.MachineID
	Command []string // of Exec
}
