package controller

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"strings"

	"bulkhead/controller/access"
	"bulkhead/fault"
	"bulkhead/token"
)

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
func (c *Controller) whoCalls(req *http.Request) (access.Caller, error) {
	conn := callingMachine(req.Context())
	if conn == nil {
		return c.authenticate(req.Context(), tokenOf(req))
	}
	select {
	case <-c.directory.Loaded():
	case <-req.Context().Done():
		return access.Caller{}, req.Context().Err()
	}
	if err := c.voice(req.Context(), conn.node, conn.app, conn.machine); err != nil { // it may have lost it since it connected
		return access.Caller{}, err
	}
	return access.Caller{Kind: access.ByMachine, Name: "machine " + string(conn.machine), App: conn.app, Machine: conn.machine}, nil
}

// authenticate says whose token it is. Secrets are compared in the same time whatever
// they are.
func (c *Controller) authenticate(ctx context.Context, text string) (access.Caller, error) {
	if text == "" {
		c.metrics.refused(token.Missing)
		return access.Caller{}, access.ErrToken
	}
	select {
	case <-c.directory.Loaded():
	case <-ctx.Done():
		return access.Caller{}, ctx.Err()
	}
	if t, ok := strings.CutPrefix(text, claimPrefix); ok {
		return c.authenticateClaim(t)
	}
	who, err := c.bearer(text)
	if err != nil {
		c.metrics.refused(token.ReasonOf(err))
		return access.Caller{}, access.RefusedToken(err)
	}
	return who, nil
}

// bearer knows the user of a header's tokens.
func (c *Controller) bearer(text string) (access.Caller, error) {
	b, err := token.Parse(text)
	if err != nil {
		return access.Caller{}, err
	}
	good, err := c.directory.RootKeys().Verify(b, now())
	if err != nil {
		return access.Caller{}, err
	}
	return access.Standing(c.directory, good)
}

// authenticateClaim knows a one-time token: an invitation's or the installation's. It does
// not ask the store: a stranger who sends many costs it nothing.
func (c *Controller) authenticateClaim(t string) (access.Caller, error) {
	id, secret, ok := strings.Cut(t, ".")
	if !ok || !claimRE.MatchString(id) {
		return access.Caller{}, access.ErrToken
	}
	cl := c.directory.Claim(id)
	sum := sha256.Sum256([]byte(secret))
	if cl == nil || subtle.ConstantTimeCompare(sum[:], cl.SHA256) != 1 || !access.Spendable(c.directory, cl) {
		return access.Caller{}, access.ErrToken
	}
	return access.Caller{Kind: access.ByClaim, Name: "claim " + cl.ID, Claim: cl}, nil
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
	who, err := c.identify(text, from, func() (access.Caller, error) { return c.authenticate(ctx, text) })
	if r != nil {
		r.who = who
	}
	if err == nil {
		known(ctx, who)
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
	act := access.Read
	if push {
		act = access.Write
	}
	on := access.Request{Act: act, What: access.Image, Org: a.Org, App: a.Name}
	if err := c.authorize(who, on); err != nil {
		c.metrics.refused(token.ReasonOf(err))
		return err
	}
	if open != nil {
		open.watch(who, on)
	}
	return imageChange(ctx, a)
}

// authorize decides about a call of the API: see access.Authorize.
func (c *Controller) authorize(who access.Caller, a access.Request) error {
	return access.Authorize(c.directory, who, a)
}

// operator reports whether the caller is an operator's own.
func (c *Controller) operator(who access.Caller) bool { return access.Operator(c.directory, who) }
