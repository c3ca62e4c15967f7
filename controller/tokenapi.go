package controller

import (
	"encoding/json"
	"net/http"
	"slices"

	"github.com/superfly/macaroon"
	"github.com/superfly/macaroon/flyio"
	"github.com/superfly/macaroon/flyio/machinesapi"
	"github.com/superfly/macaroon/resset"

	"bulkhead/controller/access"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/token"
)

// verifiedToken is a token that is good, as the Machines API answers it.
type verifiedToken struct {
	Header string `json:"header"`
	Nonce  struct {
		KID   []byte `json:"kid"`
		Rnd   []byte `json:"rnd"`
		Proof bool   `json:"proof"`
	} `json:"nonce"`
	PermissionToken []byte              `json:"permission_token"`
	Caveats         *macaroon.CaveatSet `json:"caveats"`
}

func verifiedBody(v *token.Verified) verifiedToken {
	out := verifiedToken{Header: token.Header(v.Text), PermissionToken: v.Raw, Caveats: v.Caveats}
	out.Nonce.KID, out.Nonce.Rnd = v.Nonce.KID, v.Nonce.Rnd
	return out
}

// maxQuestion bounds the body of a question: a header, and what it shall be good for.
const maxQuestion = 64 << 10

// inBody reads a header out of a body, and knows whose its tokens are as if they had come
// in a header. Whoever holds a token may ask about it: no other is needed.
func (c *Controller) inBody(r *call, in any, header *string) (access.Caller, error) {
	r.Body = http.MaxBytesReader(r.w, r.Body, maxQuestion)
	if err := r.read(in, true); err != nil {
		return access.Caller{}, err
	}
	select {
	case <-c.directory.Loaded():
	case <-r.Context().Done():
		return access.Caller{}, r.Context().Err()
	}
	who, err := c.bearer(*header)
	if err != nil {
		c.metrics.refused(token.ReasonOf(err))
		return access.Caller{}, access.RefusedToken(err)
	}
	who.From = r.from()
	return who, nil
}

// authenticateTokens verifies the tokens of a header and says what their caveats are.
//
//	POST /v1/tokens/authenticate {"header": "FlyV1 fm2_…"}
func (c *Controller) authenticateTokens(r *call) (int, any, error) {
	var in struct {
		Header string `json:"header"`
	}
	who, err := c.inBody(r, &in, &in.Header)
	if err != nil {
		return 0, nil, err
	}
	out := []verifiedToken{}
	for _, v := range who.Verified {
		body := verifiedBody(v)
		if _, err := json.Marshal(body.Caveats); err != nil {
			continue // a caveat that nobody here knows: it allows nothing
		}
		out = append(out, body)
	}
	return http.StatusOK, out, nil
}

// authorizeTokens says whether the tokens of a header allow something, now: by their
// caveats, and by what their user may.
//
//	POST /v1/tokens/authorize {"header": "FlyV1 fm2_…", "access": {"action": "r", "app_name": "hello"}}
func (c *Controller) authorizeTokens(r *call) (int, any, error) {
	var in struct {
		Header string `json:"header"`
		Access *struct {
			machinesapi.Access
			Action string `json:"action"` // the library's own takes letters that there are not for none
		} `json:"access"`
	}
	who, err := c.inBody(r, &in, &in.Header)
	if err != nil {
		return 0, nil, err
	}
	if in.Access == nil {
		return 0, nil, fault.New(fault.Invalid, "access is missing")
	}
	asked := in.Access.Access
	acts, err := letters(in.Access.Action)
	if err != nil {
		return 0, nil, err
	}
	asked.Action = resset.ActionFromString(in.Access.Action) & resset.ActionAll
	on, want, err := c.resolveAccess(r, who, &asked)
	if err != nil {
		return 0, nil, err
	}
	v, err := access.AuthorizeAccess(c.directory, who, acts, on, want)
	if err != nil {
		c.metrics.refused(token.ReasonOf(err))
		return 0, nil, access.RefusedToken(err)
	}
	return http.StatusOK, struct {
		Access        *flyio.Access `json:"access"`
		VerifiedToken verifiedToken `json:"verified_token"`
	}{&want.Access, verifiedBody(v)}, nil
}

