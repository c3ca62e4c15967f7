package controller

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"math"
	"net/http"
	"regexp"
	"strings"
	"time"

	"bulkhead/controller/access"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/privnet"
	"bulkhead/store"
)

// App is an app as the API answers it.
type App struct {
	ID                string          `json:"id"`
	InternalNumericID int64           `json:"internal_numeric_id"`
	Name              string          `json:"name"`
	Network           string          `json:"network"`
	Status            string          `json:"status"` // "pending" before the first Machine, "deployed", "deleting"
	MachineCount      int             `json:"machine_count"`
	VolumeCount       int             `json:"volume_count"`
	Organization      AppOrganization `json:"organization"`
	// StatusReason says what a deletion waits for; Bulkhead's own.
	StatusReason string `json:"status_reason,omitempty"`
}

// AppOrganization is the organization of an App.
type AppOrganization struct {
	Name              string `json:"name"`
	Slug              string `json:"slug"`
	InternalNumericID int64  `json:"internal_numeric_id"`
}

var networkRE = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]{0,62}$`)

// appBody makes the answer for an app.
func (c *Controller) appBody(ctx context.Context, a *record.App) (*App, error) {
	records, _, err := record.List[record.Machine](ctx, c.store, record.MachinesOf(a.Name))
	if err != nil {
		return nil, err
	}
	out := &App{
		ID: a.ID, InternalNumericID: a.Number, Name: string(a.Name), Network: a.Network, Status: "pending",
		Organization: AppOrganization{Name: a.Org, Slug: a.Org},
	}
	if o := c.directory.Org(a.Org); o != nil {
		out.Organization.Name, out.Organization.InternalNumericID = o.Name, o.Number
	}
	for _, r := range records {
		if r.Gone == nil {
			out.MachineCount++
		}
	}
	if out.MachineCount > 0 {
		out.Status = "deployed"
	}
	if a.Deleting {
		out.Status, out.StatusReason = "deleting", c.waitsFor(records)
	}
	return out, nil
}

// waitsFor says which Machine keeps a deletion from its end, and why: first one whose
// node is away, for that does not pass by itself.
func (c *Controller) waitsFor(records []*record.Machine) string {
	var reason string
	left := 0
	for _, r := range records {
		if r.Gone != nil {
			continue
		}
		left++
		st := merge(r, c.view.get(r.ID))
		switch hs := c.hostStatus(r); {
		case hs != hostOK:
			return fmt.Sprintf("waits for machine %s, whose node %s is %s; if the node is gone for good, remove it: bulkhead node remove %s --force", r.ID, r.Node, hs, r.Node)
		case st.Error != "":
			reason = fmt.Sprintf("waits for machine %s, which is %s: %s", r.ID, st.State, st.Error)
		case reason == "":
			reason = fmt.Sprintf("waits for machine %s, which is %s", r.ID, st.State)
		}
	}
	if left > 1 {
		reason += fmt.Sprintf(" (and %d more)", left-1)
	}
	return reason
}

// listApps lists the apps that the caller may see: those of one organization, or of all.
func (c *Controller) listApps(r *call) (int, any, error) {
	q := r.URL.Query()
	slugs := []string{q.Get("org_slug")}
	if slugs[0] == "" {
		slugs = c.orgsFor(r.who)
	} else if err := c.mayLookInto(r.who, slugs[0]); err != nil {
		return 0, nil, err
	}
	var apps []*record.App
	for _, slug := range slugs {
		for _, a := range c.directory.AppsIn(slug) {
			if c.authorize(r.who, access.Request{Act: access.Read, What: access.App, Org: a.Org, App: a.Name}) == nil {
				apps = append(apps, a)
			}
		}
	}
	out := struct {
		TotalApps int    `json:"total_apps"`
		Apps      []*App `json:"apps"`
	}{Apps: []*App{}}
	for _, a := range apps {
		if role := q.Get("app_role"); role != "" && role != a.Role {
			continue
		}
		b, err := c.appBody(r.Context(), a)
		if err != nil {
			return 0, nil, err
		}
		out.Apps = append(out.Apps, b)
	}
	out.TotalApps = len(out.Apps)
	return http.StatusOK, out, nil
}

func (c *Controller) showApp(r *call) (int, any, error) {
	a, _, err := c.getApp(r.Context(), r.app())
	if err != nil {
		return 0, nil, err
	}
	b, err := c.appBody(r.Context(), a)
	return http.StatusOK, b, err
}

func (c *Controller) createApp(r *call) (int, any, error) {
	var in struct {
		Name    string `json:"name"`
		AppName string `json:"app_name"` // as the prose documents call it
		Org     string `json:"org_slug"`
		Network string `json:"network"`
		Role    string `json:"app_role_id"`
	}
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	if in.Name == "" {
		in.Name = in.AppName
	}
	name, err := key.ParseAppName(in.Name)
	if err != nil {
		return 0, nil, err
	}
	slug, err := c.orgForNew(r.who, in.Org)
	if err != nil {
		return 0, nil, err
	}
	if err := c.authorize(r.who, access.Request{Act: access.Create, What: access.App, Org: slug}); err != nil {
		return 0, nil, err
	}
	if in.Network == "" {
		in.Network = record.DefaultNetwork
	}
	if !networkRE.MatchString(in.Network) {
		return 0, nil, fault.New(fault.Invalid, "network %q must be 1 to 63 letters, digits and dashes, and start with a letter", fault.Clip(in.Network))
	}
	if len(in.Role) > 63 {
		return 0, nil, fault.New(fault.Invalid, "app_role_id is longer than 63 characters")
	}
	if err := c.roomForMore(); err != nil {
		return 0, nil, err
	}
	var made *record.App
	err = retry(r.Context(), func() (err error) {
		r.note(slug, name, "")
		made, err = c.addApp(r.Context(), record.App{Name: name, Org: slug, Network: in.Network, Role: in.Role, CreatedAt: now()})
		return err
	})
	if err != nil {
		return 0, nil, err
	}
	b, err := c.appBody(r.Context(), made)
	return http.StatusCreated, b, err
}

// addApp writes a new app, and in the same transaction its network if that is new.
func (c *Controller) addApp(ctx context.Context, a record.App) (*record.App, error) {
	o, orgRev, err := record.Get[record.Org](ctx, c.store, record.OrgKey(a.Org))
	if err != nil {
		return nil, err
	}
	if o == nil || o.Deleting {
		return nil, access.NoOrg(a.Org)
	}
	_, rev, err := record.Get[record.App](ctx, c.store, record.AppKey(a.Name))
	if err != nil {
		return nil, err
	}
	if rev != 0 {
		return nil, fault.New(fault.Unprocessable, "Name has already been taken").WithStatus("name_taken")
	}
	ids, idsRev, err := record.Get[record.Counter](ctx, c.store, record.CounterKey("app"))
	if err != nil {
		return nil, err
	}
	if ids == nil {
		ids = &record.Counter{}
	}
	ids.Last++
	conds := []store.Cond{record.At(record.AppKey(a.Name), 0), record.At(record.OrgKey(a.Org), orgRev), record.At(record.CounterKey("app"), idsRev)}
	ops := []store.Op{record.Put(record.CounterKey("app"), ids)}

	nk := record.NetworkKey(a.Org, a.Network)
	n, nrev, err := record.Get[record.Network](ctx, c.store, nk)
	if err != nil {
		return nil, err
	}
	if n == nil {
		nets, netsRev, err := record.Get[record.Counter](ctx, c.store, record.CounterKey("network"))
		if err != nil {
			return nil, err
		}
		if nets == nil {
			nets = &record.Counter{}
		}
		if nets.Last >= math.MaxUint32 {
			return nil, fault.New(fault.Unprocessable, "all network numbers have been used")
		}
		nets.Last++ // 0 is the platform's own
		n = &record.Network{Org: a.Org, Name: a.Network, Number: privnet.Network(nets.Last)}
		conds = append(conds, record.At(record.CounterKey("network"), netsRev))
		ops = append(ops, record.Put(record.CounterKey("network"), nets), record.Put(nk, n))
	}
	conds = append(conds, record.At(nk, nrev))
	a.NetworkNumber, a.Number, a.ID = n.Number, ids.Last, newAppID()
	ops = append(ops, record.Put(record.AppKey(a.Name), a))
	return &a, c.commit(ctx, &txn{conds: conds, ops: ops})
}

func newAppID() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// deleteLimit bounds how long a call is at the deletion of an app; what it does not get
// done the collector does.
const deleteLimit = 90 * time.Second

// deleteApp destroys an app's Machines and then the app. It answers when that is
// done, or after a few seconds while it goes on.
func (c *Controller) deleteApp(r *call) (int, any, error) {
	// The deletion goes on, whether or not the caller is there to hear of it: also a
	// change that is given up may be made.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), deleteLimit)
	defer cancel()
	var name key.AppName
	err := retry(ctx, func() error {
		a, rev, err := c.getApp(ctx, r.app())
		if err != nil {
			return err
		}
		name = a.Name
		if a.Deleting {
			return nil
		}
		a.Deleting = true
		_, err = c.store.Txn(ctx, []store.Cond{record.At(record.AppKey(a.Name), rev)}, []store.Op{record.Put(record.AppKey(a.Name), a)})
		return err
	})
	if err != nil {
		return 0, nil, err
	}
	if err := c.destroyAll(ctx, name); err != nil {
		c.finishLater()
		return 0, nil, err
	}
	if err := c.finishApp(ctx, name); err != nil {
		c.finishLater()
		return 0, nil, err
	}
	c.awaitDeleted(r.Context(), name)
	return http.StatusAccepted, nil, nil
}

// destroyAll wants every Machine of a deleting app destroyed. No new one can come:
// creating one is conditional on the app's record.
func (c *Controller) destroyAll(ctx context.Context, name key.AppName) error {
	records, _, err := record.List[record.Machine](ctx, c.store, record.MachinesOf(name))
	if err != nil {
		return err
	}
	for _, m := range records {
		if err := c.destroy(ctx, m.App, m.ID, true); err != nil {
			return err
		}
	}
	return nil
}

// destroy wants a Machine destroyed, whoever holds a lease on it.
func (c *Controller) destroy(ctx context.Context, a key.AppName, id key.MachineID, force bool) error {
	return retry(ctx, func() error {
		r, rev, err := record.Get[record.Machine](ctx, c.store, record.MachineKey(a, id))
		if err != nil || r == nil || r.Gone != nil || r.Desired == machine.WantDestroyed {
			return err
		}
		r.WantDestroyed(force, now())
		_, err = c.store.Txn(ctx, []store.Cond{record.At(record.MachineKey(a, id), rev)}, []store.Op{
			record.Put(record.MachineKey(a, id), r), record.Put(record.NodeKey(r.Node, id), r.Assigned()),
		})
		return err
	})
}

// awaitDeleted waits a few seconds for an app's record to go.
func (c *Controller) awaitDeleted(ctx context.Context, name key.AppName) {
	_, rev, err := record.Get[record.App](ctx, c.store, record.AppKey(name))
	if err != nil || rev == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.AckLimit)
	defer cancel()
	c.store.Watch(ctx, record.AppKey(name), rev, func(es []store.Event) error {
		for _, e := range es {
			if e.Key == record.AppKey(name) && e.Deleted {
				return errAnswered
			}
		}
		return nil
	})
}

// finishApp removes a deleting app whose Machines are all gone, with everything
// that is kept under its name, its images too. It may be cut off and called again at
// any point: the app's own record goes last.
//
// It is called for each of the app's Machines that goes, so two calls often meet.
// The name is free when the first has ended, and the second must not touch what a
// new app of that name has by then: one works at a time, and every change of the
// store holds only while the app's record is as it was read.
func (c *Controller) finishApp(ctx context.Context, name key.AppName) error {
	if a, _, err := record.Get[record.App](ctx, c.store, record.AppKey(name)); err != nil || a == nil || !a.Deleting {
		return err
	}
	c.finishing.Lock()
	defer c.finishing.Unlock()
	a, rev, err := record.Get[record.App](ctx, c.store, record.AppKey(name))
	if err != nil || a == nil || !a.Deleting {
		return err
	}
	still := record.At(record.AppKey(name), rev)
	records, _, err := record.List[record.Machine](ctx, c.store, record.MachinesOf(name))
	if err != nil {
		return err
	}
	for _, m := range records {
		if m.Gone == nil {
			return nil
		}
	}
	for _, m := range records {
		if err := c.forgetMachine(ctx, m, still); err != nil {
			return ignoreChanged(err)
		}
	}
	for _, prefix := range []string{record.MachinesOf(name), record.VersionsOfApp(name), record.LeasesOf(name), record.NamesOf(name)} {
		if err := c.deletePrefix(ctx, prefix, still); err != nil {
			return ignoreChanged(err)
		}
	}
	// Nobody may push any more since the app is being deleted (authorizeRegistry).
	if err := c.registry.Remove(ctx, string(name)); err != nil {
		return fmt.Errorf("remove the images of app %s: %w", name, err)
	}
	_, err = c.store.Txn(ctx, []store.Cond{still}, []store.Op{store.Delete(record.AppKey(name)), store.Delete(record.SecretsKey(name))})
	if err == nil {
		c.log.Info("app deleted", "app", name)
	}
	return ignoreChanged(err)
}

// forgetMachine removes the last traces of a destroyed Machine, while the conditions
// hold.
func (c *Controller) forgetMachine(ctx context.Context, m *record.Machine, conds ...store.Cond) error {
	if err := c.deletePrefix(ctx, record.VersionsOf(m.App, m.ID), conds...); err != nil {
		return err
	}
	_, err := c.store.Txn(ctx, conds, []store.Op{
		store.Delete(record.MachineKey(m.App, m.ID)), store.Delete(record.IDKey(m.ID)),
		store.Delete(record.TombKey(*m.Gone, m.App, m.ID)), store.Delete(record.LeaseKey(m.App, m.ID)),
	})
	return err
}

func (c *Controller) deletePrefix(ctx context.Context, prefix string, conds ...store.Cond) error {
	kvs, _, err := c.store.List(ctx, prefix)
	if err != nil {
		return err
	}
	for len(kvs) > 0 {
		n := min(len(kvs), store.MaxOps)
		ops := make([]store.Op, n)
		for i, kv := range kvs[:n] {
			ops[i] = store.Delete(kv.Key)
		}
		if _, err := c.store.Txn(ctx, conds, ops); err != nil {
			return err
		}
		kvs = kvs[n:]
	}
	return nil
}

// ignoreChanged is for a change that somebody else made already.
func ignoreChanged(err error) error {
	if fault.Is(err, fault.Precondition) {
		return nil
	}
	return err
}

// listIPs answers the public addresses of an app: none of its own, all apps share
// the edge's.
func (c *Controller) listIPs(r *call) (int, any, error) {
	if _, _, err := c.getApp(r.Context(), r.app()); err != nil {
		return 0, nil, err
	}
	return http.StatusOK, struct {
		IPs []struct{} `json:"ips"`
	}{IPs: []struct{}{}}, nil
}

// stamp is how the API writes a time.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// csv splits a comma-separated list, also one given in several parameters.
func csv(values []string) []string {
	var out []string
	for _, v := range values {
		for _, s := range strings.Split(v, ",") {
			if s = strings.TrimSpace(s); s != "" {
				out = append(out, s)
			}
		}
	}
	return out
}
