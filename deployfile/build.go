package deployfile

import (
	"fmt"
	"slices"
	"time"

	"bulkhead/fault"
	"bulkhead/machine"
)

const (
	machinePortHTTP  = machine.PortHTTP
	machinePortHTTPS = machine.PortHTTPS
)

// Reserved metadata that marks a Machine as managed by deploy.
const (
	metaPlatform = "fly_platform_version"
	metaGroup    = "fly_process_group"
	platformV2   = "v2"
)

// defaultInternalPort is where [http_service] expects the app.
const defaultInternalPort = 8080

// entryPath is the path of an entry of a list.
func entryPath(list string, i int) string { return fmt.Sprintf("%s[%d]", list, i) }

// HTTPServices returns the services of an app whose one HTTP port is internalPort:
// port 80, sent on to HTTPS where force is set, and port 443.
func HTTPServices(internalPort int, force bool) []machine.Service {
	return []machine.Service{{
		Protocol:     "tcp",
		InternalPort: internalPort,
		Ports: []machine.Port{
			{Port: ptr(machinePortHTTP), Handlers: []string{"http"}, ForceHTTPS: force},
			{Port: ptr(machinePortHTTPS), Handlers: []string{"tls", "http"}},
		},
	}}
}

// Mark sets the metadata by which deploy finds the Machines of a group again.
func Mark(c *machine.Config, group string) {
	if c.Metadata == nil {
		c.Metadata = map[string]string{}
	}
	c.Metadata[metaPlatform] = platformV2
	c.Metadata[metaGroup] = group
}

// MachineConfig returns what the Machines of group run, with image as the image.
// old is the config of the Machine that is updated, nil for a new one: its
// metadata, and its size where the file says none, are kept. Local files that the
// file names are read; one that cannot be read is fault.Invalid.
func (f *File) MachineConfig(group, image string, old *machine.Config) (*machine.Config, error) {
	c := &machine.Config{}
	if old != nil {
		c = old.Clone()
	}
	c.Image = image
	c.Mounts, c.Checks, c.Metrics, c.Statics = nil, nil, nil, nil
	Mark(c, group)
	f.setInit(c, group)
	f.setEnv(c, group)
	f.setServices(c, group)
	f.setStop(c)
	f.setRestart(c, group)
	if err := f.setGuest(c, group); err != nil {
		return nil, err
	}
	return c, f.setFiles(c, group)
}

func (f *File) setInit(c *machine.Config, group string) {
	in := machine.Init{}
	if c.Init != nil {
		in.TTY = c.Init.TTY
	}
	if cmd := f.Processes[group]; cmd != "" {
		in.Cmd, _ = words(cmd) // checked when the file was read
	}
	if e := f.Experimental; e != nil {
		if in.Cmd == nil {
			in.Cmd = e.Cmd
		}
		in.Entrypoint, in.Exec = e.Entrypoint, e.Exec
	}
	c.Init = nil
	if in.TTY || len(in.Cmd)+len(in.Entrypoint)+len(in.Exec) > 0 {
		c.Init = &in
	}
}

func (f *File) setEnv(c *machine.Config, group string) {
	c.Env = map[string]string{}
	for k, v := range f.Env {
		c.Env[k] = string(v)
	}
	c.Env["FLY_PROCESS_GROUP"] = group
	if f.PrimaryRegion != "" {
		c.Env["PRIMARY_REGION"] = f.PrimaryRegion
	}
}

func (f *File) setServices(c *machine.Config, group string) {
	c.Services = nil
	if h := f.HTTPService; h != nil && f.in(h.Processes, group) {
		c.Services = append(c.Services, h.api())
	}
	for _, sv := range f.Services {
		if f.in(sv.Processes, group) {
			c.Services = append(c.Services, sv.api())
		}
	}
}

// api is the service in the words of the API: ports 80 and 443.
func (h *HTTPService) api() machine.Service {
	port := defaultInternalPort
	if h.InternalPort != nil {
		port = *h.InternalPort
	}
	s := HTTPServices(port, h.ForceHTTPS)[0]
	for i := range s.Ports {
		s.Ports[i].HTTPOptions = h.HTTPOptions.api()
	}
	s.Autostart, s.Autostop = autostart(h.AutoStartMachines), h.AutoStopMachines.api()
	s.MinMachinesRunning, s.Concurrency = h.MinMachinesRunning, h.Concurrency.api()
	return s
}

