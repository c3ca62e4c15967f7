package pki

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"bulkhead/fault"
)

// rootKeyFile is the root's key as the installation leaves it: in the clear, until the
// operator has it sealed or discarded.
const rootKeyFile = "root.key"

// rootKeyNote says what became of it.
const rootKeyNote = "root-key.json"

// States of the root's key.
const (
	RootKeyClear     = "clear"     // on the controller's disk
	RootKeySealed    = "sealed"    // encrypted for the operator, who has it
	RootKeyDiscarded = "discarded" // nowhere: new intermediates need a new root
	RootKeyMissing   = "missing"   // nowhere, and nobody said that it should be
)

// RootKey is what is known of the root's key.
type RootKey struct {
	State string    `json:"state"`
	At    time.Time `json:"at,omitzero"` // since when, if it is sealed or discarded
}

// Status is what the operator is told of the authority.
type Status struct {
	Cluster string         `json:"cluster"`
	Domain  string         `json:"domain"`
	RootKey RootKey        `json:"root_key"`
	Roots   []RootStatus   `json:"roots"`
	Issuing []IssuerStatus `json:"issuing"`
	Overlap *OverlapStatus `json:"overlap,omitempty"`
}

// RootStatus is one root that counts.
type RootStatus struct {
	Name        string    `json:"name"`
	Fingerprint string    `json:"fingerprint"` // SHA-256 of the certificate
	NotAfter    time.Time `json:"not_after"`
	DER         []byte    `json:"der"`
}

// IssuerStatus is an intermediate that signs now.
type IssuerStatus struct {
	Name     string    `json:"name"`
	NotAfter time.Time `json:"not_after"`
}

// OverlapStatus is a change of the root that is under way.
type OverlapStatus struct {
	IssueFrom time.Time `json:"issue_from"` // when the new root's intermediates sign
	Until     time.Time `json:"until"`      // when the old root no longer counts
}

// Status returns what there is.
func (ca *CA) Status() Status {
	out := Status{Cluster: ca.cluster, Domain: ca.domain, RootKey: ca.rootKey()}
	for _, r := range ca.roots() {
		out.Roots = append(out.Roots, RootStatus{Name: r.Subject.CommonName, Fingerprint: fingerprint(r.Raw), NotAfter: r.NotAfter, DER: r.Raw})
	}
	g := ca.issuing()
	for name, i := range map[string]*issuer{identityIssuer: g.identity, serverIssuer: g.server} {
		out.Issuing = append(out.Issuing, IssuerStatus{Name: name, NotAfter: i.cert.NotAfter})
	}
	if until := ca.overlapEnds(ca.now()); !until.IsZero() {
		gens := *ca.gens.Load()
		out.Overlap = &OverlapStatus{IssueFrom: gens[len(gens)-1].IssueFrom, Until: until}
	}
	return out
}

func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// newestRoot is the root whose key signs the next intermediates.
func (ca *CA) newestRoot() *x509.Certificate {
	gens := *ca.gens.Load()
	return gens[len(gens)-1].root
}

// rootKey says where the newest root's key is. The note about it lies beside that root.
func (ca *CA) rootKey() RootKey {
	if _, err := os.Lstat(filepath.Join(ca.dir, rootKeyFile)); err == nil {
		return RootKey{State: RootKeyClear}
	}
	gens := *ca.gens.Load()
	k, err := readRootKeyNote(ca.genDir(gens[len(gens)-1].N))
	if err != nil {
		return RootKey{State: RootKeyMissing}
	}
	return k
}

func readRootKeyNote(dir string) (k RootKey, err error) {
	b, err := os.ReadFile(filepath.Join(dir, rootKeyNote))
	if err != nil {
		return k, err
	}
	return k, json.Unmarshal(b, &k)
}

func (ca *CA) writeRootKeyNote(dir, state string) error {
	b, err := json.Marshal(RootKey{State: state, At: ca.now().UTC().Truncate(time.Second)})
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, rootKeyNote), append(b, '\n'), 0o600)
}

// ClearRootKey returns the root's key in PEM, as long as it lies on the disk.
func (ca *CA) ClearRootKey() ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(ca.dir, rootKeyFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fault.New(fault.Precondition, "the root's key is not on this machine: it is %s", ca.rootKey().State)
	}
	return b, err
}

// DropRootKey notes what became of the newest root's key (RootKeySealed or
// RootKeyDiscarded) and removes what of it lies on the disk. The file is written over
// first, which file systems and disks that write elsewhere make no use of: a disk that
// was not encrypted may still hold it.
//
// Crash safety: the note comes first and does not count while the key is there, so that a
// key that is left is called clear, and this can be called again.
func (ca *CA) DropRootKey(state string) error {
	ca.change.Lock()
	defer ca.change.Unlock()
	if state != RootKeySealed && state != RootKeyDiscarded {
		return fault.New(fault.Invalid, "a root key is sealed or discarded, not %q", state)
	}
	if now := ca.rootKey().State; now != RootKeyClear && (state == RootKeySealed || now == RootKeyDiscarded) {
		return fault.New(fault.Precondition, "the root's key is not here to be %s: it is %s", state, now)
	}
	gens := *ca.gens.Load()
	if err := ca.writeRootKeyNote(ca.genDir(gens[len(gens)-1].N), state); err != nil {
		return err
	}
	return shred(filepath.Join(ca.dir, rootKeyFile))
}

// dropOldRootKey removes the key of a root that a newer one has followed.
func (ca *CA) dropOldRootKey() {
	path := filepath.Join(ca.dir, rootKeyFile)
	if k, err := ReadKey(path); err == nil && !k.PublicKey.Equal(ca.newestRoot().PublicKey) {
		shred(path)
	}
}

// shred writes over a file and removes it; one that is gone already is fine.
func shred(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil {
		_, err = f.Write(make([]byte, st.Size()))
	}
	if err := errors.Join(err, f.Sync(), f.Close(), os.Remove(path)); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}
