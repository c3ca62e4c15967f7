package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"os"
	"strconv"
	"strings"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/limit"
)

// Media types of manifests.
const (
	ociManifest    = "application/vnd.oci.image.manifest.v1+json"
	ociIndex       = "application/vnd.oci.image.index.v1+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// maxParts bounds what one manifest may refer to.
const maxParts = 4096

// manifestShape bounds a manifest's JSON. A part has a few members, and annotations.
var manifestShape = limit.JSON{Depth: 16, Elements: 16 * maxParts}

// descriptor points at a part of an image.
type descriptor struct {
	MediaType    string            `json:"mediaType,omitempty"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	URLs         []string          `json:"urls,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	ArtifactType string            `json:"artifactType,omitempty"`
}

// document is what the registry reads of a manifest or an index.
type document struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        *descriptor       `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Manifests     []descriptor      `json:"manifests"`
	Subject       *descriptor       `json:"subject"`
	Annotations   map[string]string `json:"annotations"`

	isIndex bool
}

// blobs lists the blobs that the document refers to.
func (d *document) blobs() []descriptor {
	if d.isIndex {
		return nil
	}
	return append([]descriptor{*d.Config}, d.Layers...)
}

// manifest is a stored manifest.
type manifest struct {
	content   []byte
	mediaType string
	doc       *document
}

// manifestMeta is the content of a link below _manifests.
type manifestMeta struct {
	MediaType string `json:"media_type"`
}

// Manifest returns a manifest or an index of repo. reference is a tag or a digest.
// The content has been checked against the digest. Like a push, it keeps the manifest
// from GC for the grace time. NotFound if there is none.
func (r *Registry) Manifest(ctx context.Context, repo, reference string) (content []byte, mediaType string, d key.Digest, err error) {
	if err := checkRepo(repo); err != nil {
		return nil, "", "", err
	}
	if d, err = r.resolve(repo, reference); err != nil {
		return nil, "", "", err
	}
	if err := r.useManifest(repo, d); err != nil {
		return nil, "", "", err
	}
	m, err := r.readManifest(repo, d)
	if err != nil {
		return nil, "", "", err
	}
	return m.content, m.mediaType, d, nil
}

// useManifest marks a manifest that repo has as used now.
func (r *Registry) useManifest(repo string, d key.Digest) error {
	r.reach.RLock()
	defer r.reach.RUnlock()
	err := r.touch(manifestLink(repo, d.Hex()))
	if errors.Is(err, fs.ErrNotExist) {
		return refuse(404, "MANIFEST_UNKNOWN", "the registry has no image %s@%s; push it first", repo, d)
	}
	return err
}

// resolve turns a tag or a digest into a digest.
func (r *Registry) resolve(repo, reference string) (key.Digest, error) {
	if strings.Contains(reference, ":") {
		return parseDigest(reference)
	}
	if !tagRE.MatchString(reference) {
		return "", refuse(400, "TAG_INVALID", "a tag is at most 128 letters, digits, dots, dashes and underscores, and does not start with a dot or a dash")
	}
	b, err := r.disk.readFile(tagPath(repo, reference), 128)
	if errors.Is(err, fs.ErrNotExist) {
		return "", refuse(404, "MANIFEST_UNKNOWN", "the registry has no image %s:%s; push it first", repo, reference)
	}
	if err != nil {
		return "", err
	}
	return key.ParseDigest(string(b))
}

// readManifest reads a manifest that repo has and checks its content.
func (r *Registry) readManifest(repo string, d key.Digest) (*manifest, error) {
	meta, err := r.readMeta(repo, d)
	if err != nil {
		return nil, err
	}
	content, err := r.disk.readFile(blobPath(d.Hex()), r.cfg.MaxManifest)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s of %s: %w", d, repo, err)
	}
	if digestOf(content) != d {
		return nil, fault.New(fault.Internal, "manifest %s of %s is damaged on the registry's disk; push it again", d, repo)
	}
	doc, err := parseManifest(content, meta.MediaType)
	if err != nil {
		return nil, err
	}
	return &manifest{content: content, mediaType: meta.MediaType, doc: doc}, nil
}

// readMeta reads the link of a manifest.
func (r *Registry) readMeta(repo string, d key.Digest) (meta manifestMeta, err error) {
	b, err := r.disk.readFile(manifestLink(repo, d.Hex()), 4096)
	if errors.Is(err, fs.ErrNotExist) {
		return meta, refuse(404, "MANIFEST_UNKNOWN", "the registry has no image %s@%s; push it first", repo, d)
	}
	if err != nil {
		return meta, err
	}
	return meta, json.Unmarshal(b, &meta)
}

// digestOf returns the digest of b.
func digestOf(b []byte) key.Digest {
	sum := sha256.Sum256(b)
	return key.Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// parseManifest reads a manifest or an index and refuses what can be taken for both,
// and what refers to anything by a name that is no digest.
func parseManifest(content []byte, mediaType string) (*document, error) {
	bad := func(format string, args ...any) (*document, error) {
		return nil, refuse(400, "MANIFEST_INVALID", format, args...)
	}
	var d document
	// One name twice would let two readers see two images.
	if err := manifestShape.Check(content); err != nil {
		return bad("%s", fault.MessageOf(err))
	}
	if err := json.Unmarshal(content, &d); err != nil {
		return bad("the manifest is not JSON of the right form: %v", err)
	}
	switch mediaType {
	case ociIndex, dockerList:
		d.isIndex = true
	case ociManifest, dockerManifest:
	default:
		return bad("Content-Type %.100q is not one of a manifest that this registry takes: OCI image manifests and indexes, Docker schema 2", mediaType)
	}
	if d.SchemaVersion != 2 {
		return bad("schemaVersion is %d, not 2", d.SchemaVersion)
	}
	if d.MediaType != "" && d.MediaType != mediaType {
		return bad("mediaType in the manifest is %.100q, but Content-Type is %q", d.MediaType, mediaType)
	}
	if d.isIndex && (d.Config != nil || d.Layers != nil) {
		return bad("an index has neither config nor layers")
	}
	if !d.isIndex && (d.Manifests != nil || d.Config == nil) {
		return bad("an image manifest has a config and no manifests")
	}
	parts := append(d.Manifests, d.Layers...)
	if len(parts) > maxParts {
		return bad("the manifest refers to %d parts; the limit is %d", len(parts), maxParts)
	}
	for _, one := range []*descriptor{d.Config, d.Subject} {
		if one != nil {
			parts = append(parts, *one)
		}
	}
	for _, p := range parts {
		if _, err := key.ParseDigest(p.Digest); err != nil {
			return bad("%s", fault.MessageOf(err))
		}
		if p.Size < 0 {
			return bad("the size of %s is negative", p.Digest)
		}
	}
	return &d, nil
}

// getManifest answers GET and HEAD.
func (r *Registry) getManifest(w http.ResponseWriter, req *http.Request, t target) error {
	content, mediaType, d, err := r.Manifest(req.Context(), t.repo, t.ref)
	if err != nil {
		return err
	}
	if req.Method == http.MethodHead {
		switch whole, err := r.whole(t.repo, d); {
		case err != nil:
			return err
		case !whole:
			return refuse(404, "MANIFEST_UNKNOWN", "parts of manifest %s of %s are gone; push it again", d, t.repo)
		}
	}
	h := w.Header()
	h.Set("Docker-Content-Digest", string(d))
	etag := `"` + string(d) + `"`
	h.Set("Etag", etag)
	h.Set("Cache-Control", "private, no-cache")
	if req.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	h.Set("Content-Type", mediaType)
	h.Set("Content-Length", strconv.Itoa(len(content)))
	if req.Method != http.MethodHead {
		w.Write(content)
	}
	return nil
}

// putManifest stores a manifest whose parts are all there.
func (r *Registry) putManifest(w http.ResponseWriter, req *http.Request, t target) error {
	body, done := r.body(w, req)
	content, err := io.ReadAll(http.MaxBytesReader(w, io.NopCloser(body), r.cfg.MaxManifest))
	done()
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return refuse(413, "MANIFEST_INVALID", "the manifest is larger than %d bytes", r.cfg.MaxManifest)
		}
		return refuse(400, "MANIFEST_INVALID", "the connection ended before the whole manifest had come: %w", err)
	}
	mediaType, _, _ := mime.ParseMediaType(req.Header.Get("Content-Type"))
	doc, err := parseManifest(content, mediaType)
	if err != nil {
		return err
	}
	d, tag := digestOf(content), t.ref
	if strings.Contains(t.ref, ":") {
		want, err := parseDigest(t.ref)
		if err != nil {
			return err
		}
		if want != d {
			return refuse(400, "DIGEST_INVALID", "the manifest has digest %s, not %s as the address says", d, want)
		}
		tag = ""
	} else if !tagRE.MatchString(tag) {
		return refuse(400, "TAG_INVALID", "a tag is at most 128 letters, digits, dots, dashes and underscores, and does not start with a dot or a dash")
	}
	if err := r.disk.room(int64(len(content)), r.cfg.MinFree); err != nil {
		return err
	}
	if err := r.storeManifest(req, t.repo, tag, d, &manifest{content, mediaType, doc}); err != nil {
		return err
	}
	if doc.Subject != nil {
		w.Header().Set("OCI-Subject", doc.Subject.Digest)
	}
	w.Header().Set("Location", "/v2/"+t.repo+"/manifests/"+string(d))
	w.Header().Set("Docker-Content-Digest", string(d))
	w.WriteHeader(http.StatusCreated)
	return nil
}

// storeManifest checks that the parts are there and writes, in this order: content,
// entry under the subject, link, tag. If we die before the link, nothing shows but
// garbage; if we die before the tag, the manifest is there by its digest and the tag
// means what it meant.
func (r *Registry) storeManifest(req *http.Request, repo, tag string, d key.Digest, m *manifest) error {
	defer r.lockRepo(repo)()
	r.reach.RLock()
	defer r.reach.RUnlock()
	if err := r.stillMay(req, repo); err != nil {
		return err
	}
	if err := r.checkParts(repo, m.doc); err != nil {
		return err
	}
	if err := r.disk.writeFile(blobPath(d.Hex()), m.content); err != nil {
		return err
	}
	if err := r.touch(blobPath(d.Hex())); err != nil {
		return err
	}
	if s := m.doc.Subject; s != nil {
		p := referrer(repo, key.Digest(s.Digest).Hex(), d.Hex())
		if err := r.disk.link(p); err != nil {
			return err
		}
		if err := r.touch(p); err != nil {
			return err
		}
	}
	meta, err := json.Marshal(manifestMeta{m.mediaType})
	if err != nil {
		return err
	}
	link := manifestLink(repo, d.Hex())
	if err := r.disk.writeFile(link, meta); err != nil {
		return err
	}
	if err := r.touch(link); err != nil {
		return err
	}
	if tag == "" {
		return nil
	}
	return r.disk.writeFile(tagPath(repo, tag), []byte(d))
}

// missingParts is the refusal of a manifest some of whose parts are not there.
type missingParts struct{ digests []string }

func (m *missingParts) Error() string {
	return fmt.Sprintf("the manifest refers to %d parts that were not pushed, such as %s", len(m.digests), m.digests[0])
}

func (m *missingParts) entries() []errorEntry {
	var list []errorEntry
	for _, d := range m.digests {
		list = append(list, errorEntry{"MANIFEST_BLOB_UNKNOWN", "the manifest refers to " + d + ", which was not pushed to this repository", map[string]string{"digest": d}})
	}
	return list
}

// checkParts checks that repo has what the document refers to, at the size that it
// says, and marks it as used. A subject need not be there. A layer that is to be
// fetched from elsewhere (urls) need not be there either. The caller holds reach.
func (r *Registry) checkParts(repo string, doc *document) error {
	var missing missingParts
	check := func(p descriptor, link string) error {
		hex := key.Digest(p.Digest).Hex()
		info, err := os.Stat(r.disk.path(blobPath(hex)))
		if err == nil {
			err = r.touch(link)
		}
		if err == nil {
			err = r.touch(blobPath(hex))
		}
		if errors.Is(err, fs.ErrNotExist) {
			if len(p.URLs) == 0 {
				missing.digests = append(missing.digests, p.Digest)
			}
			return nil
		}
		if err == nil && info.Size() != p.Size {
			return refuse(400, "SIZE_INVALID", "the manifest says that %s has %d bytes; it has %d", p.Digest, p.Size, info.Size())
		}
		return err
	}
	for _, p := range doc.blobs() {
		if err := check(p, blobLink(repo, key.Digest(p.Digest).Hex())); err != nil {
			return err
		}
	}
	for _, p := range doc.Manifests {
		if err := check(p, manifestLink(repo, key.Digest(p.Digest).Hex())); err != nil {
			return err
		}
	}
	if len(missing.digests) > 0 {
		return &missing
	}
	return nil
}
