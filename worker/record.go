package worker

import (
	"crypto/rand"
	"encoding/json"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"

	"bulkhead/api/internalpb"
	"bulkhead/grant"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/privnet"
)

// maxEvents is how many events of a Machine are kept.
const maxEvents = 50

// record is what the journal holds of one Machine, beside its newest accepted
// assignment. Together they are all that a new worker needs to carry on: no fact
// about a Machine lives in memory alone.
type record struct {
	Machine key.MachineID `json:"machine"`
	Seq     int64         `json:"seq"`   // grows with each change
	State   machine.State `json:"state"` // changes only through machine.Next
	Since   time.Time     `json:"since"` // when State was entered
	// Step names what is being done in a passing state, for its events.
	Step string       `json:"step,omitempty"`
	Slot privnet.Slot `json:"slot"` // 0 when it has none: destroyed, or the node is full

	// Instance is the version of the config that was taken up last.
	Instance key.InstanceID `json:"instance"`
	Image    key.Digest     `json:"image,omitempty"` // of that version, once it is sealed
	// Fetched is the newest version whose image was made ready, or tried in vain, while
	// the version before it ran.
	Fetched key.InstanceID `json:"fetched,omitempty"`
	// Sandbox is the version whose sandbox may exist. It is set before Start and
	// cleared after Remove, so that no sandbox exists that no record names.
	Sandbox key.InstanceID `json:"sandbox,omitempty"`
	// Ran says that the process of that sandbox was seen running, and Ended that its
	// end is recorded.
	Ran   bool `json:"ran,omitempty"`
	Ended bool `json:"ended,omitempty"`

	// Secrets is the version of the app's secrets that the sandbox was started with, and
	// HasSecrets that there were any. The values are not here.
	Secrets    uint64 `json:"secrets,omitempty"`
	HasSecrets bool   `json:"has_secrets,omitempty"`

	Launched    bool `json:"launched,omitempty"`     // its process ran at least once
	SelfDestroy bool `json:"self_destroy,omitempty"` // auto_destroy, or a failed launch: it goes whatever is wanted

	StartedAt time.Time       `json:"started_at,omitzero"` // of the process
	NextStart time.Time       `json:"next_start,omitzero"` // no start or retry before
	History   machine.History `json:"history"`             // of the restart policy
	// ByUser says that the restart or stop in progress was asked for.
	ByUser bool `json:"by_user,omitempty"`
	// Retry says that Failed is to be tried again at NextStart: what failed may pass.
	Retry   bool `json:"retry,omitempty"`
	Retries int  `json:"retries,omitempty"` // tries after a failure that may pass, for their back-off

	// What of the assignment was acted on.
	Wanted       machine.Desired `json:"wanted,omitempty"`
	StartNonce   int64           `json:"start_nonce,omitempty"`
	RestartNonce int64           `json:"restart_nonce,omitempty"`

	// Local is what traffic made of the user's wish: started since a request woke the
	// Machine, stopped since it was idle, empty while the user's word counts. It holds
	// for the wish numbered Wish, and is void with a newer one. Asked says that it has
	// not been acted on.
	Local machine.Desired `json:"local,omitempty"`
	Wish  int64           `json:"wish,omitempty"`
	Asked bool            `json:"asked,omitempty"`

	Events    []machine.Event `json:"events"`          // newest first
	Error     string          `json:"error,omitempty"` // why it failed, or what is in the way
	UpdatedAt time.Time       `json:"updated_at"`
}

// clone returns a copy whose slices may be changed.
func (r *record) clone() *record {
	c := *r
	c.Events = slices.Clone(r.Events)
	c.History.Recent = slices.Clone(r.History.Recent)
	return &c
}

// event adds an event about what led to the record's present state.
func (r *record) event(at time.Time, typ, source string, req *machine.EventRequest) {
	e := machine.Event{
		ID:        ulid.MustNew(ulid.Timestamp(at), rand.Reader).String(),
		Type:      typ,
		Status:    string(r.State),
		Source:    source,
		Timestamp: at.UnixMilli(),
		Request:   req,
	}
	r.Events = slices.Insert(r.Events, 0, e)
	if len(r.Events) > maxEvents {
		r.Events = r.Events[:maxEvents]
	}
}

// Sources of events, as clients expect them.
const (
	byUser     = "user"
	byPlatform = "flyd"
)

// move changes the state through the one door and starts its clock.
func (r *record) move(in machine.Input, at time.Time) error {
	to, err := machine.Next(r.State, in)
	if err != nil {
		return err
	}
	r.State, r.Since, r.Step = to, at, ""
	return nil
}

// byTraffic reports whether traffic has had the last word about what is wanted.
func (r *record) byTraffic(a *internalpb.Assignment) bool {
	return r.Local != "" && r.Wish == a.GetWish() && a.GetDesired() != string(machine.WantDestroyed)
}

// wanted is what is wanted of the Machine: the user's last word, or what traffic has
// made of it since.
func (r *record) wanted(a *internalpb.Assignment) machine.Desired {
	if r.byTraffic(a) {
		return r.Local
	}
	return machine.Desired(a.GetDesired())
}

// observation is the record as the controller hears of it.
func (r *record) observation(a *internalpb.Assignment, host privnet.Host) *internalpb.Observation {
	o := &internalpb.Observation{
		MachineId:     string(r.Machine),
		Seq:           r.Seq,
		Generation:    a.GetGeneration(),
		InstanceId:    string(r.Instance),
		State:         string(r.State),
		UpdatedAtMs:   r.UpdatedAt.UnixMilli(),
		Error:         r.Error,
		StartNonce:    r.StartNonce,
		RestartNonce:  r.RestartNonce,
		LeaseRevision: a.GetLeaseRevision(),
	}
	if r.Sandbox != "" {
		o.SecretsVersion = r.Secrets
	}
	if r.byTraffic(a) {
		o.Local, o.Wish = string(r.Local), r.Wish
	}
	if addr := privateIP(r, a, host); addr != "" {
		o.PrivateIp = addr
	}
	for _, e := range r.Events {
		if b, err := json.Marshal(e); err == nil {
			o.Events = append(o.Events, b)
		}
	}
	return o
}

// privateIP is the Machine's address: its network comes from the grant, which the
// warden verifies.
func privateIP(r *record, a *internalpb.Assignment, host privnet.Host) string {
	if r.Slot == 0 {
		return ""
	}
	var g grant.Grant
	if json.Unmarshal(a.GetGrant(), &g) != nil || g.Network == 0 {
		return ""
	}
	return privnet.MachineAddr(g.Network, host, r.Slot).String()
}
