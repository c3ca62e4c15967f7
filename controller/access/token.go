package access

import (
	"fmt"
	"maps"
	"slices"

	"github.com/superfly/macaroon/flyio"
	"github.com/superfly/macaroon/resset"

	"bulkhead/controller/directory"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/token"
)

// wantsSSO refuses what is an organization's that requires single sign-on to a token
// behind which no live session by it is: one that it came with, or one that discharged it.
// Operators may still remove the requirement: see deleteSSO.
func wantsSSO(d *directory.Directory, who Caller, v *token.Verified, a Request) error {
	conf := d.SSOOf(a.Org)
	if conf == nil || conf.Mode != record.SSORequired || d.SessionBehind(v, a.Org) != nil {
		return nil
	}
	if a.What == SSO && a.Act == Delete && Operator(d, who) {
		return nil
	}
	rec := d.Token(v.ID)
	if rec != nil && conf.Exempts(rec) {
		return nil
	}
	const refusal = "organization %q requires single sign-on, and %s: run \"bulkhead auth login --org %s\"%s"
	err := fault.New(fault.Denied, refusal, a.Org, "this token did not come by it, or its session is over", a.Org, "")
	switch {
	case v.For != nil:
		return RefusedToken(&token.Refusal{Reason: token.SessionEnded, Detail: fmt.Sprintf("the session that discharged this token is over, or is not by the single sign-on of organization %q: run \"bulkhead auth login --org %s\"", a.Org, a.Org)})
	case rec != nil && rec.Kind != token.Login:
		err = fault.New(fault.Denied, refusal, a.Org, "this token was made without it", a.Org, " and make the token again")
	}
	return err.WithStatus("sso_required")
}

// masks are the actions in the words of tokens.
var masks = map[Action]resset.Action{
	Read: resset.ActionRead, Write: resset.ActionWrite, Create: resset.ActionCreate, Delete: resset.ActionDelete, Control: resset.ActionControl,
}

// Features that tokens can be held to, beside those of the Machines API.
const (
	featureTokens     = "tokens"
	featureAudit      = "audit"
	featureSettings   = "settings"
	featureImages     = "images"
	featureSecrets    = "secrets"
	featureSecretKeys = "secretkeys"
	featureMetadata   = "metadata"
	featureOIDC       = "oidc"
)

// orgFeatures are the features of an organization that a kind of thing belongs to, when it
// is more than looked at or always.
var orgFeatures = map[Kind]string{
	Member: flyio.FeatureMembership, Owner: flyio.FeatureMembership,
	OwnToken: featureTokens, Tokens: featureTokens,
	SSO: flyio.FeatureAuthentication, Audit: featureAudit, Metrics: token.FeatureMetrics,
}

// appFeatures are those of an app.
var appFeatures = map[Kind]string{
	Image: featureImages, Secret: featureSecrets, SecretKey: featureSecretKeys, SecretKeyUse: featureSecretKeys, OwnToken: featureTokens,
}

// machineFeatures are those of a Machine.
var machineFeatures = map[Kind]string{Metadata: featureMetadata, OIDC: featureOIDC}

// KindOfOrgFeature is the kind of thing that a feature of an organization, as tokens' caveats
// name them, is about.
func KindOfOrgFeature(feature string) (Kind, bool) { return kindOf(feature, orgFeatures) }

// KindOfAppFeature is KindOfOrgFeature for those of an app.
func KindOfAppFeature(feature string) (Kind, bool) { return kindOf(feature, appFeatures) }

// KindOfMachineFeature is KindOfOrgFeature for those of a Machine.
func KindOfMachineFeature(feature string) (Kind, bool) { return kindOf(feature, machineFeatures) }

// kindOf takes the first in order of kinds that have the feature in common: of secret keys and
// their use it is the keys, of members and owners the members.
func kindOf(feature string, of map[Kind]string) (Kind, bool) {
	for _, k := range slices.Sorted(maps.Keys(of)) {
		if of[k] == feature {
			return k, true
		}
	}
	return "", false
}

