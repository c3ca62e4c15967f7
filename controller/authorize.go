package controller

import (
	"slices"

	"bulkhead/fault"
	"bulkhead/key"
)

// action is what a caller wants to do to an object.
type action string

// The actions there are.
const (
	actRead    action = "read"    // see it
	actWrite   action = "write"   // change it
	actCreate  action = "create"  // make one
	actDelete  action = "delete"  // remove it
	actControl action = "control" // start, stop, signal it, run commands in it
)

// what is the kind of thing an action is about.
type what string

// Kinds of things of an app.
const (
	whatApp          what = "app"
	whatMachine      what = "machine"
	whatMetadata     what = "metadata" // of a Machine
	whatExec         what = "exec"     // commands in a Machine
	whatLogs         what = "logs"     // what an app writes
	whatImage        what = "image"    // in the registry
	whatSecret       what = "secret"   // names and digests to read, values to write
	whatSecretKey    what = "secret key"
	whatSecretKeyUse what = "use of a secret key"
	whatOIDC         what = "identity token" // of a Machine
)

// Kinds of things of an organization.
const (
	whatOrg    what = "organization"
	whatMember what = "member"    // who has which role, and invitations
	whatOwner  what = "owner"     // making and unmaking owners
	whatToken  what = "own token" // of the caller's own
	whatTokens what = "token"     // of anybody's in the organization
	whatSSO    what = "single sign-on"
	whatAudit  what = "audit log"
)

// Kinds of things of nobody's or everybody's.
const (
	whatSelf     what = "own account"   // as far as the token has to do with it
	whatAccount  what = "whole account" // what is the user's in every organization: not for a token of one
	whatAny      what = "any"           // the endpoint decides by itself, about each thing that it is about
	whatPlatform what = "platform"      // regions and placements
	whatCluster  what = "cluster"       // nodes, users, organizations as a whole, keys: the operators'
	whatClaim    what = "claim"
)

// access is one act on one thing. Org is set for everything of an organization's or an
// app's, App for everything of an app's, Machine for what is one Machine's.
type access struct {
	Act     action
	What    what
	Org     string
	App     key.AppName
	Machine key.MachineID
	Command []string // of whatExec
}

// Sets of roles.
var (
	everyRole = memberRoles
	operating = []memberRole{roleOwner, roleAdmin, roleDeployer}
	watching  = []memberRole{roleOwner, roleAdmin, roleDeployer, roleViewer}
	managing  = []memberRole{roleOwner, roleAdmin}
	reviewing = []memberRole{roleOwner, roleAdmin, roleAuditor}
	owning    = []memberRole{roleOwner}
)

// rights says which roles may do what. What is not here nobody may.
var rights = map[what]map[action][]memberRole{
	whatApp:          {actRead: everyRole, actCreate: operating, actWrite: operating, actDelete: managing},
	whatMachine:      {actRead: everyRole, actCreate: operating, actWrite: operating, actDelete: operating, actControl: operating},
	whatMetadata:     {actRead: everyRole, actWrite: operating, actDelete: operating},
	whatExec:         {actControl: operating, actRead: operating},
	whatLogs:         {actRead: watching},
	whatImage:        {actRead: watching, actWrite: operating, actDelete: operating},
	whatSecret:       {actRead: watching, actCreate: operating, actWrite: operating, actDelete: operating},
	whatSecretKey:    {actRead: watching, actCreate: operating, actWrite: operating, actDelete: managing},
	whatSecretKeyUse: {actControl: operating},

	whatOrg:    {actRead: everyRole, actWrite: managing, actDelete: owning},
	whatMember: {actRead: everyRole, actCreate: managing, actWrite: managing, actDelete: managing},
	whatOwner:  {actWrite: owning, actDelete: owning},
	whatToken:  {actRead: everyRole, actCreate: everyRole, actDelete: everyRole},
	whatTokens: {actRead: reviewing, actDelete: managing},
	whatSSO:    {actRead: reviewing, actWrite: managing, actDelete: managing},
	whatAudit:  {actRead: reviewing},
}

// ofApp are the kinds of things that a role for one app says something about.
var ofApp = []what{
	whatApp, whatMachine, whatMetadata, whatExec, whatLogs, whatImage, whatSecret, whatSecretKey, whatSecretKeyUse,
	whatToken,
}

// ofMachine is what a Machine may do to itself.
var ofMachine = map[what][]action{
	whatMachine:  {actRead, actControl},
	whatMetadata: {actRead, actWrite, actDelete},
	whatOIDC:     {actCreate},
}

// authorize is the only place that decides whether a known caller may do something. Its
// refusal is Denied. A person may do what their role in the organization, or for the
// app, gives at this moment, and the token's caveats leave of it.
func (c *Controller) authorize(who caller, a access) error {
	if who.allowed(c.directory, a) {
		return c.withinToken(who, a)
	}
	switch {
	case who.Kind == callerClaim:
		return fault.New(fault.Denied, "this token is good for one thing: to become a named user; \"bulkhead login\" does that")
	case a.What == whatOIDC:
		return fault.New(fault.Denied, "identity tokens are given to machines alone: ask over the socket /.fly/api inside of one")
	case who.Kind == callerMachine:
		return fault.New(fault.Denied, "a machine may act on itself alone")
	case a.App != "":
		return fault.New(fault.Denied, "%s may not %s: %s of app %q", who.Name, a.Act, a.What, a.App)
	case a.Org != "" && c.directory.org(a.Org) == nil && c.operator(who):
		return noOrg(a.Org)
	case a.Org != "":
		return fault.New(fault.Denied, "%s may not %s: %s of organization %q, or there is no such organization", who.Name, a.Act, a.What, clip(a.Org))
	}
	return fault.New(fault.Denied, "%s may not %s: %s; it takes an operator of the cluster", who.Name, a.Act, a.What)
}

// operator reports whether the caller is an operator's own.
func (c *Controller) operator(who caller) bool {
	u := c.directory.user(who.User)
	return u != nil && u.Operator
}

// allowed is authorize before the token's caveats.
func (who caller) allowed(d *directory, a access) bool {
	switch who.Kind {
	case callerClaim:
		return a.What == whatClaim && a.Act == actCreate
	case callerMachine:
		return a.What == whatPlatform && a.Act == actRead ||
			who.Machine != "" && a.App == who.App && a.Machine == who.Machine && slices.Contains(ofMachine[a.What], a.Act)
	case callerPerson:
		u := d.user(who.User)
		if u == nil {
			return false
		}
		switch a.What {
		case whatSelf, whatAccount, whatAny:
			return true
		case whatPlatform:
			return a.Act == actRead
		case whatCluster:
			return u.Operator
		case whatSSO:
			if a.Act == actDelete && u.Operator { // the way back when a provider is gone
				return d.org(a.Org) != nil
			}
		}
		return d.memberMay(who.User, a)
	}
	return false
}

// memberMay looks at the user's roles.
func (d *directory) memberMay(id key.UserID, a access) bool {
	m := d.member(a.Org, id)
	if a.Org == "" || m == nil || d.org(a.Org) == nil {
		return false
	}
	if a.App != "" {
		if app := d.app(a.App); app == nil || app.Org != a.Org {
			return false
		}
	}
	may := rights[a.What][a.Act]
	if m.Role != "" && slices.Contains(may, m.Role) {
		return true
	}
	if a.App == "" { // who has to do with single apps still sees the organization, and has tokens
		return m.Role == "" && (a.What == whatOrg && a.Act == actRead || a.What == whatToken)
	}
	r := m.Apps[a.App]
	return r != "" && slices.Contains(ofApp, a.What) && slices.Contains(may, r)
}
