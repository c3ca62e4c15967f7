package controller

import (
	"fmt"
	"net/http"

	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/machine"
	"bulkhead/store"
)

// Metadata is part of the config, but changing it makes no new version and the
// worker is not asked: nothing of the running Machine depends on it.

// setMeta changes metadata. A nil or empty value removes the key.
func (c *Controller) setMeta(r *call, ifVersion string, change map[string]*string) error {
	_, err := c.change(r.Context(), r.app(), r.machine(), r.nonce(), func(m *record.Machine) ([]store.Op, error) {
		if ifVersion != "" && ifVersion != string(m.Instance) {
			return nil, fault.New(fault.Precondition, "machine %s is at version %s, not %s", m.ID, m.Instance, fault.Clip(ifVersion))
		}
		conf := m.Config.Clone()
		if conf.Metadata == nil {
			conf.Metadata = map[string]string{}
		}
		for k, v := range change {
			if v == nil || *v == "" {
				delete(conf.Metadata, k)
			} else {
				conf.Metadata[k] = *v
			}
		}
		if len(conf.Metadata) == 0 {
			conf.Metadata = nil
		}
		if err := conf.Validate(); err != nil {
			return nil, err
		}
		if err := keepable(conf); err != nil {
			return nil, err
		}
		m.Config = conf
		return nil, nil
	})
	return err
}

func (c *Controller) listMetadata(r *call) (int, any, error) {
	m, _, err := c.getMachine(r.Context(), r.app(), r.machine())
	if err != nil {
		return 0, nil, err
	}
	out := m.Config.Metadata
	if out == nil {
		out = map[string]string{}
	}
	return http.StatusOK, out, nil
}

func (c *Controller) showMetadata(r *call) (int, any, error) {
	m, _, err := c.getMachine(r.Context(), r.app(), r.machine())
	if err != nil {
		return 0, nil, err
	}
	v, found := m.Config.Metadata[r.PathValue("key")]
	if !found {
		return 0, nil, fault.New(fault.NotFound, "machine %s has no metadata %q", m.ID, fault.Clip(r.PathValue("key")))
	}
	return http.StatusOK, struct {
		Value string `json:"value"`
	}{v}, nil
}

// changeMetadata sets and removes several keys at once; others stay.
func (c *Controller) changeMetadata(r *call) (int, any, error) {
	var in struct {
		Metadata map[string]*string `json:"metadata"`
		Version  string             `json:"machine_version"`
	}
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	if in.Metadata == nil {
		return 0, nil, fault.New(fault.Invalid, "metadata is missing")
	}
	if len(in.Metadata) > machine.MaxMetadata {
		return 0, nil, fault.New(fault.Invalid, "metadata has %d keys; at most %d are allowed", len(in.Metadata), machine.MaxMetadata)
	}
	if err := c.setMeta(r, in.Version, in.Metadata); err != nil {
		return 0, nil, err
	}
	return noContent()
}

func (c *Controller) setMetadata(r *call) (int, any, error) {
	var in struct {
		Value *string `json:"value"`
	}
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	if in.Value == nil {
		return 0, nil, fault.New(fault.Invalid, "value is missing")
	}
	if err := c.setMeta(r, "", map[string]*string{r.PathValue("key"): in.Value}); err != nil {
		return 0, nil, err
	}
	return noContent()
}

func (c *Controller) deleteMetadata(r *call) (int, any, error) {
	if err := c.setMeta(r, "", map[string]*string{r.PathValue("key"): nil}); err != nil {
		return 0, nil, err
	}
	return noContent()
}

// Memory is a Machine's memory as the API answers it, in MiB.
type Memory struct {
	LimitMB     int `json:"limit_mb"`
	AvailableMB int `json:"available_mb"`
}

// memory answers the limit, and what of it the Machine's processes have not taken.
func (c *Controller) memory(r *call) (int, any, error) {
	m, err := c.runningMachine(r)
	if err != nil {
		return 0, nil, err
	}
	procs, err := c.listProcesses(r, m)
	if err != nil {
		return 0, nil, fmt.Errorf("memory of machine %s: %w", m.ID, err)
	}
	var used int64
	for _, p := range procs {
		used += p.Rss
	}
	limit := m.Config.EffectiveGuest().MemoryMB
	return http.StatusOK, Memory{LimitMB: limit, AvailableMB: max(0, limit-int(used>>20))}, nil
}
