package controller

import (
	"net/http"
	"sort"

	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/store"
)

// maxVersions is how many versions of a Machine's config are kept.
const maxVersions = 50

// updateMachine gives a Machine a new version of its whole config.
func (c *Controller) updateMachine(r *call) (int, any, error) {
	ctx := r.Context()
	var in machineInput
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	conf, err := in.config()
	if err != nil {
		return 0, nil, err
	}
	a, _, err := c.getApp(ctx, r.app())
	if err != nil {
		return 0, nil, err
	}
	ttl, err := leaseTTL(in.LeaseTTL, in.LeaseTTL != 0)
	if err != nil {
		return 0, nil, err
	}
	check := func(m *record.Machine) error { return in.fits(m) }
	m, _, err := c.getMachine(ctx, r.app(), r.machine())
	if err != nil {
		return 0, nil, err
	}
	// Checked before the worker is asked, and again with the change itself.
	if err := check(m); err != nil {
		return 0, nil, err
	}
	if _, _, err := c.checkLease(ctx, m, r.nonce()); err != nil {
		return 0, nil, err
	}
	if err := c.useSecrets(ctx, a, &in, conf, m); err != nil {
		return 0, nil, err
	}
	ref, err := c.reserve(ctx, m.Node, m.ID, a, conf)
	if err != nil {
		return 0, nil, err
	}
	var l *record.Lease
	m, err = c.change(ctx, r.app(), r.machine(), r.nonce(), func(m *record.Machine) ([]store.Op, error) {
		if err := check(m); err != nil {
			return nil, err
		}
		m.Instance, m.Config, m.ImageRef = key.NewInstanceID(), conf, ref
		m.Generation++
		m.Wish++
		m.StopSignal, m.StopTimeout = "", 0
		in.secrets(m)
		if in.SkipLaunch {
			m.Desired = machine.WantStopped
		} else {
			m.Desired = machine.WantStarted
			m.StartNonce++
		}
		ops := []store.Op{record.Put(record.VersionKey(m.App, m.ID, m.Instance), m.AsVersion(now()))}
		if in.LeaseTTL != 0 && r.nonce() == "" {
			l = newLease(r.who, m, "", ttl)
			ops = append(ops, record.Put(record.LeaseKey(m.App, m.ID), l))
		}
		return ops, nil
	})
	if err != nil {
		return 0, nil, err
	}
	c.awaitWorker(ctx, m)
	c.trimVersions(r, m)
	b := c.machineBody(m, false)
	if l != nil {
		b.Nonce = l.Nonce
	}
	return http.StatusOK, b, nil
}

// fits refuses an update that the Machine as it is now cannot take.
func (in *machineInput) fits(m *record.Machine) error {
	switch {
	case m.Gone != nil || m.Desired == machine.WantDestroyed:
		return fault.New(fault.Precondition, "failed_precondition: machine %s is destroyed", m.ID)
	case in.CurrentVersion != "" && in.CurrentVersion != string(m.Instance):
		return fault.New(fault.Precondition, "machine %s is at version %s, not %s: somebody else updated it; read it again", m.ID, m.Instance, fault.Clip(in.CurrentVersion))
	case in.Region != "" && in.Region != m.Region:
		return fault.New(fault.Invalid, "a machine cannot change its region from %q to %q; create another there", m.Region, fault.Clip(in.Region))
	case in.Name != "" && in.Name != m.Name:
		return fault.New(fault.Invalid, "a machine cannot change its name from %q to %q", m.Name, fault.Clip(in.Name))
	}
	return nil
}

// trimVersions forgets versions beyond maxVersions. It is of no consequence when it
// does not happen: the next update does it.
func (c *Controller) trimVersions(r *call, m *record.Machine) {
	kvs, _, err := c.store.List(r.Context(), record.VersionsOf(m.App, m.ID))
	if err != nil || len(kvs) <= maxVersions {
		return
	}
	var ops []store.Op
	for _, kv := range kvs[:min(len(kvs)-maxVersions, store.MaxOps)] {
		if record.LastPart(kv.Key) != string(m.Instance) {
			ops = append(ops, store.Delete(kv.Key))
		}
	}
	if len(ops) > 0 {
		if _, err := c.store.Txn(r.Context(), nil, ops); err != nil {
			c.log.Info("old versions not removed", "machine", m.ID, "err", err)
		}
	}
}

// MachineVersion is a version as the API answers it.
type MachineVersion struct {
	Version    string          `json:"version"`
	UserConfig *machine.Config `json:"user_config"`
}

func (c *Controller) machineVersions(r *call) (int, any, error) {
	m, _, err := c.getMachine(r.Context(), r.app(), r.machine())
	if err != nil {
		return 0, nil, err
	}
	versions, _, err := record.List[record.Version](r.Context(), c.store, record.VersionsOf(m.App, m.ID))
	if err != nil {
		return 0, nil, err
	}
	sort.Slice(versions, func(i, j int) bool { return versions[i].Instance > versions[j].Instance })
	out := []MachineVersion{}
	for _, v := range versions {
		out = append(out, MachineVersion{Version: string(v.Instance), UserConfig: v.Config})
	}
	return http.StatusOK, out, nil
}
