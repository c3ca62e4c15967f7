// Package grant is the proof that a worker shows the warden: the controller,
// which alone holds the signing key, says that a Machine may run on a node, in
// which private network and with which limits. Who holds a worker therefore still
// cannot put a Machine into another tenant's network or lift its limits.
package grant

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/privnet"
)

// domain separates these signatures from any other use of the key.
const domain = "bulkhead machine grant v1\n"

// Grant is the content of the proof.
type Grant struct {
	Machine  key.MachineID   `json:"machine"`
	Instance key.InstanceID  `json:"instance"`
	Node     key.Node        `json:"node"`
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
