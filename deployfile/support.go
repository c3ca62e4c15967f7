package deployfile

import (
	"slices"
	"sort"
)

// support goes through what the grammar knows and Bulkhead cannot honour yet. A
// key is refused where leaving it out would lose data or change what the app does,
// and warned about where the app merely runs with less comfort. This file gets
// shorter as Bulkhead grows; keep it equal to machine.Config.Validate.
func (f *File) support(b *binder) {
	refuse := func(when bool, path, why string) {
		if when {
			b.errorf(path, "%s is not supported yet: %s", path, why)
		}
	}
	warn := func(when bool, path, why string) {
		if when {
			b.warnf(path, "%s is left out: %s", path, why)
		}
	}
	f.supportTop(refuse, warn)
	f.supportBuild(warn)
	f.supportServices(refuse, warn)
	f.supportVM(refuse, warn)
}

// noter reports one key.
type noter func(when bool, path, why string)

const (
	noChecks        = "Bulkhead runs no health checks; a Machine that runs counts as healthy"
	noMachineChecks = "Bulkhead runs no test Machines in a deploy"
)

func (f *File) supportTop(refuse, warn noter) {
	refuse(len(f.Mounts) > 0, "mounts", "Bulkhead has no volumes, and what the app wrote would be lost")
	refuse(len(f.Statics) > 0, "statics", "the edge does not serve files of an image; let the app serve them")
	refuse(f.MachineConfigRaw != nil, "machine_config", "write the settings as keys of this file")
	refuse(f.Container != "", "container", "a Machine runs one image")
	refuse(len(f.MachineChecks) > 0, "machine_checks", noMachineChecks)
	warn(f.SwapSizeMB != nil && *f.SwapSizeMB > 0, "swap_size_mb", "Machines have no swap")
	warn(f.ConsoleCommand != "", "console_command", "Bulkhead has no console; use \"bulkhead machine exec\"")
	warn(f.HostDedicationID != "", "host_dedication_id", "hosts are not dedicated")
	warn(len(f.Checks) > 0, "checks", noChecks)
	warn(len(f.Metrics) > 0, "metrics", "an app's own metrics are not collected")
	if e := f.Experimental; e != nil {
		refuse(e.EnableConsul, "experimental.enable_consul", "Bulkhead has no Consul")
		refuse(e.EnableEtcd, "experimental.enable_etcd", "apps have no etcd of the platform")
		refuse(e.Attached != nil && len(e.Attached.Secrets.Export) > 0, "experimental.attached.secrets.export", "Bulkhead has no secrets")
		refuse(e.MachineConfig != nil, "experimental.machine_config", "write the settings as keys of this file")
		warn(e.AutoRollback != nil && !*e.AutoRollback, "experimental.auto_rollback", "a Machine that does not start always gets its old version back")
		warn(e.LazyLoadImages, "experimental.lazy_load_images", "images are always loaded whole")
	}
	if d := f.Deploy; d != nil {
		refuse(d.ReleaseCommand != "", "deploy.release_command", "run it with \"bulkhead machine run --rm\" before the deploy")
		warn(d.ReleaseCommandTimeout.Set, "deploy.release_command_timeout", "no release command is run")
		warn(d.ReleaseCommandVM != nil, "deploy.release_command_vm", "no release command is run")
		refuse(d.SeedCommand != "", "deploy.seed_command", "run it with \"bulkhead machine run --rm\" after the first deploy")
	}
}

// supportBuild warns about build keys; that an image is named at all is checked
// when the file is deployed, since the command line may name it.
func (f *File) supportBuild(warn noter) {
	bu := f.Build
	if bu == nil || bu.Image == "" {
		return
	}
	for _, k := range bu.recipe() {
		warn(true, "build."+k, "build.image names an image, which is used as it is")
	}
}

// recipe names the keys of [build] that say how to build an image from source.
func (bu *Build) recipe() []string {
	var ks []string
	add := func(set bool, k string) {
		if set {
			ks = append(ks, k)
		}
	}
	add(bu.Builder != "", "builder")
	add(len(bu.Buildpacks) > 0, "buildpacks")
	add(len(bu.Args) > 0, "args")
	add(len(bu.Settings) > 0, "settings")
	add(bu.Builtin != "", "builtin")
	add(bu.Dockerfile != "", "dockerfile")
	add(bu.Ignorefile != "", "ignorefile")
	add(bu.BuildTarget != "", "build-target")
	add(bu.Compose != nil, "compose")
	add(bu.Compression != "", "compression")
	add(bu.CompressionLevel != nil, "compression_level")
	return ks
}

// Recipe returns the keys of [build] that ask for a build from source, sorted; a
// file with some and without build.image cannot be deployed alone.
func (f *File) Recipe() []string {
	if f.Build == nil {
		return nil
	}
	ks := f.Build.recipe()
	sort.Strings(ks)
	return ks
}

