package cli

import (
	"fmt"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// checkPlatform refuses an image that the cluster cannot run.
func checkPlatform(img *localImage, arches []string) error {
	cf, err := img.ConfigFile()
	if err != nil {
		return malformed(img.path, "its config cannot be read: %v", err)
	}
	if img.plain == nil {
		layers, err := img.Layers()
		if err != nil {
			return malformed(img.path, "%v", err)
		}
		for _, l := range layers {
			mt, err := l.MediaType()
			if err != nil {
				return malformed(img.path, "%v", err)
			}
			if _, how, ok := strings.Cut(string(mt), ".tar+"); ok && how != "gzip" && how != "zstd" {
				return malformed(img.path, "a layer is compressed with %s, which is not supported; use gzip or zstd", how)
			}
		}
	}
	if cf.OS == "linux" && slices.Contains(arches, cf.Architecture) {
		return nil
	}
	return wrongPlatform(img.path, cf.OS+"/"+cf.Architecture, arches)
}

func wrongPlatform(path, have string, arches []string) error {
	want := "linux/" + strings.Join(arches, ", linux/")
	return hint(malformed(path, "it is built for %s, and the cluster runs %s", have, want),
		"build it with --platform %s", "linux/"+arches[0])
}

// exposedPort returns the one TCP port that the image says it listens on, 0 when it
// names none or several.
func exposedPort(img v1.Image) int {
	cf, err := img.ConfigFile()
	if err != nil || len(cf.Config.ExposedPorts) != 1 {
		return 0
	}
	port := 0
	for p := range cf.Config.ExposedPorts {
		n, proto, _ := strings.Cut(p, "/")
		if proto == "" || proto == "tcp" {
			fmt.Sscanf(n, "%d", &port)
		}
	}
	return port
}

// defaultArch is what a cluster is taken to run when it does not say.
func defaultArch() []string {
	if runtime.GOOS == "linux" && runtime.GOARCH == "arm64" {
		return []string{"arm64", "amd64"}
	}
	return []string{"amd64"}
}
