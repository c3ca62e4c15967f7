package supervisor

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pelletier/go-toml/v2"

	"bulkhead/key"
	"bulkhead/limit"
	"bulkhead/privnet"
)

// DefaultConfigFile is read when --config is not given and the file exists.
const DefaultConfigFile = "/etc/bulkhead/bulkhead.toml"

// DefaultDataDir is where an installation lives unless it is told otherwise.
const DefaultDataDir = "/var/lib/bulkhead"

// Config is what bulkheadd is told, by its configuration file and its flags. The
// zero value of a field means its default. packaging/bulkhead.toml documents every
// field for its reader; Fields documents them for --help.
type Config struct {
	// DataDir is the directory of the installation: everything that must survive a
	// restart, and the identity of the cluster. Absolute path.
	DataDir string `toml:"data_dir"`
	// Domain is the DNS name below which apps, the API ("api.") and the registry
	// ("registry.") answer. It is chosen at installation and cannot change later.
	Domain string `toml:"domain"`
	// HTTPAddr is the public address of plain HTTP, host:port; an empty host means
	// every address of the machine, port 0 any free port.
	HTTPAddr string `toml:"http_addr"`
	// HTTPSAddr is the public address of HTTPS, host:port, as HTTPAddr.
	HTTPSAddr string `toml:"https_addr"`
	// ClusterAddr is the address for other nodes of the cluster, host:port, which
	// speaks mutual TLS only. Empty: none, this machine is alone.
	ClusterAddr string `toml:"cluster_addr"`
	// ReadyFile is written, mode 0600, when the platform is ready. Empty: none.
	ReadyFile string `toml:"ready_file"`
	// Region is the code of the region, as "platform/regions" of the API shows it.
	Region string `toml:"region"`
	// Node is this machine's name in the cluster, a DNS label. It is chosen at
	// installation and cannot change later.
	Node string `toml:"node"`
	// RunDir holds sockets and namespaces of the running platform; nothing in it is
	// needed after a reboot.
	RunDir string `toml:"run_dir"`
	// LibDir is the directory of Bulkhead's other programs.
	LibDir string `toml:"lib_dir"`
	// IdleAfter is how long a Machine whose services have autostop runs on without a
	// request, a Go duration.
	IdleAfter string `toml:"idle_after"`
	// SSOPrivateIssuers are addresses besides public ones at which organizations may have
	// their identity providers: networks such as 10.1.0.0/16, with commas between them.
	SSOPrivateIssuers string `toml:"sso_private_issuers"`
	// SSOUsers is how many users one organization may make, by its identity provider and by
	// invitations.
	SSOUsers string `toml:"sso_users"`
	// ClusterKey says where the key is that wraps everything secret in the store: "file",
	// "credential:NAME" of systemd, or "kms:/SOCKET".
	ClusterKey string `toml:"cluster_key"`
	// AuditWitnesses is a file with the policy of the audit log's witnesses: who co-signs
	// its checkpoints, and how many must. Empty: none.
	AuditWitnesses string `toml:"audit_witnesses"`
	// AuditWitnessRequired is "yes" when changes are to be refused while the policy is not
	// satisfied, else "no".
	AuditWitnessRequired string `toml:"audit_witness_required"`
	// RateLimits are how often the API may be called, such as "token=1000/3000
	// object=400/1200"; see limit.ParseSet.
	RateLimits string `toml:"rate_limits"`
	// Nameservers are what Machines resolve names with, in place of the host's: at most
	// three public addresses. The file has a list, a flag has commas between them.
	Nameservers string `toml:"nameservers"`
	// DeniedRanges are networks that Machines cannot reach, and where nobody may have a
	// registry or an identity provider, besides what is not public. The file has a list, a
	// flag has commas between them.
	DeniedRanges string `toml:"denied_ranges"`
	// LogFormat is how the log looks on stderr: "json" (one object a line) or "text".
	LogFormat string `toml:"log_format"`
}

// Field documents one field of Config for --help and ties it to its flag.
type Field struct {
	Name    string // in the configuration file
	Flag    string // on the command line, without dashes
	Arg     string // what the value is called in --help
	Default string // as --help shows it
	Doc     string // one sentence
	value   func(*Config) *string
}

