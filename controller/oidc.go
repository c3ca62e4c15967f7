package controller

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"bulkhead/audit"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/store"
	"bulkhead/workload"
)

// Identity tokens of Machines: package workload's issuer, with its keys in the store.

// issuerKeys is what is kept of the issuer: its keys, wrapped by the cluster key.
type issuerKeys struct {
	Keys workload.Keys `json:"keys"`
}

// stepEvery is how often the issuer looks whether its keys are due. It is less than
// workload.MaxAge: what another controller has changed is known here before anybody
// may count on it.
const stepEvery = time.Minute

// issuer signs identity tokens. Its keys in memory are at most stepEvery old.
type issuer struct {
	c     *Controller
	ready chan struct{} // closed when there is a key
	once  sync.Once

	mu     sync.Mutex
	keys   workload.Keys
	public []byte           // the key set, as published
	signer *workload.Signer // of the key that signed last
}

func newIssuer(c *Controller) *issuer { return &issuer{c: c, ready: make(chan struct{})} }

// run keeps the keys on their schedule until ctx ends.
func (i *issuer) run(ctx context.Context) error {
	wait := time.NewTimer(0)
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wait.C:
		}
		next := stepEvery
		if err := i.step(ctx, now()); err != nil && ctx.Err() == nil {
			i.c.log.Error("the keys of identity tokens cannot be kept on their schedule; it is tried again", "err", err)
			next = time.Second
		}
		wait.Reset(next)
	}
}

// step reads the keys and does what is due.
func (i *issuer) step(ctx context.Context, at time.Time) error {
	return i.change(ctx, func(ks workload.Keys) (workload.Keys, error) {
		kept := ks.Kept(at)
		if from, due := kept.NextFrom(at); due {
			k, err := workload.NewKey(i.c.ring, at, from)
			if err != nil {
				return nil, err
			}
			i.c.log.Info("new key for identity tokens", "key", k.ID, "from", k.From)
			kept = append(kept, k)
		}
		return kept, nil
	})
}

// change reads the keys, lets f change them, and takes over what the store has then.
func (i *issuer) change(ctx context.Context, f func(workload.Keys) (workload.Keys, error)) error {
	return retry(ctx, func() error {
		is, rev, err := record.Get[issuerKeys](ctx, i.c.store, record.KeyIssuer)
		if err != nil {
			return err
		}
		if is == nil {
			is = &issuerKeys{}
		}
		wanted, err := f(is.Keys)
		if err != nil {
			return err
		}
		if !slices.EqualFunc(wanted, is.Keys, func(a, b workload.Key) bool { return a.ID == b.ID }) {
			if _, err := i.c.store.Txn(ctx, []store.Cond{record.At(record.KeyIssuer, rev)}, []store.Op{record.Put(record.KeyIssuer, issuerKeys{wanted})}); err != nil {
				return err
			}
		}
		return i.take(wanted)
	})
}

// take makes the keys those in use.
func (i *issuer) take(ks workload.Keys) error {
	public, err := ks.Publish()
	if err != nil {
		return err
	}
	i.mu.Lock()
	i.keys, i.public = ks, public
	i.mu.Unlock()
	i.once.Do(func() { close(i.ready) })
	return nil
}

// wait returns when there are keys.
func (i *issuer) wait(ctx context.Context) error {
	select {
	case <-i.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(10 * time.Second):
		return fault.New(fault.Unavailable, "the keys of identity tokens are not there yet; try again")
	}
}

// sign makes a token.
func (i *issuer) sign(ctx context.Context, org, aud string, claims workload.Claims, at time.Time) (string, error) {
	if err := i.wait(ctx); err != nil {
		return "", err
	}
	i.mu.Lock()
	k, err := i.keys.Current(at)
	s := i.signer
	i.mu.Unlock()
	if err != nil {
		return "", err
	}
	if s == nil || s.ID != k.ID {
		if s, err = workload.NewSigner(i.c.ring, k); err != nil {
			return "", err
		}
		i.mu.Lock()
		i.signer = s
		i.mu.Unlock()
	}
	return s.Sign(i.c.issuerURL(org), aud, claims, at)
}

// apiHost is where clients find the API: its name, and its port unless that is 443.
func (c *Controller) apiHost() string {
	host := "api." + c.cfg.Role.Domain
	if port := portOf(c.cfg.Role.HTTPSAddr); port != "" && port != "443" {
		host += ":" + port
	}
	return host
}

// issuerURL is the issuer of an organization's tokens.
func (c *Controller) issuerURL(org string) string { return "https://" + c.apiHost() + "/oidc/" + org }

// audience is a token's audience when none was asked for.
func (c *Controller) audience(org string) string { return "https://" + c.cfg.Role.Domain + "/" + org }

// identityToken is POST /v1/tokens/oidc: a token about the Machine that asks.
func (c *Controller) identityToken(r *call) (int, any, error) {
	var in struct {
		Audience string `json:"aud"`
		AWSTags  bool   `json:"aws_principal_tags"`
	}
	if err := r.read(&in, false); err != nil {
		return 0, nil, err
	}
	if err := workload.CheckAudience(in.Audience); err != nil {
		return 0, nil, err
	}
	claims, org, err := c.claimsOf(r.Context(), r.who.App, r.who.Machine)
	if err != nil {
		return 0, nil, err
	}
	if in.Audience == "" {
		in.Audience = c.audience(org)
	}
	if in.AWSTags {
		claims = claims.WithAWSTags()
	}
	r.pending.change(func(rec *audit.Record) { rec.Detail = "aud=" + fault.Clip(in.Audience) })
	token, err := c.issuer.sign(r.Context(), org, in.Audience, claims, now())
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, plainText(token), nil
}

