package controller

import (
	"context"
	"fmt"
	"slices"

	"bulkhead/api/internalpb"
	"bulkhead/api/rpc"
	"bulkhead/audit"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/secret"
)

// secrets takes over what a create or an update says of secrets.
func (in *machineInput) secrets(m *record.Machine) {
	m.MinSecrets, m.SkipSecrets = 0, in.SkipSecrets
	if in.MinSecrets != nil {
		m.MinSecrets = *in.MinSecrets
	}
}

// useSecrets is secrets for a create, and refuses a version that there has never been,
// and files of secrets that there are not.
func (c *Controller) useSecrets(ctx context.Context, a *record.App, in *machineInput, conf *machine.Config, m *record.Machine) error {
	files := slices.ContainsFunc(conf.Files, func(f machine.File) bool { return f.SecretName != nil })
	if files || in.MinSecrets != nil && *in.MinSecrets > 0 {
		s, _, err := c.readSecrets(ctx, a)
		if err != nil {
			return err
		}
		if in.MinSecrets != nil && *in.MinSecrets > s.Version {
			return tooNew(a.Name, *in.MinSecrets, s.Version)
		}
		if err := in.checkFiles(conf, s); err != nil {
			return err
		}
	}
	in.secrets(m)
	return nil
}

// checkFiles refuses a file of a secret that the app does not have, or the Machine does
// not get. One that is taken away later keeps the next start from happening (worker).
func (in *machineInput) checkFiles(conf *machine.Config, s *appSecrets) error {
	for i, f := range conf.Files {
		if f.SecretName == nil {
			continue
		}
		at := fmt.Sprintf("config.files[%d].secret_name", i)
		if in.SkipSecrets {
			return fault.New(fault.Invalid, "%s is %q, but with skip_secrets the machine gets no secret; leave out one of them", at, *f.SecretName)
		}
		if s.Secrets[*f.SecretName] == nil {
			return fault.New(fault.Invalid, "%s is %q, and the app has no secret of that name; set it first, in base64: base64 FILE | bulkhead secrets set %s=-", at, *f.SecretName, *f.SecretName)
		}
	}
	return nil
}

// assignSecrets tells the worker which version of its app's secrets there is.
func (c *Controller) assignSecrets(ctx context.Context, r *record.Machine, as *internalpb.Assignment) error {
	as.MinSecretsVersion, as.SkipSecrets = r.MinSecrets, r.SkipSecrets
	if r.SkipSecrets {
		return nil
	}
	s, _, err := record.Get[appSecrets](ctx, c.store, record.SecretsKey(r.App))
	if err != nil || s == nil || len(s.Secrets) == 0 {
		return err
	}
	as.SecretsVersion = s.Version
	return nil
}

// FetchSecrets implements internalpb.ControllerServer.
func (s internalServer) FetchSecrets(ctx context.Context, req *internalpb.FetchSecretsRequest) (*internalpb.FetchSecretsResponse, error) {
	who, err := rpc.Peer(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := s.c.fetchSecrets(ctx, who.Node, req)
	s.c.noteDenied(who.Node, "secrets opened", req.GetMachineId(), err)
	return resp, err
}

// noteDenied writes down that a worker was denied something of a Machine, which one that
// nobody has taken over asks for at most when it has not heard of a change yet.
func (c *Controller) noteDenied(node key.Node, action, id string, err error) {
	if !fault.Is(err, fault.Denied) {
		return
	}
	c.log.Warn("a worker was denied what is not for its machines", "worker", node, "action", action, "machine", fault.Clip(id))
	rec := audit.Record{Name: workerName(node), Action: action, Target: "machine=" + fault.Clip(id), Code: statusOf(err), Result: audit.Refused}
	c.refusals.add(rec)
}

// workerName is what the audit log calls a worker.
func workerName(node key.Node) string { return "worker of node " + string(node) }

// fetchSecrets opens an app's secrets for the worker that is about to start one of its
// Machines. A worker gets those of Machines that are its own and are to run: that a user
// wants running, or that requests may wake, which the worker decides alone.
func (c *Controller) fetchSecrets(ctx context.Context, node key.Node, req *internalpb.FetchSecretsRequest) (*internalpb.FetchSecretsResponse, error) {
	own, id, err := c.machineOf(ctx, node, req.GetMachineId())
	if err != nil {
		return nil, err
	}
	denied := fault.New(fault.Denied, "node %s has no machine %q that is to run", node, id)
	if err := c.rates.take(c.rates.fetches, "secrets", string(id), "starts of machine "+string(id)); err != nil {
		return nil, err
	}
	r, _, err := record.Get[record.Machine](ctx, c.store, record.MachineKey(own.App, id))
	if err != nil {
		return nil, err
	}
	if r == nil || r.Node != node || r.Gone != nil || r.Desired == machine.WantDestroyed {
		return nil, denied
	}
	if r.Instance != key.InstanceID(req.GetInstanceId()) {
		return nil, fault.New(fault.Unavailable, "machine %s has a newer version than the one that is being started", id)
	}
	if wants(r, c.view.get(id)) != machine.WantStarted && !r.Config.Traffic().Autostart {
		return nil, denied
	}
	if r.SkipSecrets {
		return &internalpb.FetchSecretsResponse{}, nil
	}
	a, _, err := c.getApp(ctx, string(own.App))
	if err != nil {
		return nil, err
	}
	s, _, err := c.readSecrets(ctx, a)
	if err != nil {
		return nil, err
	}
	if len(s.Secrets) == 0 {
		return &internalpb.FetchSecretsResponse{Version: s.Version}, nil
	}
	k, err := c.appKey(s)
	if err != nil {
		return nil, err
	}
	defer k.Clear()
	values, err := s.environment(k)
	if err != nil {
		return nil, err
	}
	defer clear(values)
	sealed, err := secret.SealTo(req.GetPublicKey(), values, secret.ForMachine(c.cfg.Role.Cluster, node, id, r.Instance)...)
	if err != nil {
		return nil, err
	}
	err = c.record(ctx, audit.Record{
		Org: r.Org, Name: workerName(node), Action: "secrets opened", App: string(own.App), Machine: string(id),
		Target: fmt.Sprintf("version=%d", s.Version), Detail: fmt.Sprintf("%d secrets", len(s.Secrets)),
	})
	if err != nil {
		return nil, err
	}
	c.log.Info("secrets were opened for a machine", "worker", node, "machine", id, "app", own.App, "version", s.Version, "count", len(s.Secrets))
	return &internalpb.FetchSecretsResponse{Version: s.Version, Sealed: sealed}, nil
}

// deployment says which versions of an app's secrets its Machines run with.
type deployment []uint64

// deployedSecrets collects them. Machines that do not run take the newest when they
// start, and those that get no secrets do not count.
func (c *Controller) deployedSecrets(ctx context.Context, a *record.App) (deployment, error) {
	records, _, err := record.List[record.Machine](ctx, c.store, record.MachinesOf(a.Name))
	if err != nil {
		return nil, err
	}
	var out deployment
	for _, r := range records {
		if s := c.view.get(r.ID); r.Gone == nil && !r.SkipSecrets && s != nil && s.State == machine.Started {
			out = append(out, s.Secrets)
		}
	}
	return out, nil
}

// status is what a secret set at a version is to those Machines.
func (d deployment) status(version uint64) string {
	have := 0
	for _, v := range d {
		if v >= version {
			have++
		}
	}
	switch {
	case have == 0:
		return "staged"
	case have < len(d):
		return "partly deployed"
	}
	return "deployed"
}
