package controller

import (
	"github.com/superfly/macaroon/flyio"
	"github.com/superfly/macaroon/resset"

	"bulkhead/fault"
	"bulkhead/token"
)

// masks are the actions in the words of tokens.
var masks = map[action]resset.Action{
	actRead: resset.ActionRead, actWrite: resset.ActionWrite, actCreate: resset.ActionCreate, actDelete: resset.ActionDelete, actControl: resset.ActionControl,
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
var orgFeatures = map[what]string{
	whatMember: flyio.FeatureMembership, whatOwner: flyio.FeatureMembership,
	whatToken: featureTokens, whatTokens: featureTokens,
	whatSSO: flyio.FeatureAuthentication, whatAudit: featureAudit,
}

// appFeatures are those of an app.
var appFeatures = map[what]string{
	whatImage: featureImages, whatSecret: featureSecrets, whatSecretKey: featureSecretKeys, whatSecretKeyUse: featureSecretKeys, whatToken: featureTokens,
}

// machineFeatures are those of a Machine.
var machineFeatures = map[what]string{whatMetadata: featureMetadata, whatOIDC: featureOIDC}

// tokenAccess says what an access is in the words of a token's caveats. What cannot be said is
// refused: ok is false.
func (d *directory) tokenAccess(a access) (_ *token.Access, ok bool) {
	mask, ok := masks[a.Act]
	if !ok {
		return nil, false
	}
	t := &token.Access{Access: flyio.Access{Action: mask}, At: now(), Live: d.sessionLives}
	if a.Org == "" {
		return t, a.What == whatSelf || a.What == whatAccount || a.What == whatCluster || a.What == whatClaim
	}
	o := d.org(a.Org)
	if o == nil {
		return nil, false
	}
	t.OrgID = ptr(uint64(o.Number))
	if a.App == "" {
		return t, d.orgAccess(a, t)
	}
	app := d.app(a.App)
	if app == nil || app.Org != a.Org {
		return nil, false
	}
	t.AppID, t.AppName = ptr(uint64(app.Number)), string(app.Name)
	f, isApp := appFeatures[a.What]
	mf, isMachine := machineFeatures[a.What]
	switch {
	case isApp:
		t.AppFeature = &f
	case a.Machine == "":
	case isMachine:
		t.Machine, t.MachineFeature = ptr(string(a.Machine)), &mf
	case a.What == whatExec && a.Act == actControl:
		// Not nil: a token that is for certain commands must see that this is about one.
		t.Machine, t.Command = ptr(string(a.Machine)), append([]string{}, a.Command...)
	default:
		t.Machine = ptr(string(a.Machine))
	}
	return t, true
}

// orgAccess completes an access that is about no app.
func (d *directory) orgAccess(a access, t *token.Access) bool {
	if f, ok := orgFeatures[a.What]; ok {
		t.Feature = &f
		return true
	}
	switch a.What {
	case whatOrg:
		switch a.Act {
		case actRead:
		case actDelete:
			t.Feature = ptr(flyio.FeatureDeletion)
		default:
			t.Feature = ptr(featureSettings)
		}
	case whatApp:
		if a.Act == actCreate {
			t.AppID = ptr(uint64(0)) // as clients ask for what is not there yet
		}
	case whatMachine:
	default:
		return a.Act == actRead
	}
	return true
}

// sessionLives is asked by tokens that are bound to a session.
func (d *directory) sessionLives(id string) bool { return d.lives(id, now()) != nil }

func ptr[T any](v T) *T { return &v }

// withinToken asks the bounds of the caller's tokens, one of which must allow it, and have
// the session that the organization wants of it.
func (c *Controller) withinToken(who caller, a access) error {
	if who.Kind != callerPerson {
		return nil
	}
	var first error
	for _, v := range who.verified {
		err := c.wantsSSO(who, v, a)
		if err == nil {
			err = who.within(c.directory, v, a)
		}
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	if first == nil {
		first = fault.New(fault.Denied, "the token may do nothing")
	}
	return first
}

func (who caller) within(d *directory, v *token.Verified, a access) error {
	rec := d.token(v.ID)
	if rec == nil { // since the request was let in
		return refusedToken(&token.Refusal{Reason: token.Revoked, Detail: "the token was revoked"})
	}
	if rec.Org != "" && a.Org != rec.Org && a.What != whatSelf && a.What != whatPlatform && a.What != whatAny {
		return fault.New(fault.Denied, "the token is good for one organization alone")
	}
	var err error
	if a.What == whatPlatform || a.What == whatAny {
		err = v.Holds(&token.Access{At: now(), From: who.From, Live: d.sessionLives})
	} else {
		t, ok := d.tokenAccess(a)
		if !ok {
			return fault.New(fault.Denied, "the token may not %s: %s", a.Act, a.What)
		}
		t.From = who.From
		err = v.Allows(t)
	}
	return refusedToken(err)
}

// refusedToken is the answer to a token that is not good, or not for this.
func refusedToken(err error) error {
	if err == nil {
		return nil
	}
	r := refusalOf(err)
	switch {
	case r == nil:
		return err
	case r.Known():
		return fault.Wrap(fault.Denied, r, "%s", r.Detail)
	}
	f := fault.Wrap(fault.Unauthenticated, r, "%s: %s", errToken.Msg, r.Detail)
	if r.Reason == token.NoDischarge || r.Reason == token.DischargeExpired {
		return f.WithStatus(string(r.Reason)) // clients fetch one
	}
	return f
}