// api is the service in the words of the API.
func (sv Service) api() machine.Service {
	s := machine.Service{
		Protocol: sv.Protocol, InternalPort: sv.InternalPort,
		Autostart: autostart(sv.AutoStartMachines), Autostop: sv.AutoStopMachines.api(),
		MinMachinesRunning: sv.MinMachinesRunning, Concurrency: sv.Concurrency.api(),
	}
	if s.Protocol == "" {
		s.Protocol = "tcp"
	}
	for _, p := range sv.Ports {
		s.Ports = append(s.Ports, machine.Port{
			Port: p.Port, Handlers: p.Handlers, ForceHTTPS: p.ForceHTTPS, HTTPOptions: p.HTTPOptions.api(),
		})
	}
	return s
}

// autostart is on in a file that does not say; the API's own default is off.
func autostart(b *bool) *bool {
	if b == nil {
		b = new(bool)
		*b = true
	}
	return b
}

func (m StopMode) api() *machine.Autostop {
	if m == "" {
		return nil
	}
	a := machine.Autostop(m)
	return &a
}

func (c *Concurrency) api() *machine.Concurrency {
	if c == nil {
		return nil
	}
	return &machine.Concurrency{Type: c.Type, SoftLimit: c.SoftLimit, HardLimit: c.HardLimit}
}

// api keeps what the edge can do; support has warned about the rest.
func (o *HTTPOptions) api() *machine.HTTPOptions {
	if o == nil || o.H2Backend == nil {
		return nil
	}
	return &machine.HTTPOptions{H2Backend: o.H2Backend}
}

func (f *File) setStop(c *machine.Config) {
	c.StopConfig = nil
	if f.KillSignal == "" && !f.KillTimeout.Set {
		return
	}
	c.StopConfig = &machine.StopConfig{Signal: f.KillSignal}
	if f.KillTimeout.Set {
		d := machine.Duration(f.KillTimeout.D)
		c.StopConfig.Timeout = &d
	}
}

// pick returns the index of the section that says most about group: one that names
// it, or else one that names no group; -1 where there is none.
func pick[S any](sections []S, processes func(S) []string, group string) int {
	found := -1
	for i, s := range sections {
		ps := processes(s)
		if slices.Contains(ps, group) {
			return i
		}
		if len(ps) == 0 && found < 0 {
			found = i
		}
	}
	return found
}

// setRestart takes the last section that applies to the group: one that names it, or one
// without processes for the default group.
func (f *File) setRestart(c *machine.Config, group string) {
	c.Restart = nil
	for _, r := range f.Restart {
		if f.in(r.Processes, group) {
			c.Restart = r.api()
		}
	}
}

func (r Restart) api() *machine.Restart {
	policy := r.Policy
	switch policy {
	case "never":
		policy = machine.RestartNo
	case "", "on-fail":
		policy = machine.RestartOnFailure
	}
	return &machine.Restart{Policy: policy, MaxRetries: r.Retries}
}

func (f *File) setGuest(c *machine.Config, group string) error {
	i := pick(f.VM, func(v VM) []string { return v.Processes }, group)
	if i < 0 {
		return nil
	}
	g, err := f.VM[i].guest()
	if err != nil {
		return fault.New(fault.Invalid, "%s: %v", f.At(entry("vm", i, len(f.VM), f)), err)
	}
	c.Guest, c.Size = g, ""
	return nil
}

func (f *File) setFiles(c *machine.Config, group string) error {
	c.Files = nil
	for i, e := range f.Files {
		if !f.in(e.Processes, group) {
			continue
		}
		content := []byte(e.RawValue)
		if e.LocalPath != "" {
			var err error
			if content, err = f.readLocal(i); err != nil {
				return err
			}
		}
		c.Files = append(c.Files, e.api(content))
	}
	return nil
}

// Strategy returns the deploy strategy, "rolling" by default.
func (f *File) Strategy() string {
	if f.Deploy == nil || f.Deploy.Strategy == "" {
		return "rolling"
	}
	return f.Deploy.Strategy
}

// MaxUnavailable returns how many of n Machines may be down at once in a rolling
// deploy: at least 1.
func (f *File) MaxUnavailable(n int) int {
	share := Share(0.33)
	if f.Deploy != nil && f.Deploy.MaxUnavailable != nil {
		share = *f.Deploy.MaxUnavailable
	}
	if share >= 1 {
		return min(int(share), max(n, 1))
	}
	return max(int(float64(share)*float64(n)), 1)
}

// WaitTimeout returns how long one Machine has to start, 5 minutes by default.
func (f *File) WaitTimeout() time.Duration {
	if f.Deploy == nil || !f.Deploy.WaitTimeout.Set {
		return 5 * time.Minute
	}
	return f.Deploy.WaitTimeout.D
}

func ptr[T any](v T) *T { return &v }
