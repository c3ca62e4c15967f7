package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"sort"
	"strings"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/fault"
	"bulkhead/image"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/sandbox"
)

// defaultPath is PATH where neither the image nor the config sets it, as Docker's.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// ownInitLabel is the label with the value "true" of an image whose command must be process 1.
const ownInitLabel = "bulkhead.own-init"

func instanceOf(a *internalpb.Assignment) key.InstanceID { return key.InstanceID(a.GetInstanceId()) }

// configOf reads the assignment's config.
func configOf(a *internalpb.Assignment) (*machine.Config, error) {
	c := new(machine.Config)
	if err := json.Unmarshal(a.GetConfig(), c); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the machine's config cannot be read")
	}
	return c, nil
}

// refOf reads the assignment's image reference.
func refOf(a *internalpb.Assignment) (machine.ImageRef, error) {
	var r machine.ImageRef
	if err := json.Unmarshal(a.GetImageRef(), &r); err != nil {
		return r, fault.Wrap(fault.Invalid, err, "the machine's image reference cannot be read")
	}
	if _, err := key.ParseDigest(string(r.Digest)); err != nil {
		return r, err
	}
	return r, nil
}

// ensureImage makes the assignment's image ready, with only a few fetches at a
// time. An image that this version has run from is found without asking anybody, so
// that restarts need no registry and no controller.
func (a *actor) ensureImage(ctx context.Context) (*image.Image, error) {
	if a.rec.Image != "" && a.rec.Instance == instanceOf(a.asg) {
		if img, ok := a.w.images.Lookup(a.rec.Image); ok {
			a.w.used(img.Digest)
			return img, nil
		}
	}
	ref, err := refOf(a.asg)
	if err != nil {
		return nil, err
	}
	places := a.w.fetches
	if ref.Registry != "" {
		places = a.w.foreign
	}
	release, err := places.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	a.w.sealing.RLock() // no collection between the sealing and its mark
	defer a.w.sealing.RUnlock()
	began := time.Now()
	img, err := a.w.images.Ensure(ctx, a.id, ref)
	if err != nil {
		return nil, err
	}
	a.w.metrics.fetchSeconds.Observe(time.Since(began).Seconds())
	a.w.used(img.Digest)
	return img, nil
}

// guestMB is the memory that the Machine takes of the node, in MiB.
func guestMB(asg *internalpb.Assignment) int64 {
	c, err := configOf(asg)
	if err != nil {
		return 0
	}
	return int64(c.EffectiveGuest().MemoryMB)
}

// stopWith is the signal and the timeout of the stop in progress.
func (a *actor) stopWith() (signal int, timeout time.Duration) {
	c, err := configOf(a.asg)
	if err != nil {
		c = new(machine.Config)
	}
	imageSignal := ""
	if img, ok := a.w.images.Lookup(a.rec.Image); ok {
		imageSignal = img.Config.StopSignal
	}
	signal, timeout = c.Stop(imageSignal)
	if n, err := machine.ParseSignal(a.asg.GetStopSignal()); err == nil {
		signal = n
	}
	if ms := a.asg.GetStopTimeoutMs(); ms > 0 {
		timeout = min(time.Duration(ms)*time.Millisecond, machine.MaxStopTimeout)
	}
	return signal, timeout
}

// spec builds what the sandbox is started from.
func (a *actor) spec(img *image.Image) (sandbox.Spec, error) {
	cfg, err := configOf(a.asg)
	if err != nil {
		return sandbox.Spec{}, err
	}
	p := machine.Process{}
	if len(cfg.Processes) > 0 {
		p = cfg.Processes[0]
	}
	s := sandbox.Spec{
		Machine: a.id, Instance: instanceOf(a.asg), Slot: a.rec.Slot,
		Grant: a.asg.GetGrant(), GrantSignature: a.asg.GetGrantSignature(),
		Image: img.Digest, Cwd: img.Config.WorkingDir, Hostname: hostname(cfg, a.id),
		TTY: cfg.Init != nil && cfg.Init.TTY, OwnInit: img.Config.Labels[ownInitLabel] == "true",
	}
	if s.TTY && s.OwnInit {
		return s, fault.New(fault.Unprocessable, "init.tty needs the platform's init, and the image's label %s refuses it", ownInitLabel)
	}
	if s.Cwd == "" {
		s.Cwd = "/"
	}
	if !path.IsAbs(s.Cwd) {
		s.Cwd = "/" + s.Cwd
	}
	s.Cwd = path.Clean(s.Cwd)
	if s.Args = command(cfg.Init, p, img.Config); len(s.Args) == 0 {
		return s, fault.New(fault.Unprocessable, "image %s has no command of its own; set config.init.exec or config.init.cmd", cfg.Image)
	}
	var home string
	if s.UID, s.GID, s.Groups, home, err = img.ResolveUser(orElse(p.User, img.Config.User)); err != nil {
		return s, err
	}
	addr := privateIP(a.rec, a.asg, a.w.opt.Host)
	s.Env = environment(cfg, p, img.Config.Env, a.platformEnv(cfg, addr), home, s.TTY)
	files, err := machineFiles(cfg, a.id, addr, a.w.nameservers())
	if err != nil {
		return s, err
	}
	if s.Upper, err = upper(files); err != nil {
		return s, err
	}
	n := 0
	for _, x := range append(slices.Clone(s.Args), s.Env...) {
		n += len(x) + 1
	}
	if n > sandbox.MaxStrings {
		return s, fault.New(fault.Unprocessable, "the machine's arguments and environment take %d bytes; at most %d are allowed", n, sandbox.MaxStrings)
	}
	return s, nil
}

