package controller

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"regexp"
	"time"

	"bulkhead/controller/record"
	"bulkhead/controller/schedule"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/room"
	"bulkhead/store"
)

// hostPIDs is how many processes and threads a sandbox may have on the host when it
// may have some number inside: each process inside has a few on the host, and the
// sandbox some of its own. A sandbox that met this limit would end.
func hostPIDs(processes int) int { return 1024 + 4*processes }

// maxConfig bounds a config as it is kept, in bytes of JSON: the store holds one with
// each version, and with the Machine's record what was last seen of it (bury).
const maxConfig = 640 << 10

// machineInput is the body of a create and of an update.
type machineInput struct {
	Config         json.RawMessage `json:"config"`
	Name           string          `json:"name"`
	Region         string          `json:"region"`
	SkipLaunch     bool            `json:"skip_launch"`
	SkipServices   bool            `json:"skip_service_registration"`
	MinSecrets     *uint64         `json:"min_secrets_version"`
	SkipSecrets    bool            `json:"skip_secrets"`
	LeaseTTL       int             `json:"lease_ttl"` // seconds
	LSVD           bool            `json:"lsvd"`
	CurrentVersion string          `json:"current_version"` // update only
}

// config reads and checks the config, and fills in the size, so that what is stored
// and answered is what the Machine gets.
func (in *machineInput) config() (*machine.Config, error) {
	if len(in.Config) == 0 || string(in.Config) == "null" {
		return nil, fault.New(fault.Invalid, "config is missing; it needs at least an image")
	}
	conf := new(machine.Config)
	if err := json.Unmarshal(in.Config, conf); err != nil {
		return nil, fault.New(fault.Invalid, "config: %s", jsonProblem(err))
	}
	if err := checkFields("config", in.Config, conf); err != nil {
		return nil, err
	}
	if in.LSVD {
		return nil, fault.New(fault.Invalid, "lsvd is not supported by this version of Bulkhead; leave it out")
	}
	if err := conf.Validate(); err != nil {
		return nil, err
	}
	g := conf.EffectiveGuest()
	conf.Guest, conf.Size = &g, ""
	return conf, keepable(conf)
}

// keepable refuses a config that would not fit into the store with all that a record
// of it may grow by. It is the config's size as it is kept that counts, which may be
// several times what was sent.
func keepable(conf *machine.Config) error {
	b, err := json.Marshal(conf)
	if err != nil {
		return fault.New(fault.Invalid, "config: %w", err)
	}
	if len(b) > maxConfig {
		return fault.New(fault.Invalid, "config is %d KiB; at most %d are kept for one machine: put large files into the image", len(b)>>10, maxConfig>>10)
	}
	return nil
}

var machineNameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)

func (c *Controller) createMachine(r *call) (int, any, error) {
	ctx := r.Context()
	a, _, err := c.getApp(ctx, r.app())
	if err != nil {
		return 0, nil, err
	}
	var in machineInput
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	conf, err := in.config()
	if err != nil {
		return 0, nil, err
	}
	if in.Name != "" && !machineNameRE.MatchString(in.Name) {
		return 0, nil, fault.New(fault.Invalid, "machine name %q must be 1 to 63 letters, digits, dashes, dots and underscores, and start with a letter or digit", fault.Clip(in.Name))
	}
	ttl, err := leaseTTL(in.LeaseTTL, in.LeaseTTL != 0)
	if err != nil {
		return 0, nil, err
	}
	if err := c.roomForMore(); err != nil {
		return 0, nil, err
	}
	node, err := schedule.Place(schedule.Request{Region: in.Region, MemoryMB: conf.Guest.MemoryMB, Starts: !in.SkipLaunch}, c.candidates())
	if err != nil {
		return 0, nil, err
	}
	t := now()
	m := &record.Machine{
		ID: key.NewMachineID(), App: a.Name, Name: in.Name, Org: a.Org, Network: a.NetworkNumber, Region: c.cfg.Role.Region,
		Node: node, Instance: key.NewInstanceID(), Config: conf, Desired: machine.WantStarted, Generation: 1,
		Cordoned: in.SkipServices, CreatedAt: t, UpdatedAt: t,
	}
	if err := c.useSecrets(ctx, a, &in, conf, m); err != nil {
		return 0, nil, err
	}
	if in.SkipLaunch {
		m.Desired = machine.WantStopped
	}
	c.log.Debug("trace", "step", "placed", "machine", m.ID)
	if m.ImageRef, err = c.reserve(ctx, m.Node, m.ID, a, conf); err != nil {
		return 0, nil, err
	}
	c.log.Debug("trace", "step", "reserved", "machine", m.ID)
	var l *record.Lease
	if in.LeaseTTL != 0 {
		l = newLease(r.who, m, "", ttl)
	}
	r.note(a.Org, a.Name, m.ID)
	if err := retry(ctx, func() error { return c.addMachine(ctx, a.ID, m, in.Name == "", l) }); err != nil {
		return 0, nil, err
	}
	c.log.Debug("trace", "step", "stored", "machine", m.ID)
	b := c.machineBody(m, false)
	if l != nil {
		b.Nonce = l.Nonce
	}
	b.State, b.Events = string(machine.Created), nil // whatever the worker has done of it already
	return http.StatusOK, b, nil
}

