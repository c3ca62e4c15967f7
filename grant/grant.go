// Package grant is the proof that a worker shows the warden: the controller,
// which alone holds the signing key, says that a Machine may run on a node, in
// which private network and with which limits. Who holds a worker therefore still
// cannot put a Machine into another tenant's network or lift its limits.
package grant

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"hash/fnv"
	"time"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/privnet"
)

// domain separates these signatures from any other use of the key.
const domain = "bulkhead machine grant v1\n"

const (
	// Life is how long a grant is good at least, when it is sent.
	Life = 14 * 24 * time.Hour
	// Period is how often a node's grants are made anew. All that are made within one are
	// the same, byte for byte.
	Period = 24 * time.Hour
	// Skew is how far apart clocks may be: that of the controller, that of the node, and
	// each from what it was.
	Skew = 24 * time.Hour
)

// Words for why a start is refused, as an error's status.
const (
	StatusEnded    = "grant_ended"    // or never had an end
	StatusAhead    = "grant_ahead"    // its end is farther away than that of any grant
	StatusReplaced = "grant_replaced" // a newer generation was started
)

// End is the end of the grants that a node gets at a time. The periods of nodes begin at
// different times of the day, so that not all get new ones at once.
func End(node key.Node, at time.Time) time.Time {
	h := fnv.New32a()
	h.Write([]byte(node))
	offset := time.Duration(h.Sum32()) * time.Second % Period
	return at.Add(-offset).Truncate(Period).Add(offset + Period + Life).UTC()
}

// Grant is the content of the proof.
type Grant struct {
	Machine  key.MachineID  `json:"machine"`
	Instance key.InstanceID `json:"instance"`
	Node     key.Node       `json:"node"`
	// Generation numbers what is wanted of the Machine: 1 at first, and a newer one
	// replaces the older.
	Generation int64 `json:"generation,omitempty"`
	// Ends is when nothing may be started with it any more, in Unix seconds. A grant of an
	// older version of Bulkhead has neither.
	Ends int64 `json:"ends,omitempty"`

	Network  privnet.Network `json:"network"`
	CPUs     int             `json:"cpus"`      // whole processors
	CPUQuota int             `json:"cpu_quota"` // percent of one processor; 0: CPUs x 100
	MemoryMB int             `json:"memory_mb"` // MiB
	MaxPIDs  int             `json:"max_pids"`
	DiskMB   int             `json:"disk_mb"` // MiB of the writable layer

	// Of these, 0 is what Complete makes of it: a grant in an old journal names none.
	Processes        int `json:"processes,omitempty"`          // and threads, inside the sandbox
	OpenFiles        int `json:"open_files,omitempty"`         // of each process
	Inodes           int `json:"inodes,omitempty"`             // of the writable layer
	NetworkMbps      int `json:"network_mbps,omitempty"`       // 10^6 bits per second, each way
	PacketsPerSecond int `json:"packets_per_second,omitempty"` // each way
}

// Complete returns g with limits in place of those that it does not name.
func (g Grant) Complete() Grant {
	for _, d := range []struct {
		field *int
		value int
	}{{&g.CPUQuota, g.CPUs * 100}, {&g.Processes, 1024}, {&g.OpenFiles, 65536}, {&g.Inodes, g.DiskMB * 256}, {&g.NetworkMbps, 1000}, {&g.PacketsPerSecond, 100_000}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	return g
}

// Usable reports whether a sandbox may be started with g at a time. Each failure is
// Unavailable: what ends it is a new grant, which the controller sends by itself.
func (g Grant) Usable(now time.Time) error {
	const when = "2006-01-02 15:04 MST"
	ends := time.Unix(g.Ends, 0).UTC()
	switch {
	case g.Ends == 0:
		return fault.New(fault.Unavailable, "the grant of machine %s is of an older version of Bulkhead and has no end; the machine starts as soon as this node reaches the controller, which sends a new one",
			g.Machine).WithStatus(StatusEnded)
	case !now.Before(ends):
		return fault.New(fault.Unavailable, "the grant of machine %s ended at %s; a node gets new ones every day while it reaches the controller, and the machine starts as soon as it does. See why it does not; if it does, compare their clocks",
			g.Machine, ends.Format(when)).WithStatus(StatusEnded)
	case ends.After(now.Add(Life + Period + Skew)):
		return fault.New(fault.Unavailable, "the grant of machine %s ends at %s, which is more than %d days away: the clock of this node is wrong, or that of the controller was; the machine starts as soon as the clock is right and the controller has sent a new one",
			g.Machine, ends.Format(when), (Life+Period+Skew)/(24*time.Hour)).WithStatus(StatusAhead)
	}
	return nil
}

// Sign returns the encoded grant and its signature.
func Sign(key ed25519.PrivateKey, g Grant) (encoded, signature []byte, err error) {
	encoded, err = json.Marshal(g)
	if err != nil {
		return nil, nil, err
	}
	return encoded, ed25519.Sign(key, append([]byte(domain), encoded...)), nil
}

// Verify checks the signature before it reads anything of the grant, and then that
// it is for this node. Every failure is Denied.
func Verify(pub ed25519.PublicKey, node key.Node, encoded, signature []byte) (Grant, error) {
	if len(pub) != ed25519.PublicKeySize || !ed25519.Verify(pub, append([]byte(domain), encoded...), signature) {
		return Grant{}, fault.New(fault.Denied, "the machine's grant is not signed by the controller")
	}
	d := json.NewDecoder(bytes.NewReader(encoded))
	d.DisallowUnknownFields()
	var g Grant
	if err := d.Decode(&g); err != nil {
		return Grant{}, fault.Wrap(fault.Denied, err, "the machine's grant cannot be read")
	}
	if g.Node != node {
		return Grant{}, fault.New(fault.Denied, "the machine's grant is for node %q, this is %q", g.Node, node)
	}
	return g, nil
}
