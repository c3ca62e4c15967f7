package doctor

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"unsafe"
)

func bufferAddress(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }

// keyName are names of files that hold what opens something.
var keyName = regexp.MustCompile(`(?i)(^|[._-])(key|token|secret|seed)s?([._-]|$)|^identity\.pem$`)

// public are the halves of keys that anybody may have.
var public = regexp.MustCompile(`\.(pub|crt)$`)

// keyLimit is the size above which a file is not read for a key: what holds keys is small.
const keyLimit = 64 << 10

// keyFiles finds the files below a directory that hold keys, by name or by content.
func keyFiles(dir string) (files []string, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) {
				return nil // it was of the moment
			}
			return err
		}
		if d.IsDir() {
			switch rel, _ := filepath.Rel(dir, path); rel {
			case "programs", "images", "machines", filepath.Join("controller", "registry"), filepath.Join("worker", "logs"):
				return fs.SkipDir // apps' files, by the thousand
			}
			return nil
		}
		info, err := d.Info()
		if err != nil || !info.Mode().IsRegular() || public.MatchString(d.Name()) {
			return nil
		}
		if keyName.MatchString(d.Name()) {
			files = append(files, path)
			return nil
		}
		if info.Size() > keyLimit {
			return nil
		}
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte("PRIVATE KEY-----")) {
			files = append(files, path)
		}
		return nil
	})
	return files, err
}

// files looks at the modes of the files that hold keys, and at the way to them.
func (h host) files(dataDir string) (out []Finding) {
	files, err := keyFiles(dataDir)
	if err != nil {
		return []Finding{{"keys", Fail, fmt.Sprintf("the data directory cannot be walked: %v", err), "is --data-dir right, and are you root?"}}
	}
	if len(files) == 0 {
		return []Finding{{"keys", Warn, dataDir + " holds no key: nothing was ever installed there", "is --data-dir right?"}}
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			continue
		}
		if m := info.Mode().Perm(); m&0o077 != 0 {
			who := "its group"
			if m&0o007 != 0 {
				who = "every user of the host"
			}
			out = append(out, Finding{"keys", Fail, fmt.Sprintf("%s (mode %04o) is open to %s", f, m, who), "chmod 600 " + f + ", and make a new key: this one may be known"})
		}
	}
	if out == nil {
		out = []Finding{{"keys", OK, fmt.Sprintf("%d files hold keys, each open to its owner alone", len(files)), ""}}
	}
	return append(out, clusterKey(dataDir)...)
}

// clusterKey looks whether the key that wraps what is secret in the store lies, in the
// clear, where a backup of the data directory takes it along.
func clusterKey(dataDir string) []Finding {
	path := filepath.Join(dataDir, "cluster-key", "cluster.key")
	if _, err := os.Stat(path); err != nil {
		return nil
	}
	return []Finding{{"cluster key", Warn, "the key that wraps everything secret in the store lies beside it: a copy of " + dataDir + " has both",
		"leave " + path + " out of backups of the data directory and keep a copy elsewhere, or set cluster_key to a credential or a KMS (docs/secrets.md)"}}
}

// programs looks whether anybody but root may change what root runs, or reads for
// its configuration.
func programs(libDir, config string) (out []Finding) {
	var paths []string
	if libDir != "" {
		all, _ := filepath.Glob(filepath.Join(libDir, "bulkhead*"))
		paths = append(paths, all...)
		paths = append(paths, waysTo(libDir)...)
	}
	if config != "" {
		paths = append(paths, config)
		paths = append(paths, waysTo(filepath.Dir(config))...)
	}
	looked := 0
	seen := map[string]bool{}
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil || seen[p] {
			continue
		}
		seen[p] = true
		looked++
		m := info.Mode()
		sticky := info.IsDir() && m&os.ModeSticky != 0 // as /tmp: others add, and change nothing
		uid := info.Sys().(*syscall.Stat_t).Uid
		switch {
		case uid != 0:
			out = append(out, Finding{"programs", Fail, fmt.Sprintf("%s belongs to user %d, who may change what root runs", p, uid), "chown root " + p})
		case m.Perm()&0o022 != 0 && !sticky:
			out = append(out, Finding{"programs", Fail, fmt.Sprintf("%s (mode %04o) may be changed by others, who then choose what root runs", p, m.Perm()), "chmod go-w " + p})
		}
	}
	if out == nil {
		out = []Finding{{"programs", OK, fmt.Sprintf("%d programs, files and directories that root runs from are root's alone to change", looked), ""}}
	}
	return out
}

// waysTo lists a directory and all above it.
func waysTo(dir string) (out []string) {
	for dir = filepath.Clean(dir); ; dir = filepath.Dir(dir) {
		out = append(out, dir)
		if dir == "/" || dir == "." {
			return out
		}
	}
}

// strangerReads tries to open each key file as users without rights.
func strangerReads(try func(uid uint32, errands []errand) ([]errandResult, error), dataDir string) []Finding {
	files, err := keyFiles(dataDir)
	if err != nil || len(files) == 0 {
		return nil // said already
	}
	errands := make([]errand, len(files))
	for i, f := range files {
		errands[i] = errand{Path: f}
	}
	var opened []string
	for _, who := range strangers {
		got, err := try(who.id, errands)
		if err != nil {
			return []Finding{{"keys", Warn, fmt.Sprintf("opening them as %s could not be tried: %v", who.name, err), "run the doctor as root of the host"}}
		}
		for i, g := range got {
			if !meant(g.Errno) && g.Errno != syscall.ENOENT {
				opened = append(opened, fmt.Sprintf("%s (as %s: %s)", files[i], who.name, outcome(g.Errno)))
			}
		}
	}
	if len(opened) > 0 {
		return []Finding{{"keys", Fail, "users without rights get at " + strings.Join(opened, ", "), "close it (chmod 600), and make new keys: these may be known"}}
	}
	return []Finding{{"keys", OK, fmt.Sprintf("users without rights were refused each of %d files with keys", len(files)), ""}}
}

func outcome(e syscall.Errno) string {
	if e == 0 {
		return "opened"
	}
	return e.Error()
}
