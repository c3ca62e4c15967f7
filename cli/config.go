package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"

	"bulkhead/client"
	"bulkhead/fault"
)

// clusterConfig is one cluster the user has logged in to.
type clusterConfig struct {
	URL   string `json:"url"`
	Pin   string `json:"pin"`
	Token string `json:"token"`
	// Session is the secret of the session that the token came with, if any.
	Session string `json:"session,omitempty"`
}

// configFile is what the CLI remembers. It holds tokens: the file has mode 0600,
// its directory 0700.
type configFile struct {
	Default  string                   `json:"default,omitempty"`
	Clusters map[string]clusterConfig `json:"clusters"`
}

// configPathOrErr returns the path of the configuration file.
func (s *session) configPathOrErr() (string, error) {
	if s.configPath != "" {
		return s.configPath, nil
	}
	if p := s.env.Getenv("BULKHEAD_CONFIG"); p != "" {
		return p, nil
	}
	if s.env.ConfigDir == "" {
		return "", hint(usagef("this user has no configuration directory"),
			"give --config FILE, or set BULKHEAD_URL, BULKHEAD_PIN and BULKHEAD_TOKEN")
	}
	return filepath.Join(s.env.ConfigDir, "bulkhead", "config.json"), nil
}

// readConfig reads the configuration; a file that is not there is an empty one. A
// file that others can read is refused: its tokens are no secret any more.
func (s *session) readConfig() (*configFile, string, error) {
	path, err := s.configPathOrErr()
	if err != nil {
		return nil, "", err
	}
	c := &configFile{Clusters: map[string]clusterConfig{}}
	st, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return c, path, nil
	}
	if err != nil {
		return nil, path, fault.Wrap(fault.Invalid, err, "cannot read the configuration %s: %v", path, errors.Unwrap(err))
	}
	if !st.Mode().IsRegular() { // a hint to change its mode could do harm
		return nil, path, hint(fault.New(fault.Invalid, "the configuration %s is not a regular file", path), "name a file with --config or BULKHEAD_CONFIG")
	}
	// Windows has no such modes; the user's profile directory keeps others out.
	if runtime.GOOS != "windows" && st.Mode().Perm()&0o077 != 0 {
		return nil, path, hint(fault.New(fault.Invalid,
			"the configuration %s holds tokens and can be read by others (mode %04o)", path, st.Mode().Perm()),
			"chmod 600 %s", path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, path, fault.Wrap(fault.Invalid, err, "cannot read the configuration %s: %v", path, errors.Unwrap(err))
	}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, path, hint(fault.New(fault.Invalid, "the configuration %s is not in order: %v", path, err),
			"remove it and log in again")
	}
	if c.Clusters == nil {
		c.Clusters = map[string]clusterConfig{}
	}
	return c, path, nil
}

// canWrite reports whether a configuration could be written to path. It leaves nothing but
// the directory.
func canWrite(path string) error {
	dir := filepath.Dir(path)
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		var f *os.File
		if f, err = os.CreateTemp(dir, ".config-*.json"); err == nil {
			err = errors.Join(f.Close(), os.Remove(f.Name()))
		}
	}
	if err != nil {
		return hint(fault.Wrap(fault.Internal, err, "cannot write the configuration %s: %v", path, err), "--config FILE names another place")
	}
	return nil
}

// writeConfig replaces the configuration file whole: a crash leaves the old one.
func writeConfig(path string, c *configFile) error {
	fail := func(err error) error {
		return fault.Wrap(fault.Internal, err, "cannot write the configuration %s: %v", path, err)
	}
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fail(err)
	}
	if err := writePrivate(path, append(b, '\n')); err != nil {
		return fail(err)
	}
	return nil
}

// writePrivate replaces a file whole, readable by the user alone.
func writePrivate(path string, b []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".config-*.json") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(b); err != nil {
		f.Close()
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// chooseCluster returns the cluster to speak to: BULKHEAD_URL, BULKHEAD_PIN and
// BULKHEAD_TOKEN where they are set, for the rest the one named by --cluster or
// the default one.
func (s *session) chooseCluster() (clusterConfig, error) {
	env := clusterConfig{URL: s.env.Getenv("BULKHEAD_URL"), Pin: s.env.Getenv("BULKHEAD_PIN"),
		Token: s.env.Getenv("BULKHEAD_TOKEN")}
	if env.URL != "" {
		// A stored token belongs to a stored address and is never sent elsewhere.
		if env.Pin == "" || env.Token == "" {
			return env, hint(usagef("BULKHEAD_URL is set without BULKHEAD_PIN and BULKHEAD_TOKEN"),
				"set all three: \"bulkhead clusters list --json\" shows address and pin, "+
					"\"bulkhead tokens create --help\" says how to make a token")
		}
		return env, nil
	}
	cfg, path, err := s.readConfig()
	if err != nil {
		return env, err
	}
	name := s.cluster
	if name == "" {
		name = cfg.Default
	}
	c, ok := cfg.Clusters[name]
	switch {
	case !ok && s.cluster != "":
		err := &failure{msg: fmt.Sprintf("there is no cluster %q in %s", name, path), kind: string(fault.NotFound),
			exit: ExitNotFound}
		if len(cfg.Clusters) == 0 {
			return env, hint(err, loginLineHint)
		}
		return env, hint(err, "known clusters: %s", strings.Join(cfg.names(), ", "))
	case !ok && len(cfg.Clusters) > 0:
		return env, hint(fault.New(fault.Unauthenticated, "no cluster is the default one"),
			"\"bulkhead clusters use NAME\" chooses one of %s", strings.Join(cfg.names(), ", "))
	case !ok:
		return env, hint(fault.New(fault.Unauthenticated, "not logged in to any cluster"), loginLineHint)
	}
	if env.Pin != "" {
		c.Pin = env.Pin
	}
	if env.Token != "" {
		c.Token = env.Token
	}
	return c, nil
}

// names returns the names of the clusters, sorted.
func (c *configFile) names() []string {
	ns := make([]string, 0, len(c.Clusters))
	for n := range c.Clusters {
		ns = append(ns, n)
	}
	sort.Strings(ns)
	return ns
}

// clusterName is the name a cluster gets when none is given: its domain and port.
func clusterName(rawURL string) (string, error) {
	u, err := client.ParseURL(rawURL)
	if err != nil {
		return "", err
	}
	return strings.TrimPrefix(u.Host, "api."), nil
}