func (f *File) supportServices(refuse, warn noter) {
	if h := f.HTTPService; h != nil {
		warn(len(h.Checks) > 0, "http_service.checks", noChecks)
		refuse(len(h.MachineChecks) > 0, "http_service.machine_checks", noMachineChecks)
		supportTLS(refuse, "http_service", h.TLSOptions)
		supportHTTP(refuse, warn, "http_service", h.HTTPOptions)
	}
	for i, s := range f.Services {
		p := entry("services", i, len(f.Services), f)
		refuse(s.Protocol == "udp", join(p, "protocol"), "only HTTP over TCP is exposed, so \"udp\" cannot be")
		warn(len(s.TCPChecks) > 0, join(p, "tcp_checks"), noChecks)
		warn(len(s.HTTPChecks) > 0, join(p, "http_checks"), noChecks)
		refuse(len(s.MachineChecks) > 0, join(p, "machine_checks"), noMachineChecks)
		for j, port := range s.Ports {
			pp := f.portPath(p, j, len(s.Ports))
			supportPort(refuse, warn, pp, port)
		}
	}
}

// portPath is the path of the j-th of n ports of a service.
func (f *File) portPath(service string, j, n int) string {
	p := join(service, "ports")
	if _, ok := f.positions[p+"[0]"]; !ok && n == 1 {
		return p
	}
	return entryPath(p, j)
}

func supportPort(refuse, warn noter, p string, port Port) {
	refuse(port.StartPort != nil, join(p, "start_port"), "ranges of ports are not exposed")
	refuse(port.EndPort != nil, join(p, "end_port"), "ranges of ports are not exposed")
	refuse(port.Port == nil && port.StartPort == nil && port.EndPort == nil, p, "a port needs the key \"port\"")
	refuse(port.Port != nil && *port.Port != machinePortHTTP && *port.Port != machinePortHTTPS, join(p, "port"), "the edge listens on 80 and 443 alone")
	for _, h := range port.Handlers {
		refuse(h != "http" && h != "tls", join(p, "handlers"), "the handlers are \"http\" and \"tls\"")
	}
	refuse(!slices.Contains(port.Handlers, "http"), join(p, "handlers"), "only HTTP is exposed, so \"http\" must be among the handlers")
	refuse(port.ProxyProtoOptions != nil, join(p, "proxy_proto_options"), "the edge does not send the PROXY protocol")
	supportTLS(refuse, p, port.TLSOptions)
	supportHTTP(refuse, warn, p, port.HTTPOptions)
}

// supportTLS refuses what the edge does not do anyway: TLS 1.2 and 1.3, HTTP/1.1 and HTTP/2.
func supportTLS(refuse noter, p string, o *TLSOptions) {
	if o == nil {
		return
	}
	const why = "the edge chooses TLS versions and protocols itself"
	all := func(asked []string, every ...string) bool {
		return len(asked) == 0 || !slices.ContainsFunc(every, func(s string) bool { return !slices.Contains(asked, s) })
	}
	refuse(!all(o.Versions, "TLSv1.2", "TLSv1.3"), join(p, "tls_options.versions"), why)
	refuse(!all(o.ALPN, "h2", "http/1.1"), join(p, "tls_options.alpn"), why)
	refuse(o.DefaultSelfSigned != nil && *o.DefaultSelfSigned, join(p, "tls_options.default_self_signed"), why)
}

func supportHTTP(refuse, warn noter, p string, o *HTTPOptions) {
	if o == nil {
		return
	}
	p = join(p, "http_options")
	warn(o.Compress != nil && *o.Compress, join(p, "compress"), "answers are passed on as the app writes them")
	warn(o.IdleTimeout != nil, join(p, "idle_timeout"), "the edge's timeouts are fixed")
	warn(o.HeadersReadTimeout != nil, join(p, "headers_read_timeout"), "the edge's timeouts are fixed")
	refuse(o.Response != nil, join(p, "response"), "the edge does not change an app's headers")
	refuse(len(o.ReplayCache) > 0, join(p, "replay_cache"), "the edge does not replay requests")
}

func (f *File) supportVM(refuse, warn noter) {
	for i, v := range f.VM {
		p := entry("vm", i, len(f.VM), f)
		refuse(v.GPUs != 0, join(p, "gpus"), "there are no GPUs")
		refuse(v.GPUKind != "", join(p, "gpu_kind"), "there are no GPUs")
		warn(v.HostDedicationID != "", join(p, "host_dedication_id"), "hosts are not dedicated")
		warn(len(v.KernelArgs) > 0, join(p, "kernel_args"), "a sandbox has no kernel command line")
		refuse(v.PersistRootfs != "" && v.PersistRootfs != "never", join(p, "persist_rootfs"), "every start is from the image afresh, and what the app wrote would be lost")
	}
}