// claimsOf is what a token says of a Machine: what the store says of it now.
func (c *Controller) claimsOf(ctx context.Context, name key.AppName, id key.MachineID) (workload.Claims, string, error) {
	rec, _, err := c.getMachine(ctx, string(name), string(id))
	if err != nil {
		return workload.Claims{}, "", err
	}
	if rec.Gone != nil || rec.Desired == machine.WantDestroyed {
		return workload.Claims{}, "", fault.New(fault.Conflict, "machine %s is being destroyed", id)
	}
	if err := c.awaitNewest(ctx, rec); err != nil {
		return workload.Claims{}, "", err
	}
	a, o := c.directory.App(name), c.directory.Org(rec.Org)
	if a == nil || o == nil {
		return workload.Claims{}, "", noApp(string(name))
	}
	ref := c.imageBody(rec.ImageRef)
	image := ref.Repository
	if ref.Registry != "" {
		image = ref.Registry + "/" + image
	}
	if ref.Tag != "" {
		image += ":" + ref.Tag
	}
	return workload.Claims{
		AppID: a.ID, AppName: string(a.Name), Image: image, ImageDigest: string(ref.Digest),
		MachineID: string(rec.ID), MachineName: rec.Name, MachineVersion: string(rec.Instance),
		OrgID: strconv.FormatInt(o.Number, 10), OrgName: o.Slug, Region: rec.Region,
	}, o.Slug, nil
}

// IssuerKey is one of the issuer's keys as operators see it.
type IssuerKey struct {
	ID    string    `json:"id"`
	State string    `json:"state"` // "next", "current" or "previous"
	From  time.Time `json:"from"`
	Made  time.Time `json:"made"`
}

// Issuer is what operators see of the issuer of identity tokens.
type Issuer struct {
	Issuer string      `json:"issuer"` // with {org} for the organization
	Keys   []IssuerKey `json:"keys"`   // the newest first
}

func (c *Controller) showIssuer(r *call) (int, any, error) {
	if err := c.issuer.wait(r.Context()); err != nil {
		return 0, nil, err
	}
	c.issuer.mu.Lock()
	defer c.issuer.mu.Unlock()
	out := Issuer{Issuer: c.issuerURL("{org}"), Keys: []IssuerKey{}}
	cur, err := c.issuer.keys.Current(now())
	if err != nil {
		return 0, nil, err
	}
	state := "next"
	for _, k := range slices.Backward(c.issuer.keys) {
		if k.ID == cur.ID {
			state = "current"
		}
		out.Keys = append(out.Keys, IssuerKey{ID: k.ID, State: state, From: k.From, Made: k.Made})
		if state == "current" {
			state = "previous"
		}
	}
	return http.StatusOK, out, nil
}

// rotateIssuer makes a new key sign soon. If the keys are compromised, it signs at once
// and the others are published no more: tokens that they have signed are good nowhere.
func (c *Controller) rotateIssuer(r *call) (int, any, error) {
	var in struct {
		Compromised bool `json:"compromised"`
	}
	if err := r.read(&in, false); err != nil {
		return 0, nil, err
	}
	at := now()
	from := at.Add(workload.SoonLead)
	if in.Compromised {
		from = at
	}
	k, err := workload.NewKey(c.ring, at, from)
	if err != nil {
		return 0, nil, err
	}
	err = c.issuer.change(r.Context(), func(ks workload.Keys) (workload.Keys, error) {
		if in.Compromised {
			return workload.Keys{k}, nil
		}
		// One that waits for its time has signed nothing; it would take over again.
		kept := slices.DeleteFunc(ks.Kept(at), func(o workload.Key) bool { return o.From.After(at) })
		return append(kept, k), nil
	})
	if err != nil {
		return 0, nil, err
	}
	c.log.Warn("the keys of identity tokens are rotated by hand", "key", k.ID, "from", k.From, "compromised", in.Compromised, "by", r.who.Name)
	return c.showIssuer(r)
}

// issuerDiscovery and issuerKeySet answer verifiers: the documents by which they find the
// keys. They are for everybody, and say nothing about which organizations there are.
func (c *Controller) issuerDiscovery(r *call) (int, any, error) {
	b, err := workload.Discovery(c.issuerURL(r.PathValue("org")))
	return r.document(b, err)
}

func (c *Controller) issuerKeySet(r *call) (int, any, error) {
	if err := c.issuer.wait(r.Context()); err != nil {
		return 0, nil, err
	}
	c.issuer.mu.Lock()
	b := c.issuer.public
	c.issuer.mu.Unlock()
	return r.document(b, nil)
}

// document answers with a document of the issuer's, which may be kept.
func (r *call) document(b []byte, err error) (int, any, error) {
	if !workload.ValidSlug(r.PathValue("org")) {
		return 0, nil, fault.New(fault.NotFound, "no such issuer")
	}
	if err != nil {
		return 0, nil, err
	}
	h := r.w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "public, max-age="+strconv.Itoa(int(workload.MaxAge/time.Second)))
	h.Set("Access-Control-Allow-Origin", "*")
	r.w.Write(b)
	return 0, nil, errAnswered
}
