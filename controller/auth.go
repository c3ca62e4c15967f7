package controller

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"net/netip"
	"strings"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/token"
)

// callerKind is what sort of caller there is.
type callerKind string

const (
	callerPerson  callerKind = "person"  // a user's token
	callerMachine callerKind = "machine" // a Machine, over its own socket
	callerClaim   callerKind = "claim"   // a one-time token, good for becoming a user
)

// caller is who makes a request.
type caller struct {
	Kind callerKind
	// Name goes into leases, logs and the audit log; it is no secret.
	Name string
	User key.UserID // of a person
	// Token is the record of the token, or of the first of several, and verified are those
	// that are good, whose caveats narrow what the user may: one of them must allow it.
	Token    *tokenRecord
	verified []*token.Verified
	From     netip.Addr // where the request came from; FromAddress asks
	// App and Machine are those of a Machine.
	App     key.AppName
	Machine key.MachineID
	Claim   *claim // of a claim
}

// errToken is the answer to every request without a good token.
var errToken = fault.New(fault.Unauthenticated, "Authenticate: token validation error")

// claimPrefix starts one-time tokens, so that scanners for leaked secrets know them. The
// others start with token.Prefix.
const claimPrefix = "bh_"

// newSecret returns 256 random bits as text.
func newSecret() string {
	var b [32]byte
	rand.Read(b[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// whoCalls says who makes a request. What comes from inside a Machine is that Machine's,
// whatever token it sends: one that it has got from elsewhere is of no use there.
func (c *Controller) whoCalls(req *http.Request) (caller, error) {
	conn := callingMachine(req.Context())
	if conn == nil {
		return c.authenticate(req.Context(), tokenOf(req))
	}
	select {
	case <-c.directory.loaded:
	case <-req.Context().Done():
		return caller{}, req.Context().Err()
	}
	return caller{Kind: callerMachine, Name: "machine " + string(conn.machine), App: conn.app, Machine: conn.machine}, nil
}

// authenticate says whose token it is. Secrets are compared in the same time whatever
// they are.
func (c *Controller) authenticate(ctx context.Context, text string) (caller, error) {
	if text == "" {
		c.metrics.refused(token.Missing)
		return caller{}, errToken
	}
	select {
	case <-c.directory.loaded:
	case <-ctx.Done():
		return caller{}, ctx.Err()
	}
	if t, ok := strings.CutPrefix(text, claimPrefix); ok {
		return c.authenticateClaim(t)
	}
	who, err := c.bearer(text)
	if err != nil {
		c.metrics.refused(token.ReasonOf(err))
		return caller{}, refusedToken(err)
	}
	return who, nil
}

// bearer knows the user of a header's tokens.
func (c *Controller) bearer(text string) (caller, error) {
	b, err := token.Parse(text)
	if err != nil {
		return caller{}, err
	}
	good, err := c.directory.rootKeys().Verify(b, now())
	if err != nil {
		return caller{}, err
	}
	return c.directory.standing(good)
}

// authenticateClaim knows a one-time token: an invitation's or the installation's. It does
// not ask the store: a stranger who sends many costs it nothing.
func (c *Controller) authenticateClaim(t string) (caller, error) {
	id, secret, ok := strings.Cut(t, ".")
	if !ok || !claimRE.MatchString(id) {
		return caller{}, errToken
	}
	cl := c.directory.claim(id)
	sum := sha256.Sum256([]byte(secret))
	if cl == nil || subtle.ConstantTimeCompare(sum[:], cl.SHA256) != 1 || !c.directory.good(cl) {
		return caller{}, errToken
	}
	return caller{Kind: callerClaim, Name: "claim " + cl.ID, Claim: cl}, nil
}

// tokenOf takes the token from a request: "Bearer" or "FlyV1", as clients send it.
func tokenOf(r *http.Request) string {
	scheme, text, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") && !strings.EqualFold(scheme, "FlyV1") {
		return ""
	}
	return strings.TrimSpace(text)
}

// authorizeRegistry is the registry's question: may the bearer of token pull from
// repo, or push to it? A repository belongs to the app that its first part names.
func (c *Controller) authorizeRegistry(ctx context.Context, text, repo string, push bool) error {
	r, _ := ctx.Value(callKey{}).(*call)
	from := ""
	if r != nil {
		from = r.RemoteAddr
	}
	who, err := c.identify(text, from, func() (caller, error) { return c.authenticate(ctx, text) })
	if r != nil {
		r.who = who
	}
	if err != nil || repo == "" {
		return err
	}
	open, _ := ctx.Value(openKey{}).(*openRequest)
	if open != nil {
		who.From = open.from
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
	on := access{Act: act, What: whatImage, Org: a.Org, App: a.Name}
	if err := c.authorize(who, on); err != nil {
		c.metrics.refused(token.ReasonOf(err))
		return err
	}
	if open != nil {
		open.watch(who, on)
	}
	return imageChange(ctx, a)
}
