package doctor

import (
	"context"
	"fmt"
	"time"

	"bulkhead/doctor/posture"
)

// Bounds above which the doctor warns.
const (
	longToken = 90 * 24 * time.Hour  // until a token ends
	oldToken  = 180 * 24 * time.Hour // since it was made
	endOfRoot = 180 * 24 * time.Hour // until the authority ends
)

// posture asks the controller, and judges what it says.
func (p Platform) posture(ctx context.Context) []Finding {
	if p.Posture == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	got, err := p.Posture(ctx)
	if err != nil {
		return []Finding{{"controller", Fail, fmt.Sprintf("the controller does not answer root: %v", err),
			"see the log of bulkheadd: without its controller the platform takes no change"}}
	}
	now := time.Now()
	var out []Finding
	for _, judge := range []func(posture.Posture, time.Time) []Finding{unclaimed, rootKey, tokens, signOn, owners,
		witnesses} {
		out = append(out, judge(got, now)...)
	}
	return out
}

// unclaimed looks for the token with which anybody who saw it becomes the operator.
func unclaimed(p posture.Posture, now time.Time) []Finding {
	if p.Unclaimed.IsZero() {
		return []Finding{{"installation", OK, "the one-time token of an operator is used up", ""}}
	}
	return []Finding{{"installation", Warn,
		fmt.Sprintf("the one-time token of an operator, made %s ago, has not been used: whoever finds it in a terminal or a journal becomes the operator", ago(now.Sub(p.Unclaimed))),
		"log in with it (bulkhead login), or make another one-time token, which voids it (bulkheadd token)"}}
}

// rootKey looks where the key of the authority's root is, and when the root ends.
func rootKey(p posture.Posture, now time.Time) (out []Finding) {
	switch p.RootKey {
	case "clear":
		out = append(out, Finding{"root key", Warn,
			"the root key of the certificate authority lies on the controller's disk, in the clear: who reads it can be any part of this cluster, for years",
			"seal it, and keep what that writes elsewhere (bulkheadd ca seal), or do without it (bulkheadd ca discard); docs/cluster-identity.md says what each costs"})
	case "missing":
		out = append(out, Finding{"root key", Warn,
			"the root key of the certificate authority is gone, and nobody said that it should be", "make a new root before the old ends (bulkheadd ca rotate)"})
	default:
		out = append(out, Finding{"root key", OK, "the root key of the certificate authority is " + p.RootKey, ""})
	}
	if left := p.RootEnds.Sub(now); !p.RootEnds.IsZero() && left < endOfRoot {
		out = append(out, Finding{"root key", Warn, fmt.Sprintf("the root of the certificate authority ends in %s",
			ago(left)), "make a new one (bulkheadd ca rotate)"})
	}
	return out
}

// tokens looks for those that live too long.
func tokens(p posture.Posture, now time.Time) (out []Finding) {
	const narrow = "revoke it (bulkhead tokens revoke) and make one that ends sooner"
	for _, t := range p.Tokens {
		who := fmt.Sprintf("token %s of %s", t.ID, t.User)
		if t.Name != "" {
			who = fmt.Sprintf("token %s (%s) of %s", t.ID, t.Name, t.User)
		}
		switch {
		case t.ExpiresAt.IsZero():
			out = append(out, Finding{"tokens", Warn, who + " never ends", narrow})
		case t.ExpiresAt.Before(now): // it opens nothing any more
		case t.ExpiresAt.Sub(now) > longToken:
			out = append(out, Finding{"tokens", Warn, fmt.Sprintf("%s is good for another %s", who, ago(t.ExpiresAt.Sub(now))),
				narrow})
		case now.Sub(t.CreatedAt) > oldToken:
			out = append(out, Finding{"tokens", Warn, fmt.Sprintf("%s was made %s ago", who, ago(now.Sub(t.CreatedAt))), narrow})
		}
	}
	for _, o := range p.Orgs {
		if o.TokenMax == 0 {
			out = append(out, Finding{"token limits", Warn,
				"organization " + o.Slug + " sets no limit of its own to the life of its tokens: one may be made for a year", "set token_max_expiry of the organization: docs/tokens.md"})
		}
	}
	if out == nil {
		out = []Finding{{"tokens", OK,
			fmt.Sprintf("%d tokens, none of them old or long-lived, and every organization limits them", len(p.Tokens)), ""}}
	}
	return out
}

// signOn looks for organizations that a stolen token alone opens.
func signOn(p posture.Posture, _ time.Time) (out []Finding) {
	alone := 0
	for _, o := range p.Orgs {
		switch {
		case o.SSO == "required":
		case o.SSO == "" && o.Members == 1:
			alone++ // a provider of identities would serve one user
		case o.SSO == "":
			out = append(out, Finding{"single sign-on", Warn, "organization " + o.Slug +
				" has no single sign-on: a stolen token opens it by itself, and a user who leaves must be removed by hand",
				"set one up, and require it (docs/sign-in.md)"})
		default:
			out = append(out, Finding{"single sign-on", Warn, "single sign-on is " + o.SSO + " in organization " + o.Slug +
				": a stolen token opens it by itself", "require it (docs/sign-in.md)"})
		}
	}
	switch {
	case out != nil:
	case alone > 0:
		out = []Finding{{"single sign-on", OK,
			fmt.Sprintf("%d of %d organizations have one member and need none; the others require it",
				alone, len(p.Orgs)), ""}}
	default:
		out = []Finding{{"single sign-on", OK, fmt.Sprintf("each of %d organizations requires it", len(p.Orgs)), ""}}
	}
	return out
}

// owners looks for organizations that one lost account would close for good.
func owners(p posture.Posture, _ time.Time) (out []Finding) {
	for _, o := range p.Orgs {
		if o.Owners == 0 {
			out = append(out, Finding{"owners", Warn,
				"organization " + o.Slug + " has no owner: nobody can add people to it or end it", "root of this host can make an operator: bulkheadd token"})
		}
	}
	return out
}

// witnesses looks whether anybody outside would notice another history.
func witnesses(p posture.Posture, _ time.Time) []Finding {
	switch {
	case p.Audit == nil:
		return []Finding{{"audit log", Note, "this controller keeps no audit log", ""}}
	case p.Audit.Witnesses == 0:
		return []Finding{{"audit log", Warn,
			"the audit log has no witness: who holds this host could show another history to everybody at once", "configure witnesses, or keep checkpoints elsewhere and verify against them: docs/audit.md"}}
	case !p.Audit.Required:
		return []Finding{{"audit log", OK,
			fmt.Sprintf("%d witnesses sign the audit log's checkpoints; changes go on when they are away",
				p.Audit.Witnesses), ""}}
	}
	return []Finding{{"audit log", OK,
		fmt.Sprintf("%d witnesses sign the audit log's checkpoints, and no change is made without them",
			p.Audit.Witnesses), ""}}
}

// ago words a length of time.
func ago(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", d/time.Hour)
	}
	return fmt.Sprintf("%d minutes", max(0, d)/time.Minute)
}
