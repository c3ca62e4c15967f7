// Package platform chooses an image from an index. The CLI and the node both use it, so
// that what the one pushes is what the other runs.
package platform

import (
	"regexp"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Choose returns the images of an index that fit the processors of arches best, in their
// order: several only where nothing tells them apart. An image that the index names twice
// counts once; signatures and attestations do not count. others are the platforms of the
// images that do not fit.
//
// look finds the platform of an entry that states none, nil when the entry is no image.
// Without look such an entry is chosen only if it is the one image of the index.
func Choose(all []v1.Descriptor, arches []string, look func(v1.Descriptor) *v1.Platform) (best []v1.Descriptor, others []string) {
	seen := map[v1.Hash]bool{}
	var images []v1.Descriptor
	for _, d := range all {
		if !seen[d.Digest] && !accompanies(d) {
			seen[d.Digest] = true
			images = append(images, d)
		}
	}
	least := 0
	for _, d := range images {
		p := d.Platform
		if p == nil || p.OS == "" && p.Architecture == "" {
			switch {
			case look != nil:
				if p = look(d); p == nil {
					continue
				}
			case len(images) == 1: // its configuration will tell
				return images, nil
			default:
				continue
			}
		}
		r := rank(p, arches)
		if r < 0 {
			if name := p.OS + "/" + p.Architecture; !slices.Contains(others, name) && len(others) < 10 {
				others = append(others, name)
			}
			continue
		}
		if len(best) == 0 || r < least {
			best, least = nil, r
		}
		if r == least {
			best = append(best, d)
		}
	}
	return best, others
}

// rank says how well a platform fits: less is better, -1 not at all. A plain entry comes
// before one for a later variant of the processor, which not every node may have.
func rank(p *v1.Platform, arches []string) int {
	i := slices.Index(arches, p.Architecture)
	if p.OS != "linux" || i < 0 {
		return -1
	}
	variant := 9
	switch v := p.Variant; {
	case v == "" || v == "v1" && p.Architecture == "amd64" || v == "v8" && p.Architecture == "arm64":
		variant = 0
	case len(v) == 2 && v[0] == 'v' && '0' <= v[1] && v[1] <= '9':
		variant = int(v[1] - '0')
	}
	return 10*i + variant
}

// signatureRE is the tag by which cosign finds what accompanies an image.
var signatureRE = regexp.MustCompile(`(^|:)sha256-[0-9a-f]{64}(\.(sig|att|sbom))?$`)

// accompanies reports whether an entry is a signature, an attestation or a list of parts
// of another image.
func accompanies(d v1.Descriptor) bool {
	if p := d.Platform; p != nil && (p.OS == "unknown" || p.Architecture == "unknown") {
		return true // an attestation of buildx
	}
	kind := d.Annotations["kind"] // of "cosign save"
	return d.MediaType != "" && !d.MediaType.IsImage() && !d.MediaType.IsIndex() ||
		d.ArtifactType != "" && !strings.Contains(d.ArtifactType, "image.config") && !strings.Contains(d.ArtifactType, "container.image") ||
		d.Annotations["vnd.docker.reference.type"] != "" ||
		strings.HasPrefix(kind, "dev.cosignproject.cosign/") && !strings.HasPrefix(kind, "dev.cosignproject.cosign/image") ||
		signatureRE.MatchString(Name(d))
}

// Name is what an entry is called in its archive, "" where it has no name.
func Name(d v1.Descriptor) string {
	for _, k := range []string{"org.opencontainers.image.ref.name", "io.containerd.image.name"} {
		if n := d.Annotations[k]; n != "" {
			return n
		}
	}
	return ""
}
