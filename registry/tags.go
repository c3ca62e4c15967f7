package registry

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"sort"
	"strconv"
	"strings"

	"bulkhead/fault"
	"bulkhead/key"
)

// Pages of the lists.
const (
	maxTagsPage      = 1000
	maxReferrersPage = 200
)

// deleteManifest removes a tag, or a manifest with all its tags.
func (r *Registry) deleteManifest(w http.ResponseWriter, req *http.Request, t target) error {
	d, err := r.resolve(t.repo, t.ref)
	if err != nil {
		return err
	}
	unlock := r.lockRepo(t.repo)
	defer unlock()
	r.reach.RLock()
	defer r.reach.RUnlock()
	if !strings.Contains(t.ref, ":") {
		if err := r.removeFrom("repos/"+t.repo+"/_tags", t.ref); err != nil {
			return err
		}
		w.WriteHeader(http.StatusAccepted)
		return nil
	}
	if _, err := r.readMeta(t.repo, d); err != nil {
		return err
	}
	if err := r.removeManifest(t.repo, d); err != nil {
		return err
	}
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// removeManifest removes a manifest from repo: its tags first, so that no tag ever
// means a manifest that is not there; then the link, and last the entry under its
// subject, which counts for nothing without the link. The caller holds the
// repository's lock.
func (r *Registry) removeManifest(repo string, d key.Digest) error {
	tags, err := r.tagsOf(repo, d)
	if err != nil {
		return err
	}
	if err := r.removeFrom("repos/"+repo+"/_tags", tags...); err != nil {
		return err
	}
	subject := ""
	if m, err := r.readManifest(repo, d); err == nil && m.doc.Subject != nil {
		subject = key.Digest(m.doc.Subject.Digest).Hex()
	}
	if err := r.removeFrom("repos/"+repo+"/_manifests", d.Hex()); err != nil {
		return err
	}
	if subject == "" {
		return nil
	}
	return r.removeFrom(referrersDir(repo, subject), d.Hex())
}

// removeFrom removes files from a directory and makes that durable.
func (r *Registry) removeFrom(dir string, names ...string) error {
	if len(names) == 0 {
		return nil
	}
	for _, n := range names {
		if err := r.disk.remove(dir + "/" + n); err != nil {
			return err
		}
	}
	if err := r.disk.syncDir(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil // the whole repository was removed meanwhile
}

// tagsOf lists the tags of repo that mean d.
func (r *Registry) tagsOf(repo string, d key.Digest) ([]string, error) {
	all, err := r.disk.names("repos/" + repo + "/_tags")
	if err != nil {
		return nil, err
	}
	var tags []string
	for _, tag := range all {
		got, err := r.resolve(repo, tag)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return nil, err
		}
		if got == d {
			tags = append(tags, tag)
		}
	}
	return tags, nil
}

// getTags lists tags, ?n= of them after ?last=.
func (r *Registry) getTags(w http.ResponseWriter, req *http.Request, t target) error {
	there, err := r.disk.exists("repos/" + t.repo)
	if err != nil {
		return err
	}
	if !there {
		return refuse(404, "NAME_UNKNOWN", "the registry has no repository %s", t.repo)
	}
	tags, err := r.disk.names("repos/" + t.repo + "/_tags")
	if err != nil {
		return err
	}
	q := req.URL.Query()
	n := maxTagsPage
	if s := q.Get("n"); s != "" {
		if n, err = strconv.Atoi(s); err != nil || n < 0 {
			return refuse(400, "PAGINATION_NUMBER_INVALID", "n must be a number that is not negative")
		}
		n = min(n, maxTagsPage)
	}
	page, more := pageAfter(tags, q.Get("last"), n)
	if more {
		next := url.Values{"n": {strconv.Itoa(n)}, "last": {page[len(page)-1]}}
		setNext(w, "/v2/"+t.repo+"/tags/list", next)
	}
	return writeJSON(w, "application/json", map[string]any{"name": t.repo, "tags": page})
}

// pageAfter returns at most n of the sorted names that come after last, and whether
// there are more. The page is never nil.
func pageAfter(names []string, last string, n int) (page []string, more bool) {
	if last != "" {
		names = names[sort.Search(len(names), func(i int) bool { return names[i] > last }):]
	}
	page = append([]string{}, names[:min(n, len(names))]...)
	return page, len(page) > 0 && len(names) > len(page)
}

// setNext sets the Link header to the next page.
func setNext(w http.ResponseWriter, path string, query url.Values) {
	w.Header().Set("Link", fmt.Sprintf(`<%s?%s>; rel="next"`, path, query.Encode()))
}

// getReferrers lists the manifests whose subject is the digest, as an index. An
// unknown digest has none.
func (r *Registry) getReferrers(w http.ResponseWriter, req *http.Request, t target) error {
	subject, err := parseDigest(t.ref)
	if err != nil {
		return err
	}
	hexes, err := r.disk.names(referrersDir(t.repo, subject.Hex()))
	if err != nil {
		return err
	}
	q := req.URL.Query()
	page, more := pageAfter(hexes, q.Get("last"), maxReferrersPage)
	index := struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Manifests     []descriptor `json:"manifests"`
	}{2, ociIndex, []descriptor{}}
	filter := q.Get("artifactType")
	for _, hex := range page {
		d, err := r.describeReferrer(t.repo, key.Digest("sha256:"+hex))
		if fault.Is(err, fault.NotFound) {
			continue // its push has not got as far as the link, or died before
		}
		if err != nil {
			return err
		}
		if filter == "" || d.ArtifactType == filter {
			index.Manifests = append(index.Manifests, d)
		}
	}
	if filter != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	if more {
		next := url.Values{"last": {page[len(page)-1]}}
		if filter != "" {
			next.Set("artifactType", filter)
		}
		setNext(w, "/v2/"+t.repo+"/referrers/"+string(subject), next)
	}
	return writeJSON(w, ociIndex, index)
}

// describeReferrer makes the descriptor of a manifest as the list of referrers has
// it.
func (r *Registry) describeReferrer(repo string, d key.Digest) (descriptor, error) {
	m, err := r.readManifest(repo, d)
	if err != nil {
		return descriptor{}, err
	}
	artifact := m.doc.ArtifactType
	if m.doc.Config != nil {
		artifact = cmp.Or(artifact, m.doc.Config.MediaType)
	}
	return descriptor{
		MediaType: m.mediaType, Digest: string(d), Size: int64(len(m.content)),
		ArtifactType: artifact, Annotations: m.doc.Annotations,
	}, nil
}
