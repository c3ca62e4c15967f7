package warden

import (
	"path"
	"slices"
	"strings"

	"bulkhead/fault"
	"bulkhead/grant"
	"bulkhead/key"
	"bulkhead/privnet"
	"bulkhead/sandbox"
)

// Bounds on what a Spec may hold beyond those of package sandbox.
const (
	maxGroups = 64
	noID      = ^uint32(0) // "no user" to the kernel
)

// checkSpec checks every field of s and returns the grant that covers it. It looks
// at the strings that a tenant wrote only to bound them.
func (s *Server) checkSpec(spec *sandbox.Spec) (grant.Grant, error) {
	if spec == nil {
		return grant.Grant{}, fault.New(fault.Invalid, "a start without a spec")
	}
	if _, err := key.ParseMachineID(string(spec.Machine)); err != nil {
		return grant.Grant{}, err
	}
	if _, err := key.ParseInstanceID(string(spec.Instance)); err != nil {
		return grant.Grant{}, err
	}
	if err := privnet.CheckSlot(spec.Slot); err != nil {
		return grant.Grant{}, fault.Wrap(fault.Invalid, err, "%v", err)
	}
	if _, err := key.ParseDigest(string(spec.Image)); err != nil {
		return grant.Grant{}, err
	}
	g, err := grant.Verify(s.config.GrantKey, s.config.Node, spec.Grant, spec.GrantSignature)
	if err != nil {
		return grant.Grant{}, err
	}
	if err := checkGrant(g, spec); err != nil {
		return grant.Grant{}, err
	}
	if err := g.Usable(s.config.Now()); err != nil {
		return grant.Grant{}, err
	}
	return g.Complete(), checkProcess(spec)
}

// checkGrant checks that g is for this Machine and that its limits make sense.
func checkGrant(g grant.Grant, spec *sandbox.Spec) error {
	switch {
	case g.Machine != spec.Machine:
		return fault.New(fault.Denied, "the grant is for machine %s, not %s", g.Machine, spec.Machine)
	case g.Instance != spec.Instance:
		return fault.New(fault.Denied, "the grant is for instance %s of machine %s, not %s", g.Instance, spec.Machine, spec.Instance)
	case g.Network == 0:
		return fault.New(fault.Denied, "the grant is for network 0, which is the platform's own")
	case g.MemoryMB < 32 || g.MemoryMB > 1<<20, g.CPUs < 1 || g.CPUs > 1024, g.CPUQuota < 0 || g.CPUQuota > 1024*100,
		g.MaxPIDs < 64 || g.MaxPIDs > 1<<22, g.DiskMB < 1 || g.DiskMB > 1<<20,
		g.Processes < 0 || g.Processes > 1<<22, g.OpenFiles < 0 || g.OpenFiles > 1<<20, g.Inodes < 0 || g.Inodes > 1<<32,
		g.NetworkMbps < 0 || g.NetworkMbps > 1<<20, g.PacketsPerSecond < 0 || g.PacketsPerSecond > 1<<30:
		return fault.New(fault.Invalid, "the grant's limits %+v are out of range", g)
	}
	return nil
}

// checkProcess bounds the description of the first process.
func checkProcess(spec *sandbox.Spec) error {
	if len(spec.Upper) > sandbox.MaxUpper {
		return fault.New(fault.Invalid, "upper archive of %d bytes is over the limit of %d", len(spec.Upper), sandbox.MaxUpper)
	}
	if len(spec.Groups) > maxGroups {
		return fault.New(fault.Invalid, "%d supplementary groups are over the limit of %d", len(spec.Groups), maxGroups)
	}
	for _, id := range append([]uint32{spec.UID, spec.GID}, spec.Groups...) {
		if id == noID {
			return fault.New(fault.Invalid, "user or group id %d means nobody", id)
		}
	}
	if !hostname(spec.Hostname) {
		return fault.New(fault.Invalid, "hostname must have 1 to 63 letters, digits and dashes")
	}
	return checkStrings(spec.Args, spec.Env, spec.Cwd)
}

// hostname reports whether s may be a host name.
func hostname(s string) bool {
	if len(s) < 1 || len(s) > 63 {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	return true
}

// checkStrings bounds a command.
func checkStrings(args, env []string, cwd string) error {
	if len(args) == 0 || args[0] == "" {
		return fault.New(fault.Invalid, "args: there is no command to run")
	}
	size := len(cwd)
	for _, list := range [][]string{args, env, {cwd}} {
		for _, s := range list {
			if strings.IndexByte(s, 0) >= 0 {
				return fault.New(fault.Invalid, "args, env and cwd must not hold a zero byte")
			}
			size += len(s) + 1
		}
	}
	if size > sandbox.MaxStrings {
		return fault.New(fault.Invalid, "args and env have %d bytes together, over the limit of %d", size, sandbox.MaxStrings)
	}
	for _, e := range env {
		if strings.IndexByte(e, '=') < 1 {
			return fault.New(fault.Invalid, "env: an entry is not NAME=value")
		}
	}
	if !path.IsAbs(cwd) {
		return fault.New(fault.Invalid, "cwd: the working directory must be an absolute path")
	}
	return nil
}

// checkExec checks e.
func checkExec(e *sandbox.ExecSpec) error {
	if e == nil {
		return fault.New(fault.Invalid, "an exec without a command")
	}
	if e.Timeout < 0 || e.Timeout > sandbox.MaxExec {
		return fault.New(fault.Invalid, "timeout %s of an exec is not between 0 and %s", e.Timeout, sandbox.MaxExec)
	}
	if len(e.Groups) > maxGroups {
		return fault.New(fault.Invalid, "%d supplementary groups are over the limit of %d", len(e.Groups), maxGroups)
	}
	if e.UID == noID || e.GID == noID || slices.Contains(e.Groups, noID) {
		return fault.New(fault.Invalid, "user or group id %d means nobody", noID)
	}
	return checkStrings(e.Args, e.Env, e.Cwd)
}
