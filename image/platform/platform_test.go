package platform

import (
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// entry makes the descriptor of image n for "os/arch/variant", "" for none stated.
func entry(n, platform string, annotations ...string) v1.Descriptor {
	d := v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: v1.Hash{Algorithm: "sha256", Hex: strings.Repeat(n, 64)}, Annotations: map[string]string{}}
	if platform != "" {
		p, err := v1.ParsePlatform(platform)
		if err != nil {
			panic(err)
		}
		d.Platform = p
	}
	for i := 0; i < len(annotations); i += 2 {
		d.Annotations[annotations[i]] = annotations[i+1]
	}
	return d
}

func TestChoose(t *testing.T) {
	const name = "org.opencontainers.image.ref.name"
	artifact := entry("9", "")
	artifact.ArtifactType = "application/vnd.dev.cosign.artifact.sig.v1+json"
	other := entry("9", "")
	other.MediaType = "application/vnd.example.thing+json"
	signature := "sha256-" + strings.Repeat("1", 64) + ".sig"
	for what, c := range map[string]struct {
		all    []v1.Descriptor
		arches string
		want   string // the images, by their digit
		others string
	}{
		"one":                    {[]v1.Descriptor{entry("1", "linux/amd64")}, "amd64", "1", ""},
		"two tags":               {[]v1.Descriptor{entry("1", "linux/amd64", name, "1"), entry("1", "linux/amd64", name, "latest")}, "amd64", "1", ""},
		"two tags, no platform":  {[]v1.Descriptor{entry("1", "", name, "1"), entry("1", "", name, "latest")}, "amd64", "1", ""},
		"two images":             {[]v1.Descriptor{entry("1", "linux/amd64"), entry("2", "linux/amd64")}, "amd64", "12", ""},
		"plain before a variant": {[]v1.Descriptor{entry("3", "linux/amd64/v3"), entry("1", "linux/amd64")}, "amd64", "1", ""},
		"the least variant":      {[]v1.Descriptor{entry("3", "linux/amd64/v3"), entry("2", "linux/amd64/v2")}, "amd64", "2", ""},
		"arm64 v8 is plain":      {[]v1.Descriptor{entry("9", "linux/arm64/v9"), entry("8", "linux/arm64/v8")}, "arm64", "8", ""},
		"first processor":        {[]v1.Descriptor{entry("1", "linux/amd64"), entry("2", "linux/arm64")}, "arm64 amd64", "2", ""},
		"none fits":              {[]v1.Descriptor{entry("1", "linux/arm64"), entry("2", "windows/amd64")}, "amd64", "", "linux/arm64 windows/amd64"},
		"attestation of buildx":  {[]v1.Descriptor{entry("1", "linux/amd64"), entry("2", "unknown/unknown")}, "amd64", "1", ""},
		"attestation, annotated": {[]v1.Descriptor{entry("1", ""), entry("2", "", "vnd.docker.reference.type", "attestation-manifest")}, "amd64", "1", ""},
		"signature by tag":       {[]v1.Descriptor{entry("1", "", name, "latest"), entry("2", "", name, signature)}, "amd64", "1", ""},
		"signature with a repo":  {[]v1.Descriptor{entry("1", ""), entry("2", "", name, "example.com/a:"+signature)}, "amd64", "1", ""},
		"cosign save":            {[]v1.Descriptor{entry("1", "", "kind", "dev.cosignproject.cosign/image"), entry("2", "", "kind", "dev.cosignproject.cosign/sigs")}, "amd64", "1", ""},
		"artifact":               {[]v1.Descriptor{entry("1", ""), artifact}, "amd64", "1", ""},
		"other media type":       {[]v1.Descriptor{entry("1", ""), other}, "amd64", "1", ""},
		"one of two fits":        {[]v1.Descriptor{entry("1", ""), entry("2", "linux/amd64")}, "amd64", "2", ""},
		"nothing":                {nil, "amd64", "", ""},
	} {
		best, others := Choose(c.all, strings.Fields(c.arches), nil)
		got := ""
		for _, d := range best {
			got += d.Digest.Hex[:1]
		}
		if got != c.want || !slices.Equal(others, strings.Fields(c.others)) {
			t.Errorf("%s: %q and %q, want %q and %q", what, got, others, c.want, c.others)
		}
	}
	// An entry that states no platform is looked at.
	look := func(d v1.Descriptor) *v1.Platform {
		switch d.Digest.Hex[0] {
		case '1':
			return &v1.Platform{OS: "linux", Architecture: "amd64"}
		case '2':
			return &v1.Platform{OS: "linux", Architecture: "s390x"}
		}
		return nil
	}
	best, others := Choose([]v1.Descriptor{entry("3", ""), entry("2", ""), entry("1", "")}, []string{"amd64"}, look)
	if len(best) != 1 || best[0].Digest.Hex[0] != '1' || !slices.Equal(others, []string{"linux/s390x"}) {
		t.Errorf("%v, %v", best, others)
	}
}