// letters reads the action of an access. None asks whether the token has to do with the
// object at all.
func letters(s string) ([]access.Action, error) {
	all := map[rune][]access.Action{
		'r': {access.Read}, 'w': {access.Write}, 'c': {access.Create}, 'd': {access.Delete}, 'C': {access.Control},
		'*': {access.Read, access.Write, access.Create, access.Delete, access.Control},
	}
	var out []access.Action
	for _, l := range s {
		if all[l] == nil || l == '*' && len(s) > 1 {
			return nil, fault.New(fault.Invalid, "access.action is %q; it is made of r, w, c, d and C, or is *", fault.Clip(s))
		}
		out = append(out, all[l]...)
	}
	if len(out) == 0 {
		out = append(out, access.Read)
	}
	return out, nil
}

// resolveAccess finds what an access names, by name and by number.
func (c *Controller) resolveAccess(r *call, who access.Caller, in *machinesapi.Access) (access.Request, *token.Access, error) {
	on, want := access.Request{What: access.Org}, &token.Access{Access: flyio.Access{
		Action: in.Action, AppFeature: in.AppFeature, Feature: in.OrgFeature, MachineFeature: in.MachineFeature, Command: in.Command,
		Mutation: in.Mutation, SourceMachine: in.SourceMachine, StorageObject: in.StorageObject, Machine: in.MachineID, Volume: in.VolumeID,
	}}
	fail := func(err error) (access.Request, *token.Access, error) { return access.Request{}, nil, err }
	if in.VolumeID != nil || in.StorageObject != nil {
		return fail(fault.New(fault.Invalid, "access: there are no volumes and no storage objects here"))
	}
	app, slug := in.AppName, in.OrgSlug
	missing := func() error { return noApp(*app) }
	if in.MachineID != nil {
		missing = func() error { return noMachine(*in.MachineID) }
		id, err := key.ParseMachineID(*in.MachineID)
		if err != nil {
			return fail(err)
		}
		at, _, err := record.Get[record.Place](r.Context(), c.store, record.IDKey(id))
		if err != nil {
			return fail(err)
		}
		// A token that is good for one app says nothing about another app's Machine.
		if at == nil || app != nil && *app != string(at.App) {
			return fail(missing())
		}
		app = new(string(at.App))
	}
	if app != nil {
		a := c.directory.App(key.AppName(*app))
		// An object of another organization gets the same answer as one that does not exist.
		if a == nil || slug != nil && *slug != a.Org || c.mayAskAbout(who, a.Org) != nil {
			return fail(missing())
		}
		on.App, on.What, slug = a.Name, access.App, &a.Org
		want.AppID, want.AppName = new(uint64(a.Number)), string(a.Name)
	}
	if slug == nil {
		return fail(fault.New(fault.Invalid, "access names no org_slug, app_name or machine_id"))
	}
	if err := c.mayAskAbout(who, *slug); err != nil {
		return fail(err)
	}
	o := c.directory.Org(*slug)
	if o == nil {
		return fail(access.NoOrg(*slug))
	}
	on.Org, want.OrgID = o.Slug, new(uint64(o.Number))
	if in.MachineID != nil {
		on.Machine, on.What = key.MachineID(*in.MachineID), access.Machine
	}
	if err := nameFeature(&on, in); err != nil {
		return fail(err)
	}
	if err := want.Validate(); err != nil {
		return fail(fault.New(fault.Invalid, "access: %v", err))
	}
	return on, want, nil
}

