package controller

import (
	"context"
	"net/http"
	"slices"
	"sort"
	"strings"

	"bulkhead/controller/record"
	"bulkhead/key"
	"bulkhead/machine"
)

// Machine is a Machine as the API answers it.
type Machine struct {
	ID         string           `json:"id"`
	Name       string           `json:"name"`
	State      string           `json:"state"`
	Region     string           `json:"region"`
	ImageRef   machine.ImageRef `json:"image_ref"`
	InstanceID string           `json:"instance_id"`
	Version    string           `json:"version"` // the same
	PrivateIP  string           `json:"private_ip,omitempty"`
	CreatedAt  string           `json:"created_at"`
	UpdatedAt  string           `json:"updated_at"`
	Config     *machine.Config  `json:"config,omitempty"`
	Events     []machine.Event  `json:"events,omitempty"`
	Nonce      string           `json:"nonce,omitempty"`
	HostStatus string           `json:"host_status,omitempty"`
	Cordoned   bool             `json:"cordoned"`
}

// Host states of a Machine.
const (
	hostOK          = "ok"
	hostUnknown     = "unknown"     // the worker has not reported since the controller started
	hostUnreachable = "unreachable" // the worker is not connected
)

// machineBody makes the answer for a Machine. A summary leaves out what is long. A
// lease's nonce is not part of it: only who takes the lease is told.
func (c *Controller) machineBody(r *record.Machine, summary bool) *Machine {
	st := merge(r, c.view.get(r.ID))
	out := &Machine{
		ID: string(r.ID), Name: r.Name, State: string(st.State), Region: r.Region, ImageRef: c.imageBody(r.ImageRef),
		InstanceID: string(r.Instance), Version: string(r.Instance), PrivateIP: st.PrivateIP,
		CreatedAt: stamp(r.CreatedAt), UpdatedAt: stamp(st.UpdatedAt), Cordoned: r.Cordoned,
	}
	if summary {
		return out
	}
	out.Config, out.Events, out.HostStatus = r.Config, st.Events, c.hostStatus(r)
	return out
}

// hostStatus is whether a Machine's node can be asked about it.
func (c *Controller) hostStatus(r *record.Machine) string {
	if r.Gone != nil {
		return hostOK
	}
	switch node, reported := c.view.node(r.Node); {
	case !reported:
		return hostUnknown
	case !node.Connected:
		return hostUnreachable
	}
	return hostOK
}

// imageBody names the cluster's own registry, which records leave out.
func (c *Controller) imageBody(ref machine.ImageRef) machine.ImageRef {
	if ref.Registry == "" {
		ref.Registry = c.registryHost()
	}
	return ref
}

func (c *Controller) showMachine(r *call) (int, any, error) {
	m, _, err := c.getMachine(r.Context(), r.app(), r.machine())
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, c.machineBody(m, false), nil
}

// filter is what a list of Machines is narrowed by.
type filter struct {
	deleted, summary bool
	regions, states  []string
	metadata         map[string]string
}

func filterOf(r *call) (filter, error) {
	q := r.URL.Query()
	f := filter{regions: csv(q["region"]), states: csv(q["state"]), metadata: map[string]string{}}
	var err error
	if f.deleted, err = r.flag("include_deleted"); err != nil {
		return f, err
	}
	if f.summary, err = r.flag("summary"); err != nil {
		return f, err
	}
	for k, v := range q {
		if name, ok := strings.CutPrefix(k, "metadata."); ok && len(v) > 0 {
			f.metadata[name] = v[0]
		}
	}
	return f, nil
}

func (f *filter) match(r *record.Machine, st machine.State) bool {
	wantGone := f.deleted || slices.Contains(f.states, string(machine.Destroyed))
	if st == machine.Destroyed && !wantGone {
		return false
	}
	if len(f.regions) > 0 && !slices.Contains(f.regions, r.Region) {
		return false
	}
	if len(f.states) > 0 && !slices.Contains(f.states, string(st)) {
		return false
	}
	for k, v := range f.metadata {
		if got, ok := r.Config.Metadata[k]; !ok || got != v {
			return false
		}
	}
	return true
}

func (c *Controller) listMachines(r *call) (int, any, error) {
	f, err := filterOf(r)
	if err != nil {
		return 0, nil, err
	}
	a, _, err := c.getApp(r.Context(), r.app())
	if err != nil {
		return 0, nil, err
	}
	out, err := c.machinesOfApp(r.Context(), a.Name, &f)
	return http.StatusOK, out, err
}

// machinesOfApp lists an app's Machines, oldest first.
func (c *Controller) machinesOfApp(ctx context.Context, a key.AppName, f *filter) ([]*Machine, error) {
	records, _, err := record.List[record.Machine](ctx, c.store, record.MachinesOf(a))
	if err != nil {
		return nil, err
	}
	sort.SliceStable(records, func(i, j int) bool { return records[i].CreatedAt.Before(records[j].CreatedAt) })
	out := []*Machine{}
	for _, m := range records {
		if f.match(m, merge(m, c.view.get(m.ID)).State) {
			out = append(out, c.machineBody(m, f.summary))
		}
	}
	return out, nil
}
