package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"bulkhead/fault"
	"bulkhead/image/platform"
	"bulkhead/image/wire"
	"bulkhead/key"
)

// Inspection is what an image's manifest and configuration say, verified.
type Inspection struct {
	Digest     key.Digest // of this platform's manifest
	Config     Config
	Compressed int64 // bytes of the layers as they are fetched

	layers  []layer
	diffIDs []string
}

// layer is one layer of a manifest.
type layer struct {
	digest      key.Digest
	size        int64
	compression wire.Compression
}

// Inspect fetches and verifies the manifest and the configuration of an image, not
// its layers. A digest of an index leads to its image for this node's platform.
// The error is Unprocessable for an image that cannot run here, with the reason, and
// otherwise the Source's.
func Inspect(ctx context.Context, src Source, digest key.Digest, limits Limits) (*Inspection, error) {
	limits = limits.withDefaults()
	m, digest, err := fetchManifest(ctx, src, digest, limits)
	if err != nil {
		return nil, err
	}
	ins := &Inspection{Digest: digest}
	if len(m.Layers) > limits.Layers {
		return nil, bad(digest, "has %d layers; %d are allowed", len(m.Layers), limits.Layers)
	}
	for i, d := range m.Layers {
		l, err := parseLayer(d)
		if err != nil {
			return nil, bad(digest, "layer %d: %v", i+1, err)
		}
		ins.Compressed += l.size
		if l.size > limits.Unpacked || ins.Compressed > limits.Unpacked {
			return nil, bad(digest, "its layers are larger than %d bytes", limits.Unpacked)
		}
		ins.layers = append(ins.layers, l)
	}
	return ins, ins.readConfig(ctx, src, m.Config, limits)
}

// manifest is an image manifest or an index; a document that is both is refused.
type manifest struct {
	SchemaVersion int              `json:"schemaVersion"`
	MediaType     string           `json:"mediaType"`
	Config        *v1.Descriptor   `json:"config"`
	Layers        []v1.Descriptor  `json:"layers"`
	Manifests     *[]v1.Descriptor `json:"manifests"`
	FSLayers      json.RawMessage  `json:"fsLayers"`
}

// Media types of manifests.
const (
	ociManifest    = "application/vnd.oci.image.manifest.v1+json"
	ociIndex       = "application/vnd.oci.image.index.v1+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// fetchManifest returns the image manifest that digest leads to, and its digest.
func fetchManifest(ctx context.Context, src Source, digest key.Digest, limits Limits) (*manifest, key.Digest, error) {
	const maxNesting = 2
	for range maxNesting {
		raw, mediaType, err := src.Manifest(ctx, digest)
		if err != nil {
			return nil, "", asFault(err, "the manifest %s cannot be fetched", digest)
		}
		if int64(len(raw)) > limits.Manifest {
			return nil, "", bad(digest, "its manifest is %d bytes long; %d are allowed", len(raw), limits.Manifest)
		}
		if got := digestOf(raw); got != digest {
			return nil, "", bad(digest, "its manifest has the digest %s", got)
		}
		m, err := parseManifest(raw, mediaType)
		if err != nil {
			return nil, "", bad(digest, "%v", err)
		}
		if m.Manifests == nil {
			return m, digest, nil
		}
		next, err := choose(*m.Manifests)
		if err != nil {
			return nil, "", fault.New(fault.Unprocessable, "image %s %v", digest, err)
		}
		digest = next
	}
	return nil, "", bad(digest, "its index leads to another index")
}

// parseManifest parses a manifest or an index.
func parseManifest(raw []byte, mediaType string) (*manifest, error) {
	var m manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("its manifest is malformed: %v", err)
	}
	if m.FSLayers != nil || m.SchemaVersion == 1 {
		return nil, fmt.Errorf("its manifest is of the old schema 1; push it again with a current tool")
	}
	if m.SchemaVersion != 2 {
		return nil, fmt.Errorf("its manifest has schemaVersion %d; it must be 2", m.SchemaVersion)
	}
	// One document that is an index to one reader and an image to another is an attack.
	isIndex, isImage := m.Manifests != nil, m.Config != nil || m.Layers != nil
	if isIndex == isImage {
		return nil, fmt.Errorf("its manifest must have either config and layers or manifests")
	}
	if isImage && m.Config == nil {
		return nil, fmt.Errorf("its manifest has no config")
	}
	mediaType, _, _ = strings.Cut(mediaType, ";")
	for _, mt := range []string{m.MediaType, mediaType} {
		switch mt {
		case "", "application/json":
		case ociManifest, dockerManifest:
			if isIndex {
				return nil, fmt.Errorf("its manifest is an index, but has the media type %s", mt)
			}
		case ociIndex, dockerList:
			if isImage {
				return nil, fmt.Errorf("its manifest is an image's, but has the media type %s", mt)
			}
		default:
			return nil, fmt.Errorf("its manifest has the media type %q, which is not an image's", fault.Clip(mt))
		}
	}
	return &m, nil
}

// choose picks the manifest for this node's processor from an index.
func choose(all []v1.Descriptor) (key.Digest, error) {
	best, others := platform.Choose(all, []string{runtime.GOARCH}, nil)
	switch {
	case len(best) > 0:
		return descriptorDigest(best[0])
	case len(others) == 0:
		return "", fmt.Errorf("is an index without an image")
	}
	return "", fmt.Errorf("is for %s; this node runs linux/%s", fault.Clip(strings.Join(others, ", ")), runtime.GOARCH)
}

func descriptorDigest(d v1.Descriptor) (key.Digest, error) {
	dg, err := key.ParseDigest(d.Digest.String())
	if err != nil {
		return "", fmt.Errorf("names the digest %q; only sha256 is supported", fault.Clip(d.Digest.String()))
	}
	return dg, nil
}