// command is what runs: the process's or init's exec; else entrypoint and cmd, each
// from the config before the image, where a config's entrypoint drops the image's
// cmd, as in Docker.
func command(init *machine.Init, p machine.Process, img image.Config) []string {
	if init == nil {
		init = &machine.Init{}
	}
	for _, exec := range [][]string{p.Exec, init.Exec} {
		if len(exec) > 0 {
			return slices.Clone(exec)
		}
	}
	entrypoint, cmd := img.Entrypoint, img.Cmd
	for _, over := range []struct{ entrypoint, cmd []string }{{init.Entrypoint, init.Cmd}, {p.Entrypoint, p.Cmd}} {
		if len(over.entrypoint) > 0 {
			entrypoint, cmd = over.entrypoint, nil
		}
		if len(over.cmd) > 0 {
			cmd = over.cmd
		}
	}
	return append(slices.Clone(entrypoint), cmd...)
}

// platformEnv is what Bulkhead tells every Machine about itself, under Fly's names
// and its own.
func (a *actor) platformEnv(cfg *machine.Config, addr string) map[string]string {
	ref, _ := refOf(a.asg)
	image := ref.Repository
	if ref.Registry != "" {
		image = ref.Registry + "/" + image
	}
	if ref.Tag != "" {
		image += ":" + ref.Tag
	}
	image += "@" + string(ref.Digest)
	env := map[string]string{
		"FLY_APP_NAME": a.asg.GetApp(), "FLY_MACHINE_ID": string(a.id), "FLY_ALLOC_ID": string(a.id),
		"FLY_REGION": a.asg.GetRegion(), "FLY_IMAGE_REF": image, "FLY_MACHINE_VERSION": a.asg.GetInstanceId(),
		"FLY_PRIVATE_IP": addr, "FLY_VM_MEMORY_MB": fmt.Sprint(cfg.EffectiveGuest().MemoryMB),
		"PRIMARY_REGION": a.asg.GetRegion(),

		"BULKHEAD_APP_NAME": a.asg.GetApp(), "BULKHEAD_MACHINE_ID": string(a.id), "BULKHEAD_REGION": a.asg.GetRegion(),
		"BULKHEAD_IMAGE_REF": image, "BULKHEAD_MACHINE_VERSION": a.asg.GetInstanceId(), "BULKHEAD_PRIVATE_IP": addr,
	}
	if g := cfg.Metadata["fly_process_group"]; g != "" {
		env["FLY_PROCESS_GROUP"] = g
	}
	return env
}

// environment merges: defaults, the image's, the platform's, the config's, the
// process's, each over the ones before. The result is sorted.
func environment(cfg *machine.Config, p machine.Process, img []string, platform map[string]string, home string, tty bool) []string {
	env := map[string]string{"PATH": defaultPath, "HOME": home}
	if tty {
		env["TERM"] = "xterm"
	}
	for _, kv := range img {
		if k, v, ok := strings.Cut(kv, "="); ok && k != "" {
			env[k] = v
		}
	}
	for _, m := range []map[string]string{platform, cfg.Env, p.Env} {
		for k, v := range m {
			env[k] = v
		}
	}
	out := make([]string, 0, len(env))
	for k, v := range env {
		out = append(out, k+"="+v)
	}
	sort.Strings(out)
	return out
}

// hostname is the config's, or the Machine's id.
func hostname(cfg *machine.Config, id key.MachineID) string {
	if cfg.DNS != nil && cfg.DNS.Hostname != "" {
		return cfg.DNS.Hostname
	}
	return string(id)
}
