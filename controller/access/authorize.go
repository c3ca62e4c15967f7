package access

import (
	"slices"

	"bulkhead/controller/directory"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
)

// Authorize is the only place that decides whether a known caller may do something. Its
// refusal is Denied. A person may do what their role in the organization, or for the
// app, gives at this moment, and the token's caveats leave of it.
func Authorize(d *directory.Directory, who Caller, a Request) error {
	if who.Allowed(d, a) {
		return withinToken(d, who, a)
	}
	switch {
	case who.Kind == ByClaim:
		return fault.New(fault.Denied, "this token is good for one thing: to become a named user; \"bulkhead login\" does that")
	case a.What == OIDC:
		return fault.New(fault.Denied, "identity tokens are given to machines alone: ask over the socket /.fly/api inside of one")
	case who.Kind == ByMachine:
		return fault.New(fault.Denied, "a machine may act on itself alone")
	case a.App != "":
		return fault.New(fault.Denied, "%s may not %s: %s of app %q", who.Name, a.Act, a.What, a.App)
	case a.Org != "" && d.Org(a.Org) == nil && Operator(d, who):
		return NoOrg(a.Org)
	case a.Org != "":
		return fault.New(fault.Denied, "%s may not %s: %s of organization %q, or there is no such organization", who.Name, a.Act, a.What, fault.Clip(a.Org))
	}
	return fault.New(fault.Denied, "%s may not %s: %s; it takes an operator of the cluster", who.Name, a.Act, a.What)
}

// NoOrg is the answer about an organization that there is not.
func NoOrg(slug string) error {
	return fault.New(fault.NotFound, "organization %q not found", fault.Clip(slug))
}

// Operator reports whether the caller is an operator's own.
func Operator(d *directory.Directory, who Caller) bool {
	u := d.User(who.User)
	return u != nil && u.Operator
}

// Allowed is Authorize before the token's caveats.
func (who Caller) Allowed(d *directory.Directory, a Request) bool {
	switch who.Kind {
	case ByClaim:
		return a.What == Claim && a.Act == Create
	case ByMachine:
		return a.What == Platform && a.Act == Read ||
			who.Machine != "" && a.App == who.App && a.Machine == who.Machine && slices.Contains(ofMachine[a.What], a.Act)
	case ByPerson:
		u := d.User(who.User)
		if u == nil {
			return false
		}
		switch a.What {
		case Self, Account, Any:
			return true
		case Platform:
			return a.Act == Read
		case Cluster, PlatformMetrics:
			return u.Operator
		case SSO:
			if a.Act == Delete && u.Operator { // the way back when a provider is gone
				return d.Org(a.Org) != nil
			}
		}
		return memberMay(d, who.User, a)
	}
	return false
}

// memberMay looks at the user's roles.
func memberMay(d *directory.Directory, id key.UserID, a Request) bool {
	m := d.Member(a.Org, id)
	if a.Org == "" || m == nil || d.Org(a.Org) == nil {
		return false
	}
	if a.App != "" {
		if app := d.App(a.App); app == nil || app.Org != a.Org {
			return false
		}
	}
	may := rights[a.What][a.Act]
	if m.Role != "" && slices.Contains(may, m.Role) {
		return true
	}
	if a.App == "" { // who has to do with single apps still sees the organization, and has tokens
		return m.Role == "" && (a.What == Org && a.Act == Read || a.What == OwnToken)
	}
	r := m.Apps[a.App]
	return r != "" && slices.Contains(ofApp, a.What) && slices.Contains(may, r)
}

// Spendable reports whether a claim may be spent now. An invitation may for as long as
// whoever made it may make it: nobody who was removed leaves themselves a way back.
func Spendable(d *directory.Directory, cl *record.Claim) bool {
	if cl.Expired(d.Now()) {
		return false
	}
	if cl.ByUser == "" {
		return true
	}
	may := d.User(cl.ByUser) != nil && memberMay(d, cl.ByUser, Request{Act: Create, What: Member, Org: cl.Org})
	if cl.Role == record.Owner {
		may = may && memberMay(d, cl.ByUser, Request{Act: Write, What: Owner, Org: cl.Org})
	}
	return may
}
