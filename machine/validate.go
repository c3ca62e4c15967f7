package machine

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"sort"
	"strings"
	"time"
	"unicode/utf8"

	"bulkhead/fault"
)

// Bounds on a Config.
const (
	MaxEnvBytes    = 256 << 10 // names and values together
	MaxArgs        = 1000
	MaxArgBytes    = 128 << 10 // all arguments together
	MaxFilesBytes  = 3 << 20   // decoded, all files together
	MaxFiles       = 256
	MaxMetadata    = 128
	MaxServices    = 32
	maxNameservers = 3
	maxSearches    = 6
)

var (
	envNameRE  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,254}$`)
	hostnameRE = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)
	optionRE   = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)
)

// Validate checks a config that came from outside. Its error is fault.Invalid and
// names the field's path, its value and what to do. A field that Bulkhead would not
// act on is refused: nobody is to find out later that a limit, a volume or a check
// was never there.
func (c *Config) Validate() error {
	v := &validator{}
	v.image(c.Image)
	v.env("config.env", c.Env)
	v.init(c.Init)
	v.guest(c)
	v.limits(c)
	v.storage(c)
	v.metadata(c.Metadata)
	v.services(c.Services)
	v.files(c.Files)
	v.restart(c.Restart)
	v.stop(c.StopConfig)
	v.dns(c.DNS)
	v.processes(c.Processes)
	v.unsupported(c)
	if v.err != nil {
		return v.err
	}
	return nil
}

// validator keeps the first error.
type validator struct{ err *fault.Error }

// bad notes that the field at path is not acceptable: the message continues it.
func (v *validator) bad(path, format string, args ...any) {
	if v.err == nil {
		v.err = fault.New(fault.Invalid, "%s %s", path, fmt.Sprintf(format, args...))
	}
}

// refuse notes a field that Bulkhead cannot act on yet.
func (v *validator) refuse(when bool, path, what string) {
	if when {
		v.bad(path, "is set, but this version of Bulkhead %s; leave it out", what)
	}
}

// unsupported refuses the fields of Config that nothing acts on. This list gets
// shorter as Bulkhead grows.
func (v *validator) unsupported(c *Config) {
	v.refuse(len(c.Mounts) > 0, "config.mounts", "has no volumes yet")
	v.refuse(len(c.Volumes) > 0, "config.volumes", "has no volumes yet")
	v.refuse(len(c.Containers) > 0, "config.containers", "runs one process in each machine and no containers")
	v.refuse(c.Schedule != "", "config.schedule", "does not start machines on a schedule")
	v.refuse(len(c.Standbys) > 0, "config.standbys", "has no standby machines")
	v.refuse(len(c.Statics) > 0, "config.statics", "does not serve files of an image from the edge")
	v.refuse(len(c.Checks) > 0, "config.checks", "does not run health checks")
	v.refuse(c.Metrics != nil, "config.metrics", "does not collect an app's own metrics")
}

func (v *validator) image(s string) {
	switch {
	case s == "":
		v.bad("config.image", "is missing; name the image to run, such as registry.example.com/app:tag")
	case len(s) > 512 || strings.ContainsAny(s, " \t\r\n\x00"):
		v.bad("config.image", "%q is not an image reference of at most 512 characters without spaces", fault.Clip(s))
	}
}

func (v *validator) env(at string, env map[string]string) {
	total := 0
	for _, name := range sortedKeys(env) {
		value := env[name]
		total += len(name) + len(value) + 2
		if !envNameRE.MatchString(name) {
			v.bad(at, "has the name %q; a name is a letter or underscore, then letters, digits, underscores, dots and dashes", fault.Clip(name))
		}
		if strings.ContainsRune(value, 0) {
			v.bad(at+"."+name, "has a zero byte, which no environment can hold")
		}
	}
	if total > MaxEnvBytes {
		v.bad(at, "takes %d bytes; at most %d are allowed", total, MaxEnvBytes)
	}
}

// args checks one argument list.
func (v *validator) args(at string, args []string) {
	if len(args) > MaxArgs {
		v.bad(at, "has %d entries; at most %d are allowed", len(args), MaxArgs)
	}
	total := 0
	for i, a := range args {
		total += len(a) + 1
		if strings.ContainsRune(a, 0) {
			v.bad(fmt.Sprintf("%s[%d]", at, i), "has a zero byte, which no argument can hold")
		}
	}
	if total > MaxArgBytes {
		v.bad(at, "takes %d bytes; at most %d are allowed", total, MaxArgBytes)
	}
}

func (v *validator) init(in *Init) {
	if in == nil {
		return
	}
	v.args("config.init.exec", in.Exec)
	v.args("config.init.entrypoint", in.Entrypoint)
	v.args("config.init.cmd", in.Cmd)
	v.refuse(in.SwapSizeMB != 0, "config.init.swap_size_mb", "gives machines no swap")
	v.refuse(len(in.KernelArgs) > 0, "config.init.kernel_args", "has no kernel of the machine's own to pass arguments to")
}

func (v *validator) guest(c *Config) {
	if c.Size != "" {
		if c.Guest != nil {
			v.bad("config.size", "and config.guest are both set; give one of them")
		}
		if _, err := preset(c.Size); err != nil {
			v.bad("config.size", "%v", err)
		}
	}
	g := c.Guest
	if g == nil {
		return
	}
	if g.CPUKind != "" && g.CPUKind != CPUShared && g.CPUKind != CPUPerformance {
		v.bad("config.guest.cpu_kind", "is %q; it is %q or %q", fault.Clip(g.CPUKind), CPUShared, CPUPerformance)
	}
	if g.CPUs < 0 || g.CPUs > MaxCPUs {
		v.bad("config.guest.cpus", "is %d; it must be 1 to %d", g.CPUs, MaxCPUs)
	}
	if g.MemoryMB != 0 && (g.MemoryMB < MinMemoryMB || g.MemoryMB > MaxMemoryMB) {
		v.bad("config.guest.memory_mb", "is %d; it must be %d to %d", g.MemoryMB, MinMemoryMB, MaxMemoryMB)
	}
	v.refuse(g.MaxMemoryMB != 0 && g.MaxMemoryMB != g.MemoryMB, "config.guest.max_memory_mb", "does not grow a machine's memory")
	v.refuse(g.GPUs != 0, "config.guest.gpus", "has no GPUs")
	v.refuse(g.GPUKind != "", "config.guest.gpu_kind", "has no GPUs")
	v.refuse(g.HostDedicationID != "", "config.guest.host_dedication_id", "does not dedicate hosts")
	v.refuse(len(g.KernelArgs) > 0, "config.guest.kernel_args", "has no kernel of the machine's own to pass arguments to")
	v.refuse(g.PersistRootfs != "" && g.PersistRootfs != "never", "config.guest.persist_rootfs", "starts every machine from its image afresh")
}

func (v *validator) storage(c *Config) {
	if r := c.Rootfs; r != nil {
		v.refuse(r.Persist != "" && r.Persist != "never", "config.rootfs.persist", "starts every machine from its image afresh")
		v.refuse(r.SizeGB != 0, "config.rootfs.size_gb", "keeps what a machine writes in its memory and sizes it by that")
	}
}

func (v *validator) metadata(m map[string]string) {
	if len(m) > MaxMetadata {
		v.bad("config.metadata", "has %d entries; at most %d are allowed", len(m), MaxMetadata)
	}
	for _, k := range sortedKeys(m) {
		if k == "" || len(k) > 128 || !printable(k) {
			v.bad("config.metadata", "has the key %q; a key is 1 to 128 printable characters", fault.Clip(k))
		}
		if len(m[k]) > 4096 || !utf8.ValidString(m[k]) {
			v.bad("config.metadata."+fault.Clip(k), "is not valid UTF-8 of at most 4096 bytes")
		}
	}
}

func (v *validator) files(files []File) {
	if len(files) > MaxFiles {
		v.bad("config.files", "has %d entries; at most %d are allowed", len(files), MaxFiles)
		return
	}
	total, seen := 0, map[string]int{}
	for i, f := range files {
		at := fmt.Sprintf("config.files[%d]", i)
		v.guestPath(at+".guest_path", f.GuestPath)
		v.refuse(f.ImageConfig != nil, at+".image_config", "does not write an image's config into a machine")
		total += v.content(at, f)
		if f.Mode > 0o7777 {
			v.bad(at+".mode", "is %#o; it must be at most 07777", f.Mode)
		}
		if j, dup := seen[f.GuestPath]; dup {
			v.bad(at+".guest_path", "%q is that of config.files[%d] too", fault.Clip(f.GuestPath), j)
		}
		seen[f.GuestPath] = i
	}
	if total > MaxFilesBytes {
		v.bad("config.files", "hold %d bytes; at most %d are allowed", total, MaxFilesBytes)
	}
	for p := range seen {
		for d := path.Dir(p); d != "/" && d != "."; d = path.Dir(d) {
			if j, ok := seen[d]; ok {
				v.bad(fmt.Sprintf("config.files[%d].guest_path", j), "%q is a file, and config.files[%d] needs it to be a directory", fault.Clip(d), seen[p])
			}
		}
	}
}

// content checks what a file's content comes from, and returns its size as far as it is
// known: that of a secret is seen when the Machine starts.
func (v *validator) content(at string, f File) int {
	switch {
	case f.SecretName != nil && f.RawValue != nil:
		v.bad(at+".secret_name", "and raw_value are both set; give one of them")
	case f.SecretName != nil:
		if !secretNameRE.MatchString(*f.SecretName) {
			v.bad(at+".secret_name", "%q is not the name of a secret", fault.Clip(*f.SecretName))
		}
	case f.RawValue == nil:
		v.bad(at+".raw_value", "is missing; give the file's content in base64, or secret_name, whose value is base64")
	default:
		b, err := base64.StdEncoding.DecodeString(*f.RawValue)
		if err != nil {
			v.bad(at+".raw_value", "is not base64 (%v)", err)
		}
		return len(b)
	}
	return 0
}

// platformDirs are file systems of the platform's inside every Machine: a file of the
// image below one would never be seen.
var platformDirs = []string{"/dev", "/proc", "/sys", "/.fly"}

// guestPath checks the path of a file inside a Machine.
func (v *validator) guestPath(at, p string) {
	for _, d := range platformDirs {
		if p == d || strings.HasPrefix(p, d+"/") {
			v.bad(at, "is %q, and %s is the platform's in every machine; choose another path", fault.Clip(p), d)
		}
	}
	if !path.IsAbs(p) || path.Clean(p) != p || p == "/" || len(p) > 1024 || strings.ContainsRune(p, 0) {
		v.bad(at, "is %q; it must be an absolute path of at most 1024 bytes without \"..\" or a slash at its end", fault.Clip(p))
	}
	for _, part := range strings.Split(p, "/") {
		if len(part) > 255 {
			v.bad(at, "has a part of %d bytes; at most 255 are allowed", len(part))
		}
	}
}

func (v *validator) restart(r *Restart) {
	if r == nil {
		return
	}
	switch r.Policy {
	case "", RestartNo, RestartOnFailure, RestartAlways:
	default:
		v.bad("config.restart.policy", "is %q; it is %q, %q or %q", fault.Clip(r.Policy), RestartNo, RestartOnFailure, RestartAlways)
	}
	if r.MaxRetries < 0 || r.MaxRetries > MaxMaxRetries {
		v.bad("config.restart.max_retries", "is %d; it must be 0 (which means %d) to %d", r.MaxRetries, DefaultMaxRetries, MaxMaxRetries)
	}
}

func (v *validator) stop(s *StopConfig) {
	if s == nil {
		return
	}
	if s.Signal != "" {
		if _, err := ParseSignal(s.Signal); err != nil {
			v.bad("config.stop_config.signal", "is not acceptable: %s", fault.MessageOf(err))
		}
	}
	v.duration("config.stop_config.timeout", s.Timeout, 0, MaxStopTimeout)
}

func (v *validator) duration(at string, d *Duration, least, most time.Duration) {
	if d != nil && (time.Duration(*d) < least || time.Duration(*d) > most) {
		v.bad(at, "is %v; it must be %v to %v", time.Duration(*d), least, most)
	}
}

func (v *validator) dns(d *DNS) {
	if d == nil {
		return
	}
	if len(d.Nameservers) > maxNameservers {
		v.bad("config.dns.nameservers", "has %d entries; a resolver reads at most %d", len(d.Nameservers), maxNameservers)
	}
	for i, s := range d.Nameservers {
		if a, err := netip.ParseAddr(s); err != nil || a.Zone() != "" {
			v.bad(fmt.Sprintf("config.dns.nameservers[%d]", i), "%q is not an IP address", fault.Clip(s))
		}
	}
	if len(d.Searches) > maxSearches {
		v.bad("config.dns.searches", "has %d entries; a resolver reads at most %d", len(d.Searches), maxSearches)
	}
	for i, s := range d.Searches {
		v.domain(fmt.Sprintf("config.dns.searches[%d]", i), s)
	}
	for i, o := range d.Options {
		if !optionRE.MatchString(o.Name) || o.Value != "" && !optionRE.MatchString("v"+o.Value) {
			v.bad(fmt.Sprintf("config.dns.options[%d]", i), "%q is not a resolver option such as ndots", fault.Clip(o.Name))
		}
	}
	if len(d.Options) > 16 {
		v.bad("config.dns.options", "has %d entries; at most 16 are allowed", len(d.Options))
	}
	v.refuse(len(d.DNSForwardRules) > 0, "config.dns.dns_forward_rules", "has no resolver of its own to forward with")
	if d.Hostname != "" && !hostnameRE.MatchString(d.Hostname) {
		v.bad("config.dns.hostname", "%q is not a host name of at most 63 letters, digits and dashes", fault.Clip(d.Hostname))
	}
	if d.HostnameFQDN != "" {
		v.domain("config.dns.hostname_fqdn", d.HostnameFQDN)
	}
}

// domain checks a domain name.
func (v *validator) domain(at, s string) {
	ok := s != "" && len(s) <= 253
	for _, label := range strings.Split(strings.TrimSuffix(s, "."), ".") {
		ok = ok && (hostnameRE.MatchString(label) || strings.HasPrefix(label, "_") && hostnameRE.MatchString(label[1:]))
	}
	if !ok {
		v.bad(at, "%q is not a domain name", fault.Clip(s))
	}
}

func (v *validator) processes(ps []Process) {
	if len(ps) > 1 {
		v.bad("config.processes", "has %d entries, but this version of Bulkhead runs one process in each machine; give one", len(ps))
	}
	for i, p := range ps {
		at := fmt.Sprintf("config.processes[%d]", i)
		v.args(at+".exec", p.Exec)
		v.args(at+".entrypoint", p.Entrypoint)
		v.args(at+".cmd", p.Cmd)
		v.env(at+".env", p.Env)
		if len(p.User) > 255 || !printable(p.User) {
			v.bad(at+".user", "%q is not a user name or id", fault.Clip(p.User))
		}
		v.secrets(at+".secrets", p.Secrets)
		v.refuse(len(p.EnvFrom) > 0, at+".env_from", "fills no variables from fields")
	}
}

// maxProcessSecrets bounds the secrets that a process names.
const maxProcessSecrets = 500

var secretNameRE = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,254}$`)

func (v *validator) secrets(at string, all []Secret) {
	if len(all) > maxProcessSecrets {
		v.bad(at, "has %d entries; at most %d are allowed", len(all), maxProcessSecrets)
	}
	for i, s := range all {
		if !secretNameRE.MatchString(s.EnvVar) || strings.HasPrefix(s.EnvVar, "FLY_") || strings.HasPrefix(s.EnvVar, "BULKHEAD_") {
			v.bad(fmt.Sprintf("%s[%d].env_var", at, i), "%q is not the name of an environment variable that a secret may become", fault.Clip(s.EnvVar))
		}
		if s.Name != "" && !secretNameRE.MatchString(s.Name) {
			v.bad(fmt.Sprintf("%s[%d].name", at, i), "%q is not the name of a secret", fault.Clip(s.Name))
		}
	}
}

// printable reports whether s is free of control characters and valid UTF-8.
func printable(s string) bool {
	for _, r := range s {
		if r < 0x20 || r == 0x7f || r == utf8.RuneError {
			return false
		}
	}
	return true
}

// sortedKeys makes errors independent of the map's order.
func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