// Fields lists every field of Config in the order of --help.
var Fields = []Field{
	{"data_dir", "data-dir", "DIR", DefaultDataDir, "directory of the installation: everything that must survive a restart", func(c *Config) *string { return &c.DataDir }},
	{"domain", "domain", "NAME", "bulkhead.localhost", "DNS name below which apps, api. and registry. answer; fixed at installation", func(c *Config) *string { return &c.Domain }},
	{"http_addr", "http-addr", "HOST:PORT", ":80", "public address of plain HTTP; port 0 takes any free port", func(c *Config) *string { return &c.HTTPAddr }},
	{"https_addr", "https-addr", "HOST:PORT", ":443", "public address of HTTPS; port 0 takes any free port", func(c *Config) *string { return &c.HTTPSAddr }},
	{"cluster_addr", "cluster-addr", "HOST:PORT", "none", "address for other nodes of the cluster (mutual TLS)", func(c *Config) *string { return &c.ClusterAddr }},
	{"ready_file", "ready-file", "FILE", "none", "JSON file written when the platform is ready: api_url, domain, https_addr, http_addr, ca_file, pin, token (only when it was just made)", func(c *Config) *string { return &c.ReadyFile }},
	{"region", "region", "CODE", "local", "code of the region", func(c *Config) *string { return &c.Region }},
	{"node", "node", "NAME", "the host name", "name of this machine in the cluster, a DNS label; fixed at installation", func(c *Config) *string { return &c.Node }},
	{"run_dir", "run-dir", "DIR", "/run/bulkhead, or /run/bulkhead-<hash of data_dir> for another data_dir", "sockets and namespaces of the running platform", func(c *Config) *string { return &c.RunDir }},
	{"lib_dir", "lib-dir", "DIR", "where bulkheadd is", "directory of Bulkhead's other programs", func(c *Config) *string { return &c.LibDir }},
	{"idle_after", "idle-after", "DURATION", "1m", "how long a machine with autostop runs on without a request", func(c *Config) *string { return &c.IdleAfter }},
	{"sso_private_issuers", "sso-private-issuers", "NETWORKS", "none", "private networks, with commas between them, where organizations may have identity providers", func(c *Config) *string { return &c.SSOPrivateIssuers }},
	{"sso_users", "sso-users", "N", "5000", "how many users one organization may make, by its identity provider and by invitations", func(c *Config) *string { return &c.SSOUsers }},
	{"cluster_key", "cluster-key", "file|credential:NAME|kms:/SOCKET", "file", "where the key is that wraps everything secret in the store: <data_dir>/cluster-key, a credential of systemd, or that file sealed by a key management service", func(c *Config) *string { return &c.ClusterKey }},
	{"audit_witnesses", "audit-witnesses", "FILE", "none", "policy of the audit log's witnesses; see docs/audit.md", func(c *Config) *string { return &c.AuditWitnesses }},
	{"audit_witness_required", "audit-witness-required", "yes|no", "no", "whether changes are refused while the audit log's witnesses are missing", func(c *Config) *string { return &c.AuditWitnessRequired }},
	{"rate_limits", "rate-limits", "NAME=RATE/BURST ...", "token=1000/3000 object=400/1200 read=2000/4000 deletion=150/1000 public=5/100 failure=10/300 guess=1/20",
		"how often the API may be called, a second and at once", func(c *Config) *string { return &c.RateLimits }},
	{"nameservers", "nameservers", "ADDRESSES", "those of the host that machines can reach", "public addresses of name servers for machines, with commas between them",
		func(c *Config) *string { return &c.Nameservers }},
	{"denied_ranges", "denied-ranges", "NETWORKS", "none", "networks that machines cannot reach, and where nobody may have a registry or an identity provider, with commas between them",
		func(c *Config) *string { return &c.DeniedRanges }},
	{"log_format", "log-format", "json|text", "text on a terminal, else json", "how the log looks on stderr", func(c *Config) *string { return &c.LogFormat }},
}

// Value returns where c keeps the field, for flags to write to.
func (f Field) Value(c *Config) *string { return f.value(c) }

// ReadConfig reads a configuration file. Fields that do not exist and values of
// the wrong type are refused, with line and column. A missing file is an error
// unless optional is set.
func ReadConfig(file string, optional bool) (Config, error) {
	var r configFile
	f, err := os.Open(file)
	if optional && errors.Is(err, os.ErrNotExist) {
		return Config{}, nil
	}
	if err != nil {
		return Config{}, fmt.Errorf("the configuration file cannot be read: %w", err)
	}
	defer f.Close()
	if err := trustedFile(f); err != nil {
		return Config{}, err
	}
	err = toml.NewDecoder(f).DisallowUnknownFields().Decode(&r)
	c := r.Config
	var unknown *toml.StrictMissingError
	var bad *toml.DecodeError
	switch {
	case errors.As(err, &unknown) && len(unknown.Errors) > 0:
		row, col := unknown.Errors[0].Position()
		return c, fmt.Errorf("%s:%d:%d: there is no field %q; \"bulkheadd up --help\" lists them", file, row, col, strings.Join(unknown.Errors[0].Key(), "."))
	case errors.As(err, &bad):
		row, col := bad.Position()
		why := strings.TrimPrefix(bad.Error(), "toml: ")
		if strings.Contains(why, "into struct field") { // every field is text
			why = "the value must be text in quotes"
		}
		return c, fmt.Errorf("%s:%d:%d: %s", file, row, col, why)
	case err != nil:
		return c, fmt.Errorf("%s: %w", file, err)
	}
	if c.Nameservers, err = listed(r.Nameservers); err != nil {
		return c, fmt.Errorf("%s: nameservers: %w", file, err)
	}
	if c.DeniedRanges, err = listed(r.DeniedRanges); err != nil {
		return c, fmt.Errorf("%s: denied_ranges: %w", file, err)
	}
	return c, nil
}

