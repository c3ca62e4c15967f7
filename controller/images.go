package controller

import (
	"context"
	"encoding/json"
	"net"
	"strings"

	"bulkhead/api/internalpb"
	"bulkhead/controller/access"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
)

// registryHost is the name of the cluster's own registry.
func (c *Controller) registryHost() string { return "registry." + c.cfg.Role.Domain }

// ownImage is a reference to an image of the cluster's own registry.
type ownImage struct {
	repo, tag string
	digest    key.Digest
}

// reference is the tag or the digest; the digest counts when there are both.
func (i ownImage) reference() string {
	if i.digest != "" {
		return string(i.digest)
	}
	return i.tag
}

// parseOwn takes a reference apart if it is to the cluster's own registry, with or
// without a port; own is false for any other, which the worker understands.
func (c *Controller) parseOwn(ref string) (img ownImage, own bool, err error) {
	host, rest, found := strings.Cut(ref, "/")
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if !found || !strings.EqualFold(host, c.registryHost()) {
		return img, false, nil
	}
	if name, digest, found := strings.Cut(rest, "@"); found {
		if img.digest, err = key.ParseDigest(digest); err != nil {
			return img, true, err
		}
		rest = name
	}
	img.repo, img.tag, _ = strings.Cut(rest, ":")
	if img.tag == "" && img.digest == "" {
		img.tag = "latest"
	}
	if img.repo == "" {
		return img, true, fault.New(fault.Invalid, "config.image %q names no repository", fault.Clip(ref))
	}
	return img, true, nil
}

// reserve asks the worker whether it can take a Machine of this config, and what
// its image is. For an image of the cluster's own registry it first finds what the
// tag means now: that stays so for the version, however the tag moves.
func (c *Controller) reserve(ctx context.Context, n key.Node, id key.MachineID, a *record.App, conf *machine.Config) (machine.ImageRef, error) {
	var ref machine.ImageRef
	img, own, err := c.parseOwn(conf.Image)
	if err != nil {
		return ref, err
	}
	encoded, err := json.Marshal(conf)
	if err != nil {
		return ref, err
	}
	req := &internalpb.ReserveRequest{MachineId: string(id), App: string(a.Name), Config: encoded}
	if own {
		if err := c.mayUse(ctx, a, img.repo); err != nil {
			return ref, err
		}
		content, _, digest, err := c.registry.Manifest(ctx, img.repo, img.reference())
		if fault.Is(err, fault.NotFound) {
			return ref, fault.New(fault.Unprocessable, "image %s is not in the registry; push it first", fault.Clip(conf.Image))
		}
		if err != nil {
			return ref, err
		}
		req.Digest, req.Repository, req.Manifest = string(digest), img.repo, content
		defer c.reserved.hold(reservation{n, id, img.repo}, digest)()
	}
	w, wctx, cancel, err := c.worker(ctx, n, reserveLimit)
	if err != nil {
		return ref, err
	}
	defer cancel()
	resp, err := w.Reserve(wctx, req)
	if err != nil {
		return ref, err
	}
	if err := json.Unmarshal(resp.ImageRef, &ref); err != nil {
		return ref, fault.Wrap(fault.Internal, err, "the worker's answer about the image cannot be read")
	}
	if own {
		// What the worker says of an image that it has not seen yet changes nothing of
		// what was resolved here.
		ref.Registry, ref.Repository, ref.Tag, ref.Digest = "", img.repo, img.tag, key.Digest(req.Digest)
	} else if ref.Registry == "" {
		return ref, fault.New(fault.Internal, "the worker did not say which registry has %s", fault.Clip(conf.Image))
	}
	return ref, nil
}

// mayUse allows an app the images of its own repository, and those of other apps of
// its organization. An image is the owner's app's: the first part of its name.
func (c *Controller) mayUse(ctx context.Context, a *record.App, repo string) error {
	owner, _, _ := strings.Cut(repo, "/")
	if owner == string(a.Name) {
		return nil
	}
	o, _, err := c.getApp(ctx, owner)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	// Who may not read the other app's images must not run them either.
	r, _ := ctx.Value(callKey{}).(*call)
	if o == nil || o.Org != a.Org || o.Deleting || r == nil || c.authorize(r.who, access.Request{Act: access.Read, What: access.Image, Org: o.Org, App: o.Name}) != nil {
		return fault.New(fault.Unprocessable, "app %s may not use images of the repository %q: it belongs to no app of its organization whose images you may read", a.Name, fault.Clip(repo))
	}
	return nil
}
