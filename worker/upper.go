package worker

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"fmt"
	"net/netip"
	"path"
	"sort"
	"strings"
	"time"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/sandbox"
)

// file is a regular file that is laid over the image.
type file struct {
	content []byte
	mode    int64
}

// machineFiles are the platform's files of a Machine, and the config's over them,
// by absolute path.
func machineFiles(cfg *machine.Config, id key.MachineID, addr string, nameservers []netip.Addr) (map[string]file, error) {
	host := hostname(cfg, id)
	files := map[string]file{
		"/etc/hostname":    {[]byte(host + "\n"), 0o644},
		"/etc/hosts":       {hosts(cfg, host, addr), 0o644},
		"/etc/resolv.conf": {resolvConf(cfg.DNS, nameservers), 0o644},
	}
	for i, f := range cfg.Files {
		if f.RawValue == nil && f.SecretName == nil || !path.IsAbs(f.GuestPath) || path.Clean(f.GuestPath) != f.GuestPath || f.GuestPath == "/" {
			return nil, fault.New(fault.Invalid, "config.files[%d] has no content or no clean absolute path", i)
		}
		var b []byte // empty for a secret: the sandbox puts the content in (Spec.SecretFiles)
		if f.SecretName == nil {
			var err error
			if b, err = base64.StdEncoding.DecodeString(*f.RawValue); err != nil {
				return nil, fault.Wrap(fault.Invalid, err, "config.files[%d].raw_value is not base64", i)
			}
		}
		mode := int64(f.Mode & 0o7777)
		if mode == 0 {
			mode = 0o644
		}
		files[f.GuestPath] = file{b, mode}
	}
	return files, nil
}

// hosts is /etc/hosts, as on Fly.
func hosts(cfg *machine.Config, host, addr string) []byte {
	names := host
	if cfg.DNS != nil && cfg.DNS.HostnameFQDN != "" {
		names = strings.TrimSuffix(cfg.DNS.HostnameFQDN, ".") + " " + names
	}
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost localhost.localdomain localhost4 localhost4.localdomain4\n")
	b.WriteString("::1\tlocalhost localhost.localdomain localhost6 localhost6.localdomain6\n")
	b.WriteString("fe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	if addr != "" {
		fmt.Fprintf(&b, "# Private address of this machine\n%s\tfly-local-6pn %s\n", addr, names)
	}
	return []byte(b.String())
}

// resolvConf is /etc/resolv.conf: the config's nameservers, or the node's.
func resolvConf(d *machine.DNS, nameservers []netip.Addr) []byte {
	if d == nil {
		d = &machine.DNS{}
	}
	var b strings.Builder
	if len(d.Nameservers) > 0 {
		for _, n := range d.Nameservers {
			fmt.Fprintf(&b, "nameserver %s\n", n)
		}
	} else {
		for _, n := range nameservers {
			fmt.Fprintf(&b, "nameserver %s\n", n)
		}
		if len(nameservers) == 0 {
			b.WriteString("# this node has no name server that machines can reach: its operator sets nameservers in bulkhead.toml\n")
		}
	}
	if len(d.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(d.Searches, " "))
	}
	for _, o := range d.Options {
		if o.Value == "" {
			fmt.Fprintf(&b, "options %s\n", o.Name)
		} else {
			fmt.Fprintf(&b, "options %s:%s\n", o.Name, o.Value)
		}
	}
	return []byte(b.String())
}

// upper writes files as the archive that the sandbox puts into the image: every name begins
// with "./", everything is owned by root, and the same files give the same bytes.
func upper(files map[string]file) ([]byte, error) {
	names := make([]string, 0, len(files))
	for p := range files {
		for d := path.Dir(p); d != "/"; d = path.Dir(d) {
			if _, isFile := files[d]; isFile {
				return nil, fault.New(fault.Invalid, "%q is a file and %q needs it to be a directory", d, p)
			}
		}
		names = append(names, p)
	}
	sort.Strings(names)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, n := range names {
		f := files[n]
		h := &tar.Header{Name: "." + n, Typeflag: tar.TypeReg, Mode: f.mode, Size: int64(len(f.content)), ModTime: time.Unix(0, 0), Format: tar.FormatUnknown}
		if err := w.WriteHeader(h); err != nil {
			return nil, fault.Wrap(fault.Unprocessable, err, "the file %q cannot be put into the machine", n)
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, fault.Wrap(fault.Internal, err, "the files of the machine cannot be packed")
		}
	}
	if err := w.Close(); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the files of the machine cannot be packed")
	}
	if b.Len() > sandbox.MaxUpper {
		return nil, fault.New(fault.Unprocessable, "the machine's files take %d bytes packed; at most %d are allowed", b.Len(), sandbox.MaxUpper)
	}
	return b.Bytes(), nil
}