// tokenAccess says what an access is in the words of a token's caveats. What cannot be said is
// refused: ok is false.
func tokenAccess(d *directory.Directory, a Request) (_ *token.Access, ok bool) {
	mask, ok := masks[a.Act]
	if !ok {
		return nil, false
	}
	t := &token.Access{Access: flyio.Access{Action: mask}, At: d.Now(), Live: d.SessionLives}
	if a.Org == "" {
		t.PlatformMetrics = a.What == PlatformMetrics
		return t, t.PlatformMetrics || a.What == Self || a.What == Account || a.What == Cluster || a.What == Claim
	}
	o := d.Org(a.Org)
	if o == nil {
		return nil, false
	}
	t.OrgID = new(uint64(o.Number))
	if a.App == "" {
		return t, orgAccess(a, t)
	}
	app := d.App(a.App)
	if app == nil || app.Org != a.Org {
		return nil, false
	}
	t.AppID, t.AppName = new(uint64(app.Number)), string(app.Name)
	f, isApp := appFeatures[a.What]
	mf, isMachine := machineFeatures[a.What]
	switch {
	case isApp:
		t.AppFeature = &f
	case a.Machine == "":
	case isMachine:
		t.Machine, t.MachineFeature = new(string(a.Machine)), &mf
	case a.What == Exec && a.Act == Control:
		// Not nil: a token that is for certain commands must see that this is about one.
		t.Machine, t.Command = new(string(a.Machine)), append([]string{}, a.Command...)
	default:
		t.Machine = new(string(a.Machine))
	}
	return t, true
}

// orgAccess completes an access that is about no app.
func orgAccess(a Request, t *token.Access) bool {
	if f, ok := orgFeatures[a.What]; ok {
		t.Feature = &f
		return true
	}
	switch a.What {
	case Org:
		switch a.Act {
		case Read:
		case Delete:
			t.Feature = new(flyio.FeatureDeletion)
		default:
			t.Feature = new(featureSettings)
		}
	case App:
		if a.Act == Create {
			t.AppID = new(uint64(0)) // as clients ask for what is not there yet
		}
	case Machine:
	default:
		return a.Act == Read
	}
	return true
}

// withinToken asks the bounds of the caller's tokens, one of which must allow it, and have
// the session that the organization wants of it.
func withinToken(d *directory.Directory, who Caller, a Request) error {
	if who.Kind != ByPerson {
		return nil
	}
	_, err := who.anyToken(func(v *token.Verified) error {
		if err := wantsSSO(d, who, v, a); err != nil {
			return err
		}
		return who.within(d, v, a)
	})
	return err
}

// AuthorizeAccess is Authorize for a client that asks in the words of tokens' caveats: want is
// what they are asked, on is the thing that it is about, and acts are what want comes to. It
// returns the token that allows it all.
func AuthorizeAccess(d *directory.Directory, who Caller, acts []Action, on Request, want *token.Access) (*token.Verified, error) {
	for _, act := range acts {
		if on.Act = act; rights[on.What][act] == nil {
			on.Act = Write // nothing of its own here: who may change it may do that to it
		}
		if !who.Allowed(d, on) {
			return nil, fault.New(fault.Denied, "the token's user may not %s: %s", on.Act, on.What)
		}
	}
	want.From, want.At, want.Live = who.From, d.Now(), d.SessionLives
	return who.anyToken(func(v *token.Verified) error {
		if err := wantsSSO(d, who, v, on); err != nil {
			return err
		}
		if rec := d.Token(v.ID); rec == nil || rec.Org != "" && rec.Org != on.Org {
			return fault.New(fault.Denied, "the token is good for one organization alone")
		}
		return v.Allows(want)
	})
}

// anyToken is the first of the caller's tokens that passes, or why the first did not.
func (who Caller) anyToken(pass func(*token.Verified) error) (*token.Verified, error) {
	var first error
	for _, v := range who.Verified {
		err := pass(v)
		if err == nil {
			return v, nil
		}
		if first == nil {
			first = err
		}
	}
	if first == nil {
		first = fault.New(fault.Denied, "the token may do nothing")
	}
	return nil, first
}

// within asks the bounds of one token.
func (who Caller) within(d *directory.Directory, v *token.Verified, a Request) error {
	rec := d.Token(v.ID)
	if rec == nil { // since the request was let in
		return RefusedToken(&token.Refusal{Reason: token.Revoked, Detail: "the token was revoked"})
	}
	if rec.Org != "" && a.Org != rec.Org && a.What != Self && a.What != Platform && a.What != Any {
		return fault.New(fault.Denied, "the token is good for one organization alone")
	}
	if rec.Kind == token.Metrics && a.What != Metrics && a.What != PlatformMetrics {
		return fault.New(fault.Denied, "a token of kind metrics reads metrics and nothing else")
	}
	var err error
	if a.What == Platform || a.What == Any {
		err = v.Holds(&token.Access{At: d.Now(), From: who.From, Live: d.SessionLives})
	} else {
		t, ok := tokenAccess(d, a)
		if !ok {
			return fault.New(fault.Denied, "the token may not %s: %s", a.Act, a.What)
		}
		t.From = who.From
		err = v.Allows(t)
	}
	return RefusedToken(err)
}
