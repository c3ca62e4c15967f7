package access

import (
	"context"
	"slices"
	"testing"
	"time"

	"bulkhead/controller/directory"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/store"
	"bulkhead/store/fake"
)

// kinds are all there are, and acts too.
var (
	kinds = []Kind{
		App, Machine, Metadata, Exec, Logs, Image, Secret, SecretKey, SecretKeyUse, OIDC,
		Org, Member, Owner, OwnToken, Tokens, SSO, Audit, Metrics,
		Self, Account, Any, Platform, Cluster, Claim, PlatformMetrics,
	}
	acts = []Action{Read, Write, Create, Delete, Control}
)

// TestWhatRolesMay tries every act on every kind of thing for every role, in one's own
// organization, another's, and for one app and its neighbour, without HTTP: who may is in the
// table, and nobody else may. The table's own control is TestRightsAreDocumented.
func TestWhatRolesMay(t *testing.T) {
	d := people(t)
	for _, r := range record.Roles {
		for _, k := range kinds {
			for _, a := range acts {
				inTable := slices.Contains(rights[k][a], r)
				everybodys := k == Self || k == Account || k == Any || k == Platform && a == Read
				try := func(who key.UserID, org string, app key.AppName, want bool) {
					t.Helper()
					got := Caller{Kind: ByPerson, User: who}.Allowed(d, Request{Act: a, What: k, Org: org, App: app})
					if exists := d.User(who) != nil; got != (exists && (want || everybodys)) {
						t.Errorf("%s, %s: %s of %q %q: %v", who, a, k, org, app, got)
					}
				}
				of := slices.Contains(ofApp, k)
				// A member of the organization has the role for each of its apps.
				try(key.UserID(r), "acme", "", inTable)
				try(key.UserID(r), "acme", "shop", inTable)
				try(key.UserID(r), "other", "", false)
				try(key.UserID(r), "other", "else", false)
				try(key.UserID(r), "acme", "else", false) // another's app, under one's own name
				try(key.UserID(r), "", "shop", false)
				// A role for one app says something of that app alone.
				try("app-"+key.UserID(r), "acme", "shop", inTable && of)
				try("app-"+key.UserID(r), "acme", "blog", false)
				try("app-"+key.UserID(r), "acme", "", k == Org && a == Read || k == OwnToken)
				try("gone-"+key.UserID(r), "acme", "", false)
			}
		}
	}
}

// TestStrangersMayNothing: a caller of no kind, one whose user there is not, a Machine of
// another app, and a Machine about another, at every act.
func TestStrangersMayNothing(t *testing.T) {
	d := people(t)
	tried := 0
	for _, k := range kinds {
		for _, a := range acts {
			on := Request{Act: a, What: k, Org: "acme", App: "shop", Machine: "m1"}
			for name, who := range map[string]Caller{
				"nobody":                   {},
				"an unknown kind":          {Kind: "root", User: key.UserID(record.Owner)},
				"a user there is not":      {Kind: ByPerson, User: "ghost"},
				"a person without a token": {Kind: ByPerson, User: key.UserID(record.Owner)},
				"another app's machine":    {Kind: ByMachine, App: "blog", Machine: "m1"},
				"another machine":          {Kind: ByMachine, App: "shop", Machine: "m2"},
				"a machine without an id":  {Kind: ByMachine, App: "shop"},
				"a claim":                  {Kind: ByClaim},
			} {
				err := Authorize(d, who, on)
				allowed := who.Kind == ByMachine && k == Platform && a == Read || who.Kind == ByClaim && k == Claim && a == Create
				if (err == nil) != allowed || err != nil && !fault.Is(err, fault.Denied) {
					t.Errorf("%s, %s: %s: %v", name, a, k, err)
				}
				tried++
			}
			self := Caller{Kind: ByMachine, App: "shop", Machine: "m1"}
			want := k == Platform && a == Read || slices.Contains(ofMachine[k], a)
			if err := Authorize(d, self, on); (err == nil) != want {
				t.Errorf("a machine about itself, %s: %s: %v", a, k, err)
			}
		}
	}
	t.Logf("%d refusals", tried)
}

// people is a directory of two organizations, acme with a member of each role, and one of
// each for the app shop alone; those called gone are members that are no users any more.
func people(t *testing.T) *directory.Directory {
	t.Helper()
	s := fake.New()
	ops := []store.Op{
		record.Put(record.OrgKey("acme"), record.Org{Slug: "acme", Number: 1}),
		record.Put(record.OrgKey("other"), record.Org{Slug: "other", Number: 2}),
		record.Put(record.AppKey("shop"), record.App{Name: "shop", Org: "acme", Number: 1}),
		record.Put(record.AppKey("blog"), record.App{Name: "blog", Org: "acme", Number: 2}),
		record.Put(record.AppKey("else"), record.App{Name: "else", Org: "other", Number: 3}),
	}
	for _, r := range record.Roles {
		for _, m := range []record.Member{
			{User: key.UserID(r), Role: r},
			{User: "app-" + key.UserID(r), Apps: map[key.AppName]record.Role{"shop": r}},
			{User: "gone-" + key.UserID(r), Role: r},
		} {
			m.Org = "acme"
			ops = append(ops, record.Put(record.MemberKey("acme", m.User), m))
			if m.User[0] != 'g' {
				ops = append(ops, record.Put(record.UserKey(m.User), record.User{ID: m.User, Name: string(m.User)}))
			}
		}
	}
	if _, err := s.Txn(t.Context(), nil, ops); err != nil {
		t.Fatal(err)
	}
	d := directory.New(time.Now, func(string, []byte) ([]byte, error) { return nil, nil })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); d.Run(ctx, s) }()
	t.Cleanup(func() { cancel(); <-done })
	<-d.Loaded()
	return d
}
