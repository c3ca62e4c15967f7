package sso

import (
	"slices"
	"strings"

	"bulkhead/fault"
)

// Policy is whom of a provider's people an organization lets in, and as what.
type Policy struct {
	// Domains are the e-mail domains that are let in; empty means all, and that no
	// verified address is needed.
	Domains []string `json:"domains,omitempty"`
	// Groups gives the role of those in a group. Who is in several has the strongest.
	Groups map[string]string `json:"groups,omitempty"`
	// Role is the role of those in none of Groups; empty means that they are not let in.
	Role string `json:"role,omitempty"`
}

// Roles are the roles of an organization, the strongest first.
var Roles = []string{"owner", "admin", "deployer", "viewer", "auditor"}

// Check says what of a policy cannot be.
func (p Policy) Check() error {
	for i, d := range p.Domains {
		if d == "" || len(d) > 253 || strings.ToLower(d) != d || strings.ContainsAny(d, "@/ *") || !strings.Contains(d, ".") {
			return fault.New(fault.Invalid, "domains[%d] is %q; it is an e-mail domain in lower case, such as example.com, and matches no subdomains", i, fault.Clip(d))
		}
	}
	if len(p.Domains) > 100 || len(p.Groups) > 100 {
		return fault.New(fault.Invalid, "%d domains and %d groups; at most 100 of each", len(p.Domains), len(p.Groups))
	}
	for g, r := range p.Groups {
		if g == "" || len(g) > 200 {
			return fault.New(fault.Invalid, "groups has the key %q; it is a group's name as the provider sends it, at most 200 bytes", fault.Clip(g))
		}
		if !slices.Contains(Roles, r) {
			return fault.New(fault.Invalid, "groups[%q] is %q; roles are %s", fault.Clip(g), fault.Clip(r), strings.Join(Roles, ", "))
		}
	}
	if p.Role != "" && !slices.Contains(Roles, p.Role) {
		return fault.New(fault.Invalid, "role is %q; roles are %s", fault.Clip(p.Role), strings.Join(Roles, ", "))
	}
	if len(p.Groups) == 0 && p.Role == "" {
		return fault.New(fault.Invalid, "neither groups nor role is set: nobody could sign in; set role to what everybody gets, or groups to who gets what")
	}
	// A provider that anybody can join would let anybody in.
	if len(p.Domains) == 0 && len(p.Groups) == 0 {
		return fault.New(fault.Invalid, "domains and groups are both empty: everybody whom the provider knows could sign in; name the domains or the groups")
	}
	return nil
}

// Admit returns the role that the policy gives to a person, or a refusal.
func (p Policy) Admit(id *Identity) (string, error) {
	if len(p.Domains) > 0 {
		if id.Email == "" || !id.EmailVerified {
			return "", Refuse(Unverified, nil, "the identity provider does not vouch for an e-mail address of yours (email_verified); the organization lets in verified addresses of %s only", strings.Join(p.Domains, ", "))
		}
		if _, d, _ := strings.Cut(id.Email, "@"); !slices.Contains(p.Domains, d) {
			return "", Refuse(BadDomain, nil, "addresses of %q are not let in; the organization lets in %s", d, strings.Join(p.Domains, ", "))
		}
	}
	best := len(Roles)
	for _, g := range id.Groups {
		if i := slices.Index(Roles, p.Groups[g]); i >= 0 {
			best = min(best, i)
		}
	}
	if i := slices.Index(Roles, p.Role); i >= 0 {
		best = min(best, i)
	}
	if best == len(Roles) {
		return "", Refuse(NoGroup, nil, "you are in no group that the organization lets in; ask its owner, or the provider's, which you should be in")
	}
	return Roles[best], nil
}