// mayAskAbout refuses who has nothing to do with an organization, in the same words whether
// there is one or not.
func (c *Controller) mayAskAbout(who access.Caller, slug string) error {
	if c.operator(who) || who.Allowed(c.directory, access.Request{Act: access.Read, What: access.Org, Org: slug}) {
		return nil
	}
	return fault.New(fault.Denied, "the token's user has nothing to do with that organization, or there is none")
}

// nameFeature says which kind of thing of ours a feature is, for what roles may.
func nameFeature(on *access.Request, in *machinesapi.Access) error {
	find := func(field string, name *string, kind func(feature string) (access.Kind, bool)) error {
		if name == nil {
			return nil
		}
		k, ok := kind(*name)
		if !ok {
			return fault.New(fault.Invalid, "access.%s is %q, which there is not here", field, fault.Clip(*name))
		}
		on.What = k
		return nil
	}
	if in.Command != nil {
		on.What, on.Command = access.Exec, in.Command
	}
	if in.OrgFeature != nil && slices.Contains(openFeatures, *in.OrgFeature) {
		on.What = access.App // who may make apps may use what goes with them
		return nil
	}
	if err := find("org_feature", in.OrgFeature, access.KindOfOrgFeature); err != nil {
		return err
	}
	if err := find("app_feature", in.AppFeature, access.KindOfAppFeature); err != nil {
		return err
	}
	return find("machine_feature", in.MachineFeature, access.KindOfMachineFeature)
}

// openFeatures are the organization's features that ordinary members have.
var openFeatures = []string{flyio.FeatureWireGuard, flyio.FeatureDomains, flyio.FeatureSites, flyio.FeatureRemoteBuilders, flyio.FeatureAddOns, flyio.FeatureChecks}

// CurrentToken is what a caller is told of a token that it uses.
type CurrentToken struct {
	TokenID             key.TokenID `json:"token_id"`
	Organization        string      `json:"organization"`
	OrgSlug             string      `json:"org_slug"`
	Apps                []string    `json:"apps"`
	User                string      `json:"user"`
	SourceMachineID     string      `json:"source_machine_id"`
	RestrictedToMachine string      `json:"restricted_to_machine"`
}

// currentTokens says what the caller's tokens are for.
//
//	GET /v1/tokens/current
func (c *Controller) currentTokens(r *call) (int, any, error) {
	out := struct {
		Tokens []CurrentToken `json:"tokens"`
	}{Tokens: []CurrentToken{}}
	for _, v := range r.who.Verified {
		rec := c.directory.Token(v.ID)
		if rec == nil {
			continue
		}
		t := CurrentToken{TokenID: v.ID, User: r.who.Name, Apps: []string{}}
		if n, err := flyio.OrganizationScope(v.Caveats); err == nil {
			// Whoever holds a token can write any number into it: what there is of the number is
			// told to those who may see it.
			if o := c.directory.OrgNumbered(int64(n)); o != nil && r.who.Allowed(c.directory, access.Request{Act: access.Read, What: access.Org, Org: o.Slug}) {
				t.Organization, t.OrgSlug = o.Name, o.Slug
				only, names := flyio.AppScope(v.Caveats), macaroon.GetCaveats[*token.AppNames](v.Caveats)
				for _, a := range c.directory.AppsIn(o.Slug) {
					if !r.who.Allowed(c.directory, access.Request{Act: access.Read, What: access.App, Org: o.Slug, App: a.Name}) {
						continue
					}
					named := len(names) > 0
					for _, n := range names {
						named = named && slices.Contains(n.Names, string(a.Name))
					}
					if slices.Contains(only, uint64(a.Number)) && (named || len(names) == 0) || only == nil && named {
						t.Apps = append(t.Apps, string(a.Name))
					}
				}
			}
		}
		for _, m := range macaroon.GetCaveats[*flyio.FromMachine](v.Caveats) {
			t.RestrictedToMachine = m.ID
		}
		out.Tokens = append(out.Tokens, t)
	}
	return http.StatusOK, out, nil
}
