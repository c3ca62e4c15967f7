package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/privnet"
)

// Remote fetches images from registries elsewhere, without credentials, over HTTPS;
// over plain HTTP only from loopback. Whoever may deploy chooses the registry's
// name, so a Guard decides what it connects to: a name or a redirect that leads to
// loopback, a private network, a cloud's metadata service or this host is refused when
// the connection is made, whatever the DNS said before. Proxies from the environment are
// not used.
type Remote struct {
	Limits Limits

	transport http.RoundTripper
}

// NewRemote returns a Remote.
func NewRemote(guard privnet.Guard) *Remote {
	r := &Remote{}
	dialer := &net.Dialer{Timeout: 10 * time.Second, Control: guard.Control(func(err error) error {
		return fmt.Errorf("%w: %w", errRefused, err)
	})}
	r.transport = httpsOnly{steady{&http.Transport{
		DialContext:           dialer.DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		IdleConnTimeout:       30 * time.Second,
		MaxIdleConnsPerHost:   4,
		ForceAttemptHTTP2:     true,
	}}}
	return r
}

// errRefused is the cause of a refused connection.
var errRefused = errors.New("the registry's address is refused")

// httpsOnly refuses plain HTTP to anything but loopback, redirects included.
type httpsOnly struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (h httpsOnly) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !isLoopback(req.URL.Hostname()) {
		return nil, fmt.Errorf("plain HTTP to %s is refused; registries must offer HTTPS", fault.Clip(req.URL.Host))
	}
	return h.next.RoundTrip(req)
}

func isLoopback(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// Resolve finds what an image reference such as "nginx:1.27" or
// "ghcr.io/owner/name@sha256:…" names now: the digest of the manifest for this
// node's platform, verified, and that manifest. Errors: Invalid for a malformed
// reference, NotFound, Denied when the registry wants credentials, Unprocessable for
// an image of another platform, Unavailable when the registry cannot be reached.
func (r *Remote) Resolve(ctx context.Context, ref string) (machine.ImageRef, []byte, error) {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return machine.ImageRef{}, nil, fault.Wrap(fault.Invalid, err, "%q is not an image reference such as nginx:1.27 or ghcr.io/owner/name@sha256:…", fault.Clip(ref))
	}
	s := r.source(parsed.Context())
	out := machine.ImageRef{Registry: parsed.Context().RegistryStr(), Repository: parsed.Context().RepositoryStr()}
	var digest key.Digest
	switch p := parsed.(type) {
	case name.Digest:
		digest, err = key.ParseDigest(p.DigestStr())
	case name.Tag:
		out.Tag = p.TagStr()
		digest, err = s.tag(ctx, p)
	}
	if err != nil {
		return machine.ImageRef{}, nil, err
	}
	_, digest, err = fetchManifest(ctx, s, digest, r.Limits.withDefaults())
	if err != nil {
		return machine.ImageRef{}, nil, err
	}
	raw, _, err := s.Manifest(ctx, digest)
	out.Digest = digest
	return out, raw, err
}

// Source returns the repository that ref names as a Source. It holds a registry's
// anonymous token and connections, so that one Source serves one image's fetching.
func (r *Remote) Source(ref machine.ImageRef) (Source, error) {
	repo, err := name.NewRepository(ref.Registry + "/" + ref.Repository)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "%q is not a repository", fault.Clip(ref.Registry+"/"+ref.Repository))
	}
	return r.source(repo), nil
}

func (r *Remote) source(repo name.Repository) *remoteSource {
	// NewPuller fails for contradictory options alone.
	p, err := remote.NewPuller(remote.WithTransport(r.transport), remote.WithAuth(authn.Anonymous), remote.WithUserAgent("bulkhead"))
	return &remoteSource{repo: repo, puller: p, err: err, cache: make(map[key.Digest]cached)}
}

// remoteSource is one repository. It is used by one goroutine at a time.
type remoteSource struct {
	repo   name.Repository
	puller *remote.Puller
	err    error
	cache  map[key.Digest]cached // the few manifests of one image
}

type cached struct {
	raw       []byte
	mediaType types.MediaType
}

// tag finds what a tag points to.
func (s *remoteSource) tag(ctx context.Context, ref name.Tag) (key.Digest, error) {
	return s.get(ctx, ref)
}

// get fetches a manifest into the cache and returns its digest.
func (s *remoteSource) get(ctx context.Context, ref name.Reference) (key.Digest, error) {
	if s.err != nil {
		return "", s.err
	}
	d, err := s.puller.Get(ctx, ref)
	if err != nil {
		return "", remoteError(ref.String(), err)
	}
	digest := digestOf(d.Manifest)
	s.cache[digest] = cached{d.Manifest, d.MediaType}
	return digest, nil
}

// Manifest implements Source.
func (s *remoteSource) Manifest(ctx context.Context, digest key.Digest) ([]byte, string, error) {
	if _, ok := s.cache[digest]; !ok {
		if _, err := s.get(ctx, s.repo.Digest(string(digest))); err != nil {
			return nil, "", err
		}
	}
	c, ok := s.cache[digest]
	if !ok {
		return nil, "", bad(digest, "the registry's manifest has another digest")
	}
	return c.raw, string(c.mediaType), nil
}

// Blob implements Source.
func (s *remoteSource) Blob(ctx context.Context, digest key.Digest, _ int64) (io.ReadCloser, error) {
	if s.err != nil {
		return nil, s.err
	}
	ref := s.repo.Digest(string(digest))
	l, err := s.puller.Layer(ctx, ref)
	if err != nil {
		return nil, remoteError(ref.String(), err)
	}
	r, err := l.Compressed()
	if err != nil {
		return nil, remoteError(ref.String(), err)
	}
	return r, nil
}

// remoteError gives a registry's refusal its kind.
func remoteError(ref string, err error) error {
	var te *transport.Error
	if errors.As(err, &te) {
		switch te.StatusCode {
		case http.StatusNotFound:
			return fault.Wrap(fault.NotFound, err, "there is no image %s", fault.Clip(ref))
		case http.StatusUnauthorized, http.StatusForbidden:
			// Registries answer so for what does not exist, too.
			return fault.Wrap(fault.Denied, err, "image %s does not exist, or its registry wants credentials", fault.Clip(ref))
		case http.StatusTooManyRequests:
			return fault.Wrap(fault.Unavailable, err, "the registry of %s says that it is asked too often; try again later", fault.Clip(ref))
		}
	}
	if errors.Is(err, errRefused) {
		return fault.Wrap(fault.Denied, err, "the registry of %s is not on a public address", fault.Clip(ref))
	}
	return fault.Wrap(fault.Unavailable, err, "the registry of %s cannot be reached", fault.Clip(ref))
}
