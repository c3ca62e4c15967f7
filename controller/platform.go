package controller

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"sort"
	"strings"
	"time"

	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/machine"
)

// Region is a region as the API answers it.
type Region struct {
	Code             string  `json:"code"`
	Name             string  `json:"name"`
	GeoRegion        string  `json:"geo_region"`
	Latitude         float64 `json:"latitude"`
	Longitude        float64 `json:"longitude"`
	GatewayAvailable bool    `json:"gateway_available"`
	RequiresPaidPlan bool    `json:"requires_paid_plan"`
	Deprecated       bool    `json:"deprecated"`
}

func (c *Controller) regions(*call) (int, any, error) {
	code := c.cfg.Role.Region
	return http.StatusOK, struct {
		Nearest string   `json:"nearest"`
		Regions []Region `json:"regions"`
	}{code, []Region{{Code: code, Name: code}}}, nil
}

// Placement says how many Machines a region could take.
type Placement struct {
	Region      string `json:"region"`
	Count       int    `json:"count"`
	Concurrency int    `json:"concurrency"`
}

// maxPlacements bounds how many Machines a tenant can ask about at once: a larger number
// would measure the nodes' free memory, and so what others use.
const maxPlacements = 10

// placements answers how many Machines of a size would fit now, of as many as the caller
// asks for (1 if it does not say). It promises nothing.
func (c *Controller) placements(r *call) (int, any, error) {
	var in struct {
		Org     string         `json:"org_slug"`
		Compute *machine.Guest `json:"compute"`
		Count   int            `json:"count"`
		Region  string         `json:"region"`
		Volume  string         `json:"volume_name"`
		Size    int64          `json:"volume_size_bytes"`
		// Weights rank regions; there is one.
		Weights map[string]int64 `json:"weights"`
	}
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	if in.Org == "" {
		return 0, nil, fault.New(fault.Invalid, "org_slug is missing")
	}
	if err := c.mayLookInto(r.who, in.Org); err != nil {
		return 0, nil, err
	}
	if in.Volume != "" || in.Size != 0 {
		return 0, nil, notSupported{"placement by volume"}
	}
	conf := machine.Config{Image: "any", Guest: in.Compute}
	if in.Compute == nil {
		conf.Size = "performance-1x"
	}
	if err := conf.Validate(); err != nil {
		return 0, nil, err
	}
	out := struct {
		Regions []Placement `json:"regions"`
	}{Regions: []Placement{}}
	here := c.cfg.Role.Region
	if in.Region != "" && !slices.ContainsFunc(strings.Split(in.Region, ","), func(s string) bool { return s == here || s == "any" }) {
		return http.StatusOK, out, nil
	}
	fit := 0
	for _, n := range c.candidates() {
		if free := n.MemoryMB - n.UsedMemoryMB; n.Connected && free > 0 {
			fit += int(free) / conf.EffectiveGuest().MemoryMB
		}
	}
	if !c.operator(r.who) {
		in.Count = min(max(in.Count, 1), maxPlacements)
	}
	if in.Count > 0 {
		fit = min(fit, in.Count)
	}
	if fit > 0 {
		out.Regions = append(out.Regions, Placement{Region: here, Count: fit, Concurrency: 1})
	}
	return http.StatusOK, out, nil
}

// OrgMachine is a Machine in the list of an organization's.
type OrgMachine struct {
	ID         string          `json:"id"`
	AppName    string          `json:"app_name"`
	Name       string          `json:"name"`
	State      string          `json:"state"`
	Region     string          `json:"region"`
	InstanceID string          `json:"instance_id"`
	Version    string          `json:"version"`
	PrivateIP  string          `json:"private_ip,omitempty"`
	CreatedAt  string          `json:"created_at"`
	UpdatedAt  string          `json:"updated_at"`
	Config     *OverviewConfig `json:"config,omitempty"`
}