// configFile is Config as the file has it, where a list is a list.
type configFile struct {
	Config
	Nameservers  any `toml:"nameservers"`
	DeniedRanges any `toml:"denied_ranges"`
}

// listed puts commas between the entries of a list; text stays as it is.
func listed(v any) (string, error) {
	switch v := v.(type) {
	case nil:
		return "", nil
	case string:
		return v, nil
	case []any:
		var out []string
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return "", fmt.Errorf("entry %v must be text in quotes", e)
			}
			out = append(out, s)
		}
		return strings.Join(out, ","), nil
	}
	return "", errors.New(`the value must be a list of texts, such as ["9.9.9.9"]`)
}

// Over returns base with every field that c sets put over it: flags over file.
func (c Config) Over(base Config) Config {
	for _, f := range Fields {
		if v := *f.value(&c); v != "" {
			*f.value(&base) = v
		}
	}
	return base
}

// pathRE keeps paths to characters that need no quoting anywhere: they end up in
// sandbox annotations, socket names and messages.
var (
	pathRE  = regexp.MustCompile(`^/[A-Za-z0-9/._+@-]*$`)
	labelRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
)

// maxRunDir bounds the runtime directory so that every socket path below it fits
// into the 107 bytes the kernel takes.
const maxRunDir = 80

// privateIssuers reads SSOPrivateIssuers.
func (c *Config) privateIssuers() (out []netip.Prefix, err error) {
	for s := range strings.SplitSeq(c.SSOPrivateIssuers, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil || p != p.Masked() {
			return nil, fmt.Errorf("sso_private_issuers: %q must be a network such as 10.1.0.0/16 or 127.0.0.1/32", s)
		}
		out = append(out, p)
	}
	return out, nil
}

// minIdleAfter keeps Machines from being stopped between two requests of one page.
const minIdleAfter = time.Second

// Complete fills in the defaults and checks every field. It looks at nothing but
// the host name and the place of the running program.
func (c Config) Complete() (Config, error) {
	set := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	set(&c.DataDir, DefaultDataDir)
	set(&c.Domain, "bulkhead.localhost")
	set(&c.HTTPAddr, ":80")
	set(&c.HTTPSAddr, ":443")
	set(&c.Region, "local")
	set(&c.IdleAfter, "1m")
	set(&c.ClusterKey, "file")
	set(&c.AuditWitnessRequired, "no")
	c.Domain = strings.ToLower(strings.TrimSuffix(c.Domain, "."))
	for _, p := range []struct {
		name string
		v    *string
	}{{"data_dir", &c.DataDir}, {"run_dir", &c.RunDir}, {"lib_dir", &c.LibDir}, {"ready_file", &c.ReadyFile}, {"audit_witnesses", &c.AuditWitnesses}} {
		if *p.v == "" {
			continue
		}
		abs, err := filepath.Abs(*p.v)
		if err != nil {
			return c, err
		}
		if !pathRE.MatchString(abs) || abs == "/" {
			return c, fmt.Errorf("%s %q must be a path below / made of letters, digits and . _ - + @", p.name, *p.v)
		}
		*p.v = abs
	}
	set(&c.RunDir, runDirFor(c.DataDir))
	if len(c.RunDir) > maxRunDir {
		return c, fmt.Errorf("run_dir %q has %d bytes; socket names below it must fit the kernel's limit, so give one of at most %d", c.RunDir, len(c.RunDir), maxRunDir)
	}
	if c.LibDir == "" {
		dir, err := ownDir()
		if err != nil {
			return c, err
		}
		c.LibDir = dir
	}
	return c, c.check()
}

