package controller

import (
	"context"
	"encoding/json"
	"io"
	"sync"

	"google.golang.org/grpc"

	"bulkhead/api/internalpb"
	"bulkhead/api/rpc"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
)

// chunkSize is how much of a blob one message carries, in bytes.
const chunkSize = 256 << 10

// reservations are the images that workers are being asked about by Reserve: for as
// long as the question takes, a worker may look at the image as if the Machine were
// its own already.
type reservations struct {
	mu  sync.Mutex
	all map[reservation]key.Digest
}

type reservation struct {
	node    key.Node
	machine key.MachineID
	repo    string
}

// hold lets a worker look at an image until the returned function is called.
func (r *reservations) hold(k reservation, d key.Digest) (release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all[k] = d
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.all, k)
	}
}

func (r *reservations) get(k reservation) (key.Digest, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d, ok := r.all[k]
	return d, ok
}

// assignedImages returns the digests of a repository of the cluster's registry that
// the calling worker may have for a Machine: that of the Machine's image, if it is
// assigned to the worker, and that of one it is being asked about. Everything else
// is Denied: a worker learns nothing of what is not its own.
func (c *Controller) assignedImages(ctx context.Context, machineID, repo string) ([]key.Digest, error) {
	who, err := rpc.Peer(ctx)
	if err != nil {
		return nil, err
	}
	denied := fault.New(fault.Denied, "node %s has no machine %q with an image of %q", who.Node, fault.Clip(machineID), fault.Clip(repo))
	id, err := key.ParseMachineID(machineID)
	if err != nil {
		return nil, denied
	}
	var out []key.Digest
	if d, ok := c.reserved.get(reservation{who.Node, id, repo}); ok {
		out = append(out, d)
	}
	a, _, err := record.Get[record.Assigned](ctx, c.store, record.NodeKey(who.Node, id))
	if err != nil {
		return nil, err
	}
	if a == nil {
		if len(out) > 0 {
			return out, nil
		}
		c.log.Warn("a worker asked for an image of a machine that is not its own", "worker", who.Node, "machine", id)
		return nil, denied
	}
	r, _, err := record.Get[record.Machine](ctx, c.store, record.MachineKey(a.App, id))
	if err != nil {
		return nil, err
	}
	if r != nil && r.ImageRef.Registry == "" && r.ImageRef.Repository == repo {
		out = append(out, r.ImageRef.Digest)
	}
	if len(out) == 0 {
		return nil, denied
	}
	return out, nil
}

// parts is what of a manifest decides which digests belong to an image.
type parts struct {
	Manifests []descriptor `json:"manifests"`
	Config    *descriptor  `json:"config"`
	Layers    []descriptor `json:"layers"`
}

type descriptor struct {
	Digest key.Digest `json:"digest"`
}

// closures remembers which digests belong to an image. Manifests never change, so
// an entry is never wrong; at most maxClosures are kept.
type closures struct {
	mu  sync.Mutex
	all map[string]map[key.Digest]bool
}

const (
	maxClosures   = 256
	maxSubImages  = 64 // images that an index may name
	maxDescribed  = 4096
	errTooComplex = "the image names more than 64 images or 4096 parts"
)

// closure returns the digests that belong to a Machine's image: its manifest, the
// manifests that an index names, and all their parts.
func (c *Controller) closure(ctx context.Context, repo string, root key.Digest) (map[key.Digest]bool, error) {
	k := repo + "@" + string(root)
	c.closures.mu.Lock()
	known := c.closures.all[k]
	c.closures.mu.Unlock()
	if known != nil {
		return known, nil
	}
	out := map[key.Digest]bool{root: true}
	todo := []key.Digest{root}
	for i := 0; i < len(todo); i++ {
		if len(todo) > maxSubImages || len(out) > maxDescribed {
			return nil, fault.New(fault.Unprocessable, errTooComplex)
		}
		content, _, _, err := c.registry.Manifest(ctx, repo, string(todo[i]))
		if fault.Is(err, fault.NotFound) && i > 0 {
			continue // an index may name images that were not pushed
		}
		if err != nil {
			return nil, err
		}
		var p parts
		if err := json.Unmarshal(content, &p); err != nil {
			return nil, fault.New(fault.Unprocessable, "manifest %s is not JSON", todo[i])
		}
		for _, m := range p.Manifests {
			if !out[m.Digest] {
				out[m.Digest] = true
				todo = append(todo, m.Digest)
			}
		}
		if p.Config != nil {
			out[p.Config.Digest] = true
		}
		for _, l := range p.Layers {
			out[l.Digest] = true
		}
	}
	c.closures.mu.Lock()
	defer c.closures.mu.Unlock()
	if len(c.closures.all) >= maxClosures {
		clear(c.closures.all)
	}
	c.closures.all[k] = out
	return out, nil
}

