package worker

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc"

	"bulkhead/api/internalpb"
	"bulkhead/fault"
	"bulkhead/machine"
	"bulkhead/sandbox"
	"bulkhead/secret"
)

// SecretSource is what a Worker asks for its Machines' secrets: the controller.
type SecretSource interface {
	FetchSecrets(ctx context.Context, in *internalpb.FetchSecretsRequest, opts ...grpc.CallOption) (*internalpb.FetchSecretsResponse, error)
}

// secretsLimit is how long a start waits for the controller's answer.
const secretsLimit = 5 * time.Second

// secrets returns what the Machine is started with, variables (NAME=value) and contents
// of files, and its version. The
// controller is asked at each start. When it cannot be reached, what the Machine was
// started with last is taken if it is still there and not too old; a Machine that has
// no secrets as far as is known starts without; every other waits.
func (a *actor) secrets(ctx context.Context) (env []string, files []sandbox.SecretFile, version uint64, err error) {
	cfg, err := configOf(a.asg)
	if err != nil {
		return nil, nil, 0, err
	}
	if a.asg.GetSkipSecrets() {
		a.w.vault.drop(a.id) // those of an earlier version of it
	}
	var h opened
	if !a.asg.GetSkipSecrets() && a.w.opt.Secrets != nil {
		if h, err = a.openSecrets(ctx); err != nil {
			return nil, nil, 0, err
		}
		if env, err = h.environment(cfg); err != nil {
			return nil, nil, h.Version, err
		}
	}
	files, err = h.files(cfg, env)
	return env, files, h.Version, err
}

// openSecrets asks the controller, or falls back on what is held.
func (a *actor) openSecrets(ctx context.Context) (opened, error) {
	none := a.asg.GetSecretsVersion() == 0 && !a.rec.HasSecrets
	old, ok := a.w.vault.get(a.id)
	ok = ok && old.Version >= a.asg.GetMinSecretsVersion()
	if !a.w.online.Load() && (ok || none) {
		return old, nil
	}
	h, err := a.fetchSecrets(ctx)
	switch {
	case err == nil:
		a.w.vault.put(a.id, h)
		return h, nil
	case ctx.Err() != nil:
		return opened{}, err
	case ok || none:
		a.log.Warn("the controller does not give out the machine's secrets; it is started with those of its last start", "err", err)
		return old, nil
	}
	return opened{}, fault.Wrap(fault.Unavailable, err, "waits for its secrets: the controller does not give them out now (%s), and this node holds none since it started", fault.MessageOf(err))
}

// fetchSecrets is one question to the controller.
func (a *actor) fetchSecrets(ctx context.Context) (opened, error) {
	r, err := secret.NewRecipient()
	if err != nil {
		return opened{}, err
	}
	call, cancel := context.WithTimeout(ctx, secretsLimit)
	defer cancel()
	v := instanceOf(a.asg)
	resp, err := a.w.opt.Secrets.FetchSecrets(call, &internalpb.FetchSecretsRequest{MachineId: string(a.id), InstanceId: string(v), PublicKey: r.Public()})
	if err != nil {
		return opened{}, err
	}
	h := opened{Version: resp.GetVersion()}
	if h.Version < a.asg.GetMinSecretsVersion() {
		return opened{}, fault.New(fault.Unavailable, "the app's secrets are at version %d, and the machine wants %d", h.Version, a.asg.GetMinSecretsVersion())
	}
	if len(resp.GetSealed()) == 0 {
		return h, nil
	}
	b, err := r.Open(resp.GetSealed(), secret.ForMachine(a.w.opt.Cluster, a.w.opt.Node, a.id, v)...)
	if err != nil {
		return opened{}, err
	}
	h.values = b
	return h, nil
}

// opened are an app's secrets as one of its Machines was started with them.
type opened struct {
	Version uint64
	values  []byte // a JSON object of names and values; nil when there are none
}

// all are the app's secrets by name.
func (h opened) all() (map[string]string, error) {
	all := map[string]string{}
	if h.values != nil {
		if err := json.Unmarshal(h.values, &all); err != nil {
			return nil, errors.New("the secrets cannot be read") // without a word of them
		}
	}
	return all, nil
}

