package record

import (
	"time"

	"bulkhead/api/rpc"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/privnet"
)

// OrgPersonal is the organization that the installation makes.
const OrgPersonal = "personal"

// DefaultNetwork names the network of apps that do not name one.
const DefaultNetwork = "default"

// Counter is the last number given out of a sequence.
type Counter struct {
	Last int64 `json:"last"`
}

// Network is a private network. Its number is given once and never to another.
type Network struct {
	Org    string          `json:"org"`
	Name   string          `json:"name"`
	Number privnet.Network `json:"number"`
}

// App is an app. While Deleting is set its Machines are being destroyed, and no new
// one is accepted; the record goes with the last of them, and the name is free.
type App struct {
	ID            string          `json:"id"`
	Number        int64           `json:"number"`
	Name          key.AppName     `json:"name"`
	Org           string          `json:"org"`
	Network       string          `json:"network"`
	NetworkNumber privnet.Network `json:"network_number"`
	Role          string          `json:"role,omitempty"`
	CreatedAt     time.Time       `json:"created_at"`
	Deleting      bool            `json:"deleting,omitempty"`
}

// Machine is the desired state of a Machine.
type Machine struct {
	ID       key.MachineID    `json:"id"`
	App      key.AppName      `json:"app"`
	Name     string           `json:"name"`
	Org      string           `json:"org"`
	Network  privnet.Network  `json:"network"`
	Region   string           `json:"region"`
	Node     key.Node         `json:"node"`
	Instance key.InstanceID   `json:"instance_id"`
	Config   *machine.Config  `json:"config"`
	ImageRef machine.ImageRef `json:"image_ref"`

	Desired machine.Desired `json:"desired"`
	// Generation grows with each change that the worker must know of, Wish with each
	// word of a user about what is wanted: it voids what traffic made of the last one.
	Generation   int64  `json:"generation"`
	Wish         int64  `json:"wish,omitempty"`
	StartNonce   int64  `json:"start_nonce,omitempty"`
	RestartNonce int64  `json:"restart_nonce,omitempty"`
	StopSignal   string `json:"stop_signal,omitempty"`
	StopTimeout  int64  `json:"stop_timeout_ms,omitempty"`
	Force        bool   `json:"force,omitempty"`
	Cordoned     bool   `json:"cordoned,omitempty"`
	// MinSecrets is the oldest version of the app's secrets that a start may use;
	// SkipSecrets says that it gets none.
	MinSecrets  uint64 `json:"min_secrets,omitempty"`
	SkipSecrets bool   `json:"skip_secrets,omitempty"`

	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`

	// Gone is set when the worker has reported the Machine's destruction: the record
	// is a tombstone then, and Last is what was seen of the Machine at the end.
	Gone *time.Time `json:"gone,omitempty"`
	Last *LastSeen  `json:"last,omitempty"`
}

// Assigned is what lies under the Machine's node.
func (r *Machine) Assigned() Assigned {
	g := r.Config.EffectiveGuest()
	return Assigned{App: r.App, Generation: r.Generation, CPUs: g.CPUs, MemoryMB: g.MemoryMB, Runs: r.Desired == machine.WantStarted, Wish: r.Wish}
}

// AsVersion is the config that the Machine has, as it is kept when another replaces it at
// that time.
func (r *Machine) AsVersion(at time.Time) Version {
	return Version{Instance: r.Instance, Config: r.Config, ImageRef: r.ImageRef, CreatedAt: at}
}

// WantDestroyed changes the wish; it cannot be taken back.
func (r *Machine) WantDestroyed(force bool, at time.Time) {
	if r.Desired != machine.WantDestroyed || force && !r.Force {
		r.Desired, r.Force = machine.WantDestroyed, force
		r.Generation++
		r.UpdatedAt = at
	}
}

// LastSeen is the end of a Machine's life, for those who ask later.
type LastSeen struct {
	Events    []machine.Event `json:"events,omitempty"`
	Error     string          `json:"error,omitempty"`
	PrivateIP string          `json:"private_ip,omitempty"`
}

// Place says where a Machine is.
type Place struct {
	App  key.AppName `json:"app"`
	Node key.Node    `json:"node"`
}

// Assigned is what lies under a node for each of its Machines. It is written in the
// transaction of every change of the assignment, so that watching the node's prefix
// is watching its assignments.
type Assigned struct {
	App        key.AppName `json:"app"`
	Generation int64       `json:"generation"`
	CPUs       int         `json:"cpus"`
	MemoryMB   int         `json:"memory_mb"`
	Runs       bool        `json:"runs"` // a user wants it started
	Wish       int64       `json:"wish,omitempty"`
}

// Version is one version of a Machine's config.
type Version struct {
	Instance  key.InstanceID   `json:"instance_id"`
	Config    *machine.Config  `json:"config"`
	ImageRef  machine.ImageRef `json:"image_ref"`
	CreatedAt time.Time        `json:"created_at"`
}

// Lease is somebody's hold on a Machine.
type Lease struct {
	Nonce       string    `json:"nonce"`
	Owner       string    `json:"owner"`
	Description string    `json:"description,omitempty"`
	ExpiresAt   time.Time `json:"expires_at"`
	Version     string    `json:"version"`
	// TTL is what it was taken for. A lease with more than that to go was taken by a
	// clock that has been set back since, and counts as expired: nobody can say for how
	// long it would hold otherwise. 0 in leases of earlier versions.
	TTL time.Duration `json:"ttl,omitempty"`
}

// Live reports whether the lease holds.
func (l *Lease) Live(now time.Time) bool { return machine.LeaseHolds(l.ExpiresAt, l.TTL, now) }

// Host is what is kept of a node.
type Host struct {
	Node      key.Node  `json:"node"`
	FirstSeen time.Time `json:"first_seen"`
	LastSeen  time.Time `json:"last_seen"` // at most lastSeenEvery old while its worker is connected
}

// Removal says that a node was removed. While it is there the node is refused.
type Removal struct {
	Node     key.Node  `json:"node"`
	At       time.Time `json:"at"`
	By       string    `json:"by"` // whose token it was
	LastSeen time.Time `json:"last_seen,omitzero"`
	// Readmit lets the node in again, once it holds no Machine any more.
	Readmit bool `json:"readmit,omitempty"`
}

// Refusal is what the node is told.
func (r *Removal) Refusal() error {
	return fault.New(fault.Denied, "node %s was removed from the cluster at %s; \"bulkhead node readmit %s\" takes it back", r.Node, r.At.UTC().Format(time.RFC3339Nano), r.Node).WithStatus(rpc.NodeRemoved)
}