// check is Complete's second half: the grammar of what is not a path.
func (c Config) check() error {
	if err := checkDomain(c.Domain); err != nil {
		return err
	}
	if !labelRE.MatchString(c.Region) {
		return fmt.Errorf("region %q must be lower-case letters, digits and dashes", c.Region)
	}
	if c.Node != "" {
		if _, err := key.ParseNode(c.Node); err != nil {
			return fmt.Errorf("node: %w", err)
		}
	}
	if _, err := c.privateIssuers(); err != nil {
		return err
	}
	if _, err := privnet.ParseNameservers(c.Nameservers); err != nil {
		return fmt.Errorf("nameservers: %w", err)
	}
	if _, err := privnet.ParseDenied(c.DeniedRanges); err != nil {
		return fmt.Errorf("denied_ranges: %w", err)
	}
	if err := checkClusterKey(c.ClusterKey); err != nil {
		return err
	}
	if n, err := strconv.Atoi(c.SSOUsers); c.SSOUsers != "" && (err != nil || n < 1 || n > 1e6) {
		return fmt.Errorf("sso_users %q must be a number from 1 to 1000000", c.SSOUsers)
	}
	if _, err := limit.ParseSet(c.RateLimits); err != nil {
		return fmt.Errorf("rate_limits: %w", err)
	}
	if d, err := time.ParseDuration(c.IdleAfter); err != nil || d < minIdleAfter {
		return fmt.Errorf("idle_after %q must be a duration of at least %v, such as 60s or 5m", c.IdleAfter, minIdleAfter)
	}
	if r := c.AuditWitnessRequired; r != "" && r != "yes" && r != "no" {
		return fmt.Errorf("audit_witness_required %q is neither yes nor no", r)
	}
	if c.AuditWitnessRequired == "yes" && c.AuditWitnesses == "" {
		return errors.New("audit_witness_required is yes, and audit_witnesses names nobody")
	}
	if c.LogFormat != "" && c.LogFormat != "json" && c.LogFormat != "text" {
		return fmt.Errorf("log_format %q is neither json nor text", c.LogFormat)
	}
	seen := map[string]string{}
	for _, a := range []struct{ name, v string }{{"http_addr", c.HTTPAddr}, {"https_addr", c.HTTPSAddr}, {"cluster_addr", c.ClusterAddr}} {
		if a.v == "" {
			continue
		}
		port, err := checkAddr(a.v)
		if err != nil {
			return fmt.Errorf("%s %q: %w", a.name, a.v, err)
		}
		if other := seen[a.v]; other != "" && port != 0 {
			return fmt.Errorf("%s and %s are both %s; give each a port of its own", other, a.name, a.v)
		}
		seen[a.v] = a.name
	}
	return nil
}

// trustedFile refuses a configuration file that a user other than root and the caller can
// change: it names the programs that root runs.
func trustedFile(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("the configuration file cannot be read: %w", err)
	}
	if sys := st.Sys().(*syscall.Stat_t); sys.Uid != 0 && int(sys.Uid) != os.Geteuid() {
		return fmt.Errorf("the configuration file %s belongs to user %d; it must belong to root", f.Name(), sys.Uid)
	}
	if st.Mode().IsRegular() && st.Mode().Perm()&0o002 != 0 {
		return fmt.Errorf("every user can write the configuration file %s; chmod o-w %s", f.Name(), f.Name())
	}
	return nil
}

// checkDomain checks that d can have apps below it.
func checkDomain(d string) error {
	if len(d) > 180 { // an app's label and a host name's limit of 253 must fit
		return fmt.Errorf("domain %q is longer than 180 characters", d[:40]+"…")
	}
	if _, err := netip.ParseAddr(d); err == nil {
		return fmt.Errorf("domain %q is an address; give a DNS name, such as apps.example.com", d)
	}
	for _, l := range strings.Split(d, ".") {
		if !labelRE.MatchString(l) {
			return fmt.Errorf("domain %q is not a DNS name: bad label %q", d, l)
		}
	}
	return nil
}

// checkAddr checks a host:port to listen on and returns the port.
func checkAddr(a string) (int, error) {
	host, port, err := net.SplitHostPort(a)
	if err != nil {
		return 0, errors.New("it must be host:port or :port, such as 127.0.0.1:8443 or :443")
	}
	if host != "" {
		if _, err := netip.ParseAddr(host); err != nil {
			return 0, fmt.Errorf("host %q is not an IP address", host)
		}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("port %q is not between 0 and 65535", port)
	}
	return int(n), nil
}

// runDirFor gives each data directory a runtime directory of its own.
func runDirFor(data string) string {
	if data == DefaultDataDir {
		return "/run/bulkhead"
	}
	sum := sha256.Sum256([]byte(data))
	return "/run/bulkhead-" + hex.EncodeToString(sum[:4])
}

// ownDir is the directory of the running program, links resolved.
func ownDir() (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	if real, err := filepath.EvalSymlinks(exe); err == nil {
		exe = real
	}
	return filepath.Dir(exe), nil
}

// hostLabel makes a DNS label of the host's name.
func hostLabel() string {
	h, _ := os.Hostname()
	h, _, _ = strings.Cut(strings.ToLower(h), ".")
	h = strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, h), "-")
	if len(h) > 63 {
		h = strings.TrimRight(h[:63], "-")
	}
	if h == "" {
		return "node-1"
	}
	return h
}