// partOf checks that a digest belongs to the image of one of the caller's Machines.
func (c *Controller) partOf(ctx context.Context, machineID, repo, digest string) (key.Digest, error) {
	images, err := c.assignedImages(ctx, machineID, repo)
	if err != nil {
		return "", err
	}
	d, err := key.ParseDigest(digest)
	if err != nil {
		return "", err
	}
	for _, image := range images {
		of, err := c.closure(ctx, repo, image)
		if err != nil {
			return "", err
		}
		if of[d] {
			return d, nil
		}
	}
	return "", fault.New(fault.Denied, "%s is not part of machine %s's image", d, machineID)
}

// FetchManifest implements internalpb.ControllerServer.
func (s internalServer) FetchManifest(ctx context.Context, in *internalpb.FetchManifestRequest) (*internalpb.FetchManifestResponse, error) {
	d, err := s.c.partOf(ctx, in.MachineId, in.Repository, in.Digest)
	if err != nil {
		return nil, err
	}
	content, mediaType, _, err := s.c.registry.Manifest(ctx, in.Repository, string(d))
	if err != nil {
		return nil, err
	}
	return &internalpb.FetchManifestResponse{MediaType: mediaType, Content: content}, nil
}

// FetchBlob implements internalpb.ControllerServer.
func (s internalServer) FetchBlob(in *internalpb.FetchBlobRequest, stream grpc.ServerStreamingServer[internalpb.BlobChunk]) error {
	ctx := stream.Context()
	d, err := s.c.partOf(ctx, in.MachineId, in.Repository, in.Digest)
	if err != nil {
		return err
	}
	blob, size, err := s.c.registry.OpenBlob(ctx, in.Repository, d)
	if err != nil {
		return err
	}
	defer blob.Close()
	if in.Offset < 0 || in.Offset > size {
		return fault.New(fault.Invalid, "offset %d of a blob of %d bytes", in.Offset, size)
	}
	if _, err := blob.Seek(in.Offset, io.SeekStart); err != nil {
		return err
	}
	buf := make([]byte, chunkSize)
	for {
		n, err := io.ReadFull(blob, buf)
		if n > 0 {
			if err := stream.Send(&internalpb.BlobChunk{Data: buf[:n]}); err != nil {
				return err
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// IssueServerCertificate implements internalpb.ControllerServer. An edge gets
// certificates for the names of apps that exist, and for no other name.
func (s internalServer) IssueServerCertificate(ctx context.Context, in *internalpb.IssueServerCertificateRequest) (*internalpb.IssueServerCertificateResponse, error) {
	name, err := key.ParseAppName(in.App)
	if err != nil {
		return nil, fault.New(fault.NotFound, "app %q not found", fault.Clip(in.App))
	}
	a, _, err := s.c.getApp(ctx, string(name))
	if err != nil {
		return nil, err
	}
	if a.Deleting {
		return nil, fault.New(fault.NotFound, "app %s is being deleted", name)
	}
	chain, err := s.c.ca.IssueServer(in.CsrDer, string(name)+"."+s.c.cfg.Role.Domain)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the certificate request cannot be signed")
	}
	return &internalpb.IssueServerCertificateResponse{ChainDer: chain}, nil
}