// parseLayer checks the descriptor of a layer.
func parseLayer(d v1.Descriptor) (layer, error) {
	dg, err := descriptorDigest(d)
	if err != nil {
		return layer{}, err
	}
	if d.Size < 0 {
		return layer{}, fmt.Errorf("its size is %d", d.Size)
	}
	l := layer{digest: dg, size: d.Size}
	switch d.MediaType {
	case "application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar":
		l.compression = wire.Plain
	case "application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip":
		l.compression = wire.Gzip
	case "application/vnd.oci.image.layer.v1.tar+zstd", "application/vnd.docker.image.rootfs.diff.tar.zstd":
		l.compression = wire.Zstd
	default:
		mt := string(d.MediaType)
		if strings.Contains(mt, "nondistributable") || strings.Contains(mt, "foreign") {
			return layer{}, fmt.Errorf("it is a foreign layer, which no registry holds; build the image without it")
		}
		if _, how, ok := strings.Cut(mt, ".tar+"); ok {
			return layer{}, fmt.Errorf("it is compressed with %q, which is not supported; use gzip or zstd", fault.Clip(how))
		}
		return layer{}, fmt.Errorf("its media type %q is not a layer's", fault.Clip(mt))
	}
	return l, nil
}

// configFile is an image configuration as OCI and Docker write it.
type configFile struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Config       struct {
		Env          []string            `json:"Env"`
		Entrypoint   []string            `json:"Entrypoint"`
		Cmd          []string            `json:"Cmd"`
		User         string              `json:"User"`
		WorkingDir   string              `json:"WorkingDir"`
		ExposedPorts map[string]struct{} `json:"ExposedPorts"`
		StopSignal   string              `json:"StopSignal"`
		Labels       map[string]string   `json:"Labels"`
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// readConfig fetches and checks the configuration.
func (ins *Inspection) readConfig(ctx context.Context, src Source, d *v1.Descriptor, limits Limits) error {
	dg, err := descriptorDigest(*d)
	if err != nil {
		return bad(ins.Digest, "its config %v", err)
	}
	switch d.MediaType {
	case "application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json":
	default:
		return bad(ins.Digest, "its config has the media type %q: it is not a container image", fault.Clip(string(d.MediaType)))
	}
	if d.Size < 0 || d.Size > limits.Config {
		return bad(ins.Digest, "its config is %d bytes long; %d are allowed", d.Size, limits.Config)
	}
	r, err := src.Blob(ctx, dg, d.Size)
	if err != nil {
		return asFault(err, "the configuration of image %s cannot be fetched", ins.Digest)
	}
	defer r.Close()
	raw, err := io.ReadAll(io.LimitReader(r, d.Size+1))
	if err != nil {
		return asFault(err, "the configuration of image %s cannot be fetched", ins.Digest)
	}
	if int64(len(raw)) != d.Size {
		return bad(ins.Digest, "its config is not the %d bytes long that the manifest says", d.Size)
	}
	if got := digestOf(raw); got != dg {
		return bad(ins.Digest, "its config %s has the digest %s", dg, got)
	}
	return ins.parseConfig(raw)
}

// parseConfig checks the configuration's contents.
func (ins *Inspection) parseConfig(raw []byte) error {
	var c configFile
	if err := json.Unmarshal(raw, &c); err != nil {
		return bad(ins.Digest, "its config is malformed: %v", err)
	}
	if c.OS != "linux" || c.Architecture != runtime.GOARCH {
		return fault.New(fault.Unprocessable, "image %s is for %s; this node runs linux/%s",
			ins.Digest, fault.Clip(c.OS+"/"+c.Architecture), runtime.GOARCH)
	}
	if c.RootFS.Type != "layers" || len(c.RootFS.DiffIDs) != len(ins.layers) {
		return bad(ins.Digest, "its config lists %d layers of type %q, the manifest %d", len(c.RootFS.DiffIDs), fault.Clip(c.RootFS.Type), len(ins.layers))
	}
	for _, id := range c.RootFS.DiffIDs {
		if _, err := key.ParseDigest(id); err != nil {
			return bad(ins.Digest, "its config: %v", err)
		}
	}
	ins.diffIDs = c.RootFS.DiffIDs
	ins.Config = Config{
		Env: c.Config.Env, Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd,
		User: c.Config.User, WorkingDir: c.Config.WorkingDir,
		StopSignal: c.Config.StopSignal, Labels: c.Config.Labels, Architecture: c.Architecture,
	}
	for p := range c.Config.ExposedPorts {
		ins.Config.ExposedPorts = append(ins.Config.ExposedPorts, p)
	}
	slices.Sort(ins.Config.ExposedPorts)
	// Every string goes to a place where a NUL ends it.
	if ins.Config.hasNUL() {
		return bad(ins.Digest, "its config holds a NUL character")
	}
	return nil
}

// hasNUL reports whether any string of c holds a NUL character.
func (c *Config) hasNUL() bool {
	all := slices.Concat(c.Env, c.Entrypoint, c.Cmd, c.ExposedPorts, []string{c.User, c.WorkingDir, c.StopSignal})
	for k, v := range c.Labels {
		all = append(all, k, v)
	}
	return slices.ContainsFunc(all, func(s string) bool { return strings.IndexByte(s, 0) >= 0 })
}

// bad is the error for an image that cannot be used.
func bad(digest key.Digest, format string, args ...any) error {
	return fault.New(fault.Unprocessable, "image %s: %s", digest, fmt.Sprintf(format, args...))
}

func digestOf(p []byte) key.Digest {
	sum := sha256.Sum256(p)
	return key.Digest("sha256:" + hex.EncodeToString(sum[:]))
}
