package controller

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"strings"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/store"
)

// caller is who makes a request.
type caller struct {
	// Name goes into leases and logs; it is no secret.
	Name string
	// Org is the organization the caller belongs to.
	Org string
}

// action is what a caller wants to do to an object.
type action string

// The actions there are.
const (
	actRead    action = "read"    // see it
	actWrite   action = "write"   // change it
	actCreate  action = "create"  // make one inside it
	actDelete  action = "delete"  // remove it
	actControl action = "control" // start, stop, signal it, run commands in it
)

// object is what an action is about. Empty fields mean: not about one.
type object struct {
	Org     string
	App     key.AppName
	Machine key.MachineID
}

// authorize is the only place that decides whether a known caller may do something.
// Its refusal is Denied. The one caller there is, the admin, may do everything in
// its own organization.
func authorize(_ context.Context, who caller, act action, on object) error {
	if who.Name == "" || who.Org == "" {
		return fault.New(fault.Denied, "the token may do nothing")
	}
	if on.Org != "" && on.Org != who.Org {
		return fault.New(fault.Denied, "the token may not %s in organization %q", act, on.Org)
	}
	return nil
}

// errToken is the answer to every request without a good token.
var errToken = fault.New(fault.Unauthenticated, "Authenticate: token validation error")

// tokenPrefix starts every token, so that scanners for leaked secrets know it.
const tokenPrefix = "bh_"

// newToken returns a token of 256 random bits.
func newToken() string {
	var b [32]byte
	rand.Read(b[:])
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b[:])
}

// authenticate says whose token it is. The comparison takes the same time whatever
// the token is.
func (c *Controller) authenticate(ctx context.Context, token string) (caller, error) {
	if token == "" {
		return caller{}, errToken
	}
	t, _, err := get[adminToken](ctx, c.store, keyAdminToken)
	if err != nil {
		return caller{}, err
	}
	sum := sha256.Sum256([]byte(token))
	if t == nil || subtle.ConstantTimeCompare(sum[:], t.SHA256) != 1 {
		return caller{}, errToken
	}
	return caller{Name: "admin", Org: orgPersonal}, nil
}

// tokenOf takes the token from a request: "Bearer" or "FlyV1", as clients send it.
func tokenOf(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") && !strings.EqualFold(scheme, "FlyV1") {
		return ""
	}
	return strings.TrimSpace(token)
}

// mintToken makes a new admin token and replaces the old one, which is refused from
// then on. With onlyFirst it makes one only if there is none, and otherwise is a
// Conflict.
func (c *Controller) mintToken(ctx context.Context, onlyFirst bool) (string, error) {
	token := newToken()
	sum := sha256.Sum256([]byte(token))
	err := retry(ctx, func() error {
		t, rev, err := get[adminToken](ctx, c.store, keyAdminToken)
		if err != nil {
			return err
		}
		if t != nil && onlyFirst {
			return fault.New(fault.Conflict, "there is an admin token already, and it cannot be shown again; ask for a new one without if_none, which replaces it")
		}
		_, err = c.store.Txn(ctx, []store.Cond{at(keyAdminToken, rev)}, []store.Op{
			put(keyAdminToken, adminToken{SHA256: sum[:], CreatedAt: now()}),
		})
		return err
	})
	if err != nil {
		return "", err
	}
	return token, nil
}

// authorizeRegistry is the registry's question: may the bearer of token pull from
// repo, or push to it? A repository belongs to the app that its first part names.
func (c *Controller) authorizeRegistry(ctx context.Context, token, repo string, push bool) error {
	who, err := c.authenticate(ctx, token)
	if err != nil || repo == "" {
		return err
	}
	owner, _, _ := strings.Cut(repo, "/")
	a, _, err := c.getApp(ctx, owner)
	if fault.Is(err, fault.NotFound) {
		return fault.New(fault.Denied, "repository %q belongs to no app: the part before the first slash is the app's name; create the app first", repo)
	}
	if err != nil {
		return err
	}
	if a.Deleting && push {
		return fault.New(fault.Denied, "app %q is being deleted", a.Name)
	}
	act := actRead
	if push {
		act = actWrite
	}
	return authorize(ctx, who, act, object{Org: a.Org, App: a.Name})
}
