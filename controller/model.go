package controller

import (
	"time"

	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/privnet"
)

// The records of the store, in JSON. Fields are added, never renamed or reused.

// orgPersonal is the organization that the installation makes.
const orgPersonal = "personal"

// defaultNetwork names the network of apps that do not name one.
const defaultNetwork = "default"

// org is an organization.
type org struct {
	Slug      string    `json:"slug"`
	Name      string    `json:"name"`
	Number    int64     `json:"number"`
	CreatedAt time.Time `json:"created_at"`
	// Deleting is set while it is being deleted: it takes no new app.
	Deleting bool `json:"deleting,omitempty"`
	// TokenDefault and TokenMax bound the life of the organization's tokens; 0 means the
	// cluster's own bounds, which they cannot exceed.
	TokenDefault time.Duration `json:"token_default,omitempty"`
	TokenMax     time.Duration `json:"token_max,omitempty"`
}

// counter is the last number given out of a sequence.
type counter struct {
	Last int64 `json:"last"`
}

// network is a private network. Its number is given once and never to another.
type network struct {
	Org    string          `json:"org"`
	Name   string          `json:"name"`
	Number privnet.Network `json:"number"`
}

// app is an app. While Deleting is set its Machines are being destroyed, and no new
// one is accepted; the record goes with the last of them, and the name is free.
type app struct {
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

// record is the desired state of a Machine.
type record struct {
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
	// LeaseUntil repeats the lease's end for the worker, which lets traffic do nothing to
	// the Machine before; it is kept up for those with autostart or autostop only.
	LeaseUntil time.Time     `json:"lease_until,omitzero"`
	LeaseTTL   time.Duration `json:"lease_ttl,omitempty"` // of that lease

	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`

	// Gone is set when the worker has reported the Machine's destruction: the record
	// is a tombstone then, and Last is what was seen of the Machine at the end.
	Gone *time.Time `json:"gone,omitempty"`
	Last *lastSeen  `json:"last,omitempty"`
}

// lastSeen is the end of a Machine's life, for those who ask later.
type lastSeen struct {
	Events    []machine.Event `json:"events,omitempty"`
	Error     string          `json:"error,omitempty"`
	PrivateIP string          `json:"private_ip,omitempty"`
}

// place says where a Machine is.
type place struct {
	App  key.AppName `json:"app"`
	Node key.Node    `json:"node"`
}

// assigned is what lies under a node for each of its Machines. It is written in the
// transaction of every change of the assignment, so that watching the node's prefix
// is watching its assignments.
type assigned struct {
	App        key.AppName `json:"app"`
	Generation int64       `json:"generation"`
	CPUs       int         `json:"cpus"`
	MemoryMB   int         `json:"memory_mb"`
	Runs       bool        `json:"runs"` // a user wants it started
	Wish       int64       `json:"wish,omitempty"`
}

// version is one version of a Machine's config.
type version struct {
	Instance  key.InstanceID   `json:"instance_id"`
	Config    *machine.Config  `json:"config"`
	ImageRef  machine.ImageRef `json:"image_ref"`
	CreatedAt time.Time        `json:"created_at"`
}

// lease is somebody's hold on a Machine.
type lease struct {
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

// live reports whether the lease holds.
func (l *lease) live(now time.Time) bool { return machine.LeaseHolds(l.ExpiresAt, l.TTL, now) }

// host is what is kept of a node.
type host struct {
	Node      key.Node  `json:"node"`
	FirstSeen time.Time `json:"first_seen"`
	LastSeen  time.Time `json:"last_seen"` // at most lastSeenEvery old while its worker is connected
}

// removal says that a node was removed. While it is there the node is refused.
type removal struct {
	Node     key.Node  `json:"node"`
	At       time.Time `json:"at"`
	By       string    `json:"by"` // whose token it was
	LastSeen time.Time `json:"last_seen,omitzero"`
	// Readmit lets the node in again, once it holds no Machine any more.
	Readmit bool `json:"readmit,omitempty"`
}

func (r *record) assigned() assigned {
	g := r.Config.EffectiveGuest()
	return assigned{App: r.App, Generation: r.Generation, CPUs: g.CPUs, MemoryMB: g.MemoryMB, Runs: r.Desired == machine.WantStarted, Wish: r.Wish}
}