// OverviewConfig is what of a config an OrgMachine shows.
type OverviewConfig struct {
	Image    string            `json:"image,omitempty"`
	Guest    *machine.Guest    `json:"guest,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// maxOrgMachines is how many Machines one page of an organization's list has.
const maxOrgMachines = 1000

// orgCursor is where a page ends: the next begins after it.
type orgCursor struct {
	UpdatedAt time.Time `json:"u"`
	ID        string    `json:"i"`
}

// orgMachines lists all Machines of an organization, by the time of their last change.
func (c *Controller) orgMachines(r *call) (int, any, error) {
	f, err := filterOf(r)
	if err != nil {
		return 0, nil, err
	}
	limit, err := r.number("limit", maxOrgMachines, 1, maxOrgMachines)
	if err != nil {
		return 0, nil, err
	}
	after, err := cursorOf(r)
	if err != nil {
		return 0, nil, err
	}
	var records []*record.Machine
	for _, a := range c.directory.AppsIn(r.PathValue("org")) {
		more, _, err := record.List[record.Machine](r.Context(), c.store, record.MachinesOf(a.Name))
		if err != nil {
			return 0, nil, err
		}
		records = append(records, more...)
	}
	type item struct {
		at orgCursor
		m  OrgMachine
	}
	var items []item
	for _, m := range records {
		st := merge(m, c.view.get(m.ID))
		at := orgCursor{st.UpdatedAt, string(m.ID)}
		if !f.match(m, st.State) || !after.before(at) {
			continue
		}
		items = append(items, item{at, orgMachine(m, st, f.summary)})
	}
	sort.Slice(items, func(i, j int) bool { return items[i].at.before(items[j].at) })
	out := struct {
		Machines      []OrgMachine `json:"machines"`
		NextCursor    string       `json:"next_cursor,omitempty"`
		LastMachineID string       `json:"last_machine_id,omitempty"`
		LastUpdatedAt string       `json:"last_updated_at,omitempty"`
		ErrorRegions  []string     `json:"error_regions"`
	}{Machines: []OrgMachine{}, ErrorRegions: []string{}}
	for i, it := range items[:min(limit, len(items))] {
		out.Machines = append(out.Machines, it.m)
		out.LastMachineID, out.LastUpdatedAt = it.m.ID, it.m.UpdatedAt
		if i == limit-1 && len(items) > limit {
			b, _ := json.Marshal(it.at)
			out.NextCursor = base64.RawURLEncoding.EncodeToString(b)
		}
	}
	return http.StatusOK, out, nil
}

func orgMachine(m *record.Machine, st status, summary bool) OrgMachine {
	o := OrgMachine{
		ID: string(m.ID), AppName: string(m.App), Name: m.Name, State: string(st.State), Region: m.Region,
		InstanceID: string(m.Instance), Version: string(m.Instance), PrivateIP: st.PrivateIP,
		CreatedAt: stamp(m.CreatedAt), UpdatedAt: stamp(st.UpdatedAt),
	}
	if !summary {
		o.Config = &OverviewConfig{Image: m.Config.Image, Guest: m.Config.Guest, Metadata: m.Config.Metadata}
	}
	return o
}

// before orders cursors; the zero cursor is before every other.
func (a orgCursor) before(b orgCursor) bool {
	if !a.UpdatedAt.Equal(b.UpdatedAt) {
		return a.UpdatedAt.Before(b.UpdatedAt)
	}
	return a.ID < b.ID
}

// cursorOf reads where a page begins: after a cursor, or after a time.
func cursorOf(r *call) (orgCursor, error) {
	q := r.URL.Query()
	var at orgCursor
	if v := q.Get("cursor"); v != "" {
		b, err := base64.RawURLEncoding.DecodeString(v)
		if err != nil || json.Unmarshal(b, &at) != nil {
			return at, fault.New(fault.Invalid, "cursor %q is not one that this API gave", fault.Clip(v))
		}
		return at, nil
	}
	if v := q.Get("updated_after"); v != "" {
		t, err := time.Parse(time.RFC3339, v)
		if err != nil {
			return at, fault.New(fault.Invalid, "updated_after %q is not a time such as 2026-01-02T15:04:05Z", fault.Clip(v))
		}
		at = orgCursor{t, "\xff"}
	}
	return at, nil
}
