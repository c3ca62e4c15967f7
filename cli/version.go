package cli

import (
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
)

// Version is set by the linker in releases: -ldflags "-X bulkhead/cli.Version=v1.2.3".
var Version = ""

// buildVersion is what "bulkhead version" answers.
type buildVersion struct {
	Version string `json:"version"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
	Go      string `json:"go"`
}

// version returns the release, or the commit the program was built from.
func version() string {
	if Version != "" {
		return Version
	}
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		return "dev"
	}
	rev, dirty := "", ""
	for _, s := range bi.Settings {
		switch s.Key {
		case "vcs.revision":
			rev = s.Value
		case "vcs.modified":
			if s.Value == "true" {
				dirty = "+changes"
			}
		}
	}
	if len(rev) < 12 {
		return "dev"
	}
	return "dev-" + rev[:12] + dirty
}

func versionInfo() buildVersion {
	return buildVersion{Version: version(), OS: runtime.GOOS, Arch: runtime.GOARCH, Go: runtime.Version()}
}

// browse opens url in the user's browser and does not wait for it.
func (s *session) browse(url string) error {
	var args []string
	switch b := s.env.Getenv("BROWSER"); {
	case b != "":
		args = append(strings.Fields(b), url)
	case runtime.GOOS == "darwin":
		args = []string{"open", url}
	case runtime.GOOS == "windows":
		args = []string{"rundll32", "url.dll,FileProtocolHandler", url}
	default:
		args = []string{"xdg-open", url}
	}
	c := exec.Command(args[0], args[1:]...)
	c.Env = os.Environ()
	if err := c.Start(); err != nil {
		return err
	}
	return c.Process.Release()
}