// files are the contents of the config's files that are secrets, which are base64. They
// must fit beside env. No error holds anything of a value.
func (h opened) files(cfg *machine.Config, env []string) ([]sandbox.SecretFile, error) {
	size := 0
	for _, e := range env {
		size += len(e) + 1
	}
	var all map[string]string
	var out []sandbox.SecretFile
	for i, f := range cfg.Files {
		if f.SecretName == nil {
			continue
		}
		if all == nil {
			var err error
			if all, err = h.all(); err != nil {
				return nil, err
			}
		}
		at := fmt.Sprintf("config.files[%d].secret_name", i)
		v, ok := all[*f.SecretName]
		if !ok {
			return nil, fault.New(fault.Unprocessable, "%s: the machine is started with no secret %q; set it, then update the machine", at, fault.Clip(*f.SecretName))
		}
		b, err := base64.StdEncoding.DecodeString(v)
		if err != nil {
			return nil, fault.New(fault.Unprocessable, "%s: the value of secret %s is not base64, which it must be to become a file; set it anew: base64 FILE | bulkhead secrets set %s=-", at, *f.SecretName, *f.SecretName)
		}
		// A config may give one secret to many files: each is a copy.
		if size += len(f.GuestPath) + base64.StdEncoding.EncodedLen(len(b)) + 2; size > sandbox.MaxStrings {
			return nil, fault.New(fault.Unprocessable, "%s: the secrets of variables and files take more than %d bytes together", at, sandbox.MaxStrings)
		}
		out = append(out, sandbox.SecretFile{Path: f.GuestPath, Content: b})
	}
	return out, nil
}

// environment picks what the Machine's process gets: all of the app's secrets, or those
// that its config names. The result is sorted.
func (h opened) environment(cfg *machine.Config) ([]string, error) {
	all, err := h.all()
	if err != nil {
		return nil, err
	}
	give := all
	if len(cfg.Processes) > 0 && (cfg.Processes[0].IgnoreAppSecrets || len(cfg.Processes[0].Secrets) > 0) {
		give = map[string]string{}
		for i, s := range cfg.Processes[0].Secrets {
			v, ok := all[s.Source()]
			if !ok {
				return nil, fault.New(fault.Unprocessable, "config.processes[0].secrets[%d]: the app has no secret %s; set it, then update the machine", i, s.Source())
			}
			give[s.EnvVar] = v
		}
	}
	out, size := make([]string, 0, len(give)), 0
	for _, name := range slices.Sorted(maps.Keys(give)) {
		// A config may give one secret under many names: each is a copy.
		if size += len(name) + len(give[name]) + 2; size > sandbox.MaxStrings {
			return nil, fault.New(fault.Unprocessable, "config.processes[0].secrets: what it names takes more than %d bytes together", sandbox.MaxStrings)
		}
		out = append(out, name+"="+give[name])
	}
	return out, nil
}

// startEnds is the end of a start, which has let the values go that it had.
func (a *actor) startEnds(release func()) {
	release()
	if a.rec.HasSecrets {
		secret.Forget()
	}
}

// dropSecrets forgets the Machine's secrets once it is stopped for good: when neither
// its restart policy nor traffic may start it without a new word of a user's, which
// comes from the controller, and so do its secrets then.
func (a *actor) dropSecrets() {
	if machine.Desired(a.asg.GetDesired()) != machine.WantDestroyed {
		again := machine.Passing(a.rec.State) || a.rec.State == machine.Failed && a.rec.Retry
		cfg, err := configOf(a.asg)
		if a.rec.wanted(a.asg) == machine.WantStarted && again || err == nil && cfg.Traffic().Autostart {
			return
		}
	}
	a.w.vault.drop(a.id)
	if a.rec.HasSecrets {
		secret.Forget()
	}
}

// heldEnvironment is what the running Machine was started with, for commands in it.
func (a *actor) heldEnvironment() ([]string, error) {
	if !a.rec.HasSecrets {
		return nil, nil
	}
	h, ok := a.w.vault.get(a.id)
	if !ok {
		return nil, fault.New(fault.Unavailable, "the secrets that machine %s runs with are not at hand any more; restart it", a.id)
	}
	cfg, err := configOf(a.asg)
	if err != nil {
		return nil, fmt.Errorf("secrets: %w", err)
	}
	return h.environment(cfg)
}