// roomForMore refuses new apps and Machines while there is still room for what is to
// become of those that are there.
func (c *Controller) roomForMore() error { return room.Check(c.cfg.Role.DataDir, 0, room.Objects) }

// addMachine writes a new Machine: its record, its first version, its name, its
// place and its assignment, all or nothing, and only while the app that it was
// checked for stays: another of the same name may have another network.
func (c *Controller) addMachine(ctx context.Context, appID string, m *record.Machine, anyName bool, l *record.Lease) error {
	a, arev, err := c.getApp(ctx, string(m.App))
	if err != nil {
		return err
	}
	if a.Deleting || a.ID != appID {
		return fault.New(fault.Conflict, "app %s is being deleted", a.Name)
	}
	if anyName {
		m.Name = randomName()
	}
	taken, nrev, err := record.Get[record.Place](ctx, c.store, record.NameKey(m.App, m.Name))
	if err != nil {
		return err
	}
	if taken != nil {
		if anyName {
			return store.ErrChanged // another name, another try
		}
		return fault.New(fault.Conflict, "unique machine name violation: another machine of app %s has the name %q", m.App, m.Name)
	}
	if err := c.notRemoved(ctx, m.Node); fault.Is(err, fault.Denied) {
		return fault.Wrap(fault.Unavailable, err, "node %s was removed meanwhile; try again", m.Node)
	} else if err != nil {
		return err
	}
	mk := record.MachineKey(m.App, m.ID)
	ops := []store.Op{
		record.Put(mk, m),
		record.Put(record.VersionKey(m.App, m.ID, m.Instance), m.AsVersion(now())),
		record.Put(record.NameKey(m.App, m.Name), record.Place{App: m.App, Node: m.Node}),
		record.Put(record.IDKey(m.ID), record.Place{App: m.App, Node: m.Node}),
		record.Put(record.NodeKey(m.Node, m.ID), m.Assigned()),
	}
	if l != nil {
		ops = append(ops, record.Put(record.LeaseKey(m.App, m.ID), l))
	}
	conds := []store.Cond{record.At(record.AppKey(m.App), arev), record.At(record.NameKey(m.App, m.Name), nrev), record.At(mk, 0), record.At(record.IDKey(m.ID), 0), record.At(record.RemovedKey(m.Node), 0)}
	_, err = c.store.Txn(ctx, conds, ops)
	return err
}

// leaseTTL checks a lease's time in seconds; without one it is a minute.
func leaseTTL(seconds int, given bool) (time.Duration, error) {
	if !given {
		return defaultLease, nil
	}
	if seconds < 1 || time.Duration(seconds)*time.Second > maxLease {
		return 0, fault.New(fault.Invalid, "a lease of %d seconds: it must be 1 to %d", seconds, int(maxLease.Seconds()))
	}
	return time.Duration(seconds) * time.Second, nil
}

// Words of the names that Machines get when nobody names them.
var (
	adjectives = []string{"amber", "bold", "brisk", "calm", "clear", "crisp", "deep", "dry", "fair", "firm", "fresh", "keen", "light", "long", "lucky", "misty", "noble", "plain", "quick", "quiet", "rapid", "sharp", "silent", "smooth", "snowy", "steady", "still", "stout", "swift", "tidal", "warm", "wild"}
	nouns      = []string{"anchor", "bay", "beacon", "bow", "breeze", "buoy", "cape", "chart", "cliff", "coast", "coral", "cove", "deck", "delta", "dune", "gale", "gull", "harbor", "hull", "keel", "lagoon", "mast", "oar", "pier", "port", "reef", "rudder", "sail", "shoal", "strait", "surf", "tide"}
)

func randomName() string {
	n, err := rand.Int(rand.Reader, big.NewInt(int64(len(adjectives)*len(nouns)*10000)))
	if err != nil {
		panic("controller: no random numbers: " + err.Error())
	}
	i := int(n.Int64())
	return fmt.Sprintf("%s-%s-%04d", adjectives[i%32], nouns[i/32%32], i/1024)
}
