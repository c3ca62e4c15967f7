package supervisor

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"bulkhead/key"
	"bulkhead/privnet"
	"bulkhead/role"
)

// Identity is what is chosen once, at installation, and kept in cluster.json.
type Identity struct {
	Cluster string       `json:"cluster"` // SPIFFE trust domain: "c-" and 16 hexadecimal digits
	Node    key.Node     `json:"node"`
	Host    privnet.Host `json:"host"`
	Tag     string       `json:"tag"`
	Domain  string       `json:"domain"`
	Created time.Time    `json:"created"`
}

// Names of what is in a data directory.
const (
	lockFile    = "lock"         // held (flock) while bulkheadd runs; the text is its process id
	clusterFile = "cluster.json" // Identity, 0644
	grantKey    = "grant.key"    // ed25519 private key, 64 bytes, of the controller, 0600
	grantPub    = "grant.pub"    // its public half, 32 bytes, 0644
	// clusterKeyDir is the controller's, 0700: what it holds, the cluster key, is not to
	// be copied to where the rest is.
	clusterKeyDir  = "cluster-key"
	clusterKeyFile = "cluster.key"
	caFile         = "ca.crt"      // root of the cluster's CA, PEM, 0644; a copy for clients
	stateFile      = "up.json"     // State of the last start, 0600
	tokenMark      = "token.given" // the first admin token has been shown
	programDir     = "programs"    // copies of the programs when lib_dir is closed to the roles
	imageDir       = "images"      // sealed images, of the worker, 0700
	machineDir     = "machines"    // the warden's, 0711
)

// installation is an opened data directory.
type installation struct {
	dir   string
	id    Identity
	users *users
	lock  *os.File
}

// install makes of the data directory what it must be, from nothing or from
// whatever an earlier attempt left: every step looks at what is there, does what
// is missing and can be cut short anywhere. cluster.json comes after the grant
// key, so a node that has an identity also has its key.
func install(ctx context.Context, c Config, lock *os.File, h hook) (*installation, error) {
	in := &installation{dir: c.DataDir, lock: lock}
	var err error
	if in.users, err = ensureUsers(ctx, h); err != nil {
		return nil, err
	}
	if err := in.ensureGrantKey(h); err != nil {
		return nil, err
	}
	if err := in.ensureIdentity(c, h); err != nil {
		return nil, err
	}
	for _, d := range in.dirs() {
		if err := ensureDir(h, d.path, d.mode, d.owner); err != nil {
			return nil, err
		}
	}
	return in, syncDir(in.dir)
}

type dir struct {
	path  string
	mode  os.FileMode
	owner owner
}

// dirs are the directories below the data directory. Those of Machines can be
// entered but not listed by others: a sandbox opens the image that the warden has
// linked into its own, and no other, even if it knows the digest.
func (in *installation) dirs() []dir {
	var out []dir
	for _, r := range []string{role.Controller, role.Worker, role.Warden, role.Edge} {
		out = append(out, dir{in.path(r), 0o700, in.users.of(r)})
	}
	return append(out,
		dir{in.path(clusterKeyDir), 0o700, in.users.of(role.Controller)},
		dir{in.path(imageDir), 0o700, in.users.of(role.Worker)},
		dir{in.path(machineDir), 0o711, root})
}

func (in *installation) path(name string) string { return filepath.Join(in.dir, name) }

// ensureGrantKey makes the pair that signs grants, the private half first; the
// public half can always be made again from it.
func (in *installation) ensureGrantKey(h hook) error {
	priv, err := os.ReadFile(in.path(grantKey))
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(in.path(clusterFile)); err == nil {
			return fmt.Errorf("%s is missing from an installed data directory; restore it from a backup", in.path(grantKey))
		}
		if _, priv, err = ed25519.GenerateKey(rand.Reader); err != nil {
			return err
		}
		if err := writeFile(h, in.path(grantKey), priv, 0o600, in.users.of(role.Controller)); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	if len(priv) != ed25519.PrivateKeySize {
		return fmt.Errorf("%s has %d bytes instead of %d; restore it from a backup", in.path(grantKey), len(priv), ed25519.PrivateKeySize)
	}
	if !ed25519.NewKeyFromSeed(ed25519.PrivateKey(priv).Seed()).Equal(ed25519.PrivateKey(priv)) {
		return fmt.Errorf("%s is damaged: its two halves do not belong together; restore it from a backup", in.path(grantKey))
	}
	pub := []byte(ed25519.PrivateKey(priv).Public().(ed25519.PublicKey))
	have, err := os.ReadFile(in.path(grantPub))
	if err == nil && string(have) == string(pub) {
		return nil
	}
	if err == nil && len(have) == len(pub) {
		return fmt.Errorf("%s and %s do not belong together: one of them is another installation's, or damaged; restore both from a backup", in.path(grantKey), in.path(grantPub))
	}
	return writeFile(h, in.path(grantPub), pub, 0o644, root)
}

// ensureIdentity reads cluster.json, or chooses an identity and writes it.
func (in *installation) ensureIdentity(c Config, h hook) error {
	id, err := readIdentity(in.dir)
	if errors.Is(err, os.ErrNotExist) {
		id = newIdentity(c)
		b, err := json.MarshalIndent(id, "", "  ")
		if err != nil {
			return err
		}
		if err := writeFile(h, in.path(clusterFile), append(b, '\n'), 0o644, root); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	in.id = id
	return nil
}

// readIdentity reads cluster.json; os.ErrNotExist when there is none yet.
func readIdentity(dataDir string) (Identity, error) {
	file := filepath.Join(dataDir, clusterFile)
	b, err := os.ReadFile(file)
	if err != nil {
		return Identity{}, err
	}
	var id Identity
	if err := json.Unmarshal(b, &id); err != nil {
		return Identity{}, fmt.Errorf("%s: %w; restore it from a backup", file, err)
	}
	if id.Cluster == "" || id.Node == "" || id.Host == 0 || id.Tag == "" || id.Domain == "" {
		return Identity{}, fmt.Errorf("%s lacks cluster, node, host, tag or domain; restore it from a backup", file)
	}
	return id, nil
}

// checkIdentity refuses a configuration that says otherwise than the installation:
// certificates, records and names are made for one domain and one node.
func checkIdentity(c Config, explicitDomain bool) error {
	id, err := readIdentity(c.DataDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if explicitDomain && c.Domain != id.Domain {
		return fmt.Errorf("%s was installed with domain %s, and a domain cannot change later; run with --domain %s, or install anew in another data directory for %s", c.DataDir, id.Domain, id.Domain, c.Domain)
	}
	if c.Node != "" && c.Node != string(id.Node) {
		return fmt.Errorf("%s was installed as node %s, and a node's name cannot change later; run with --node %s", c.DataDir, id.Node, id.Node)
	}
	return nil
}

// newIdentity chooses an identity. The tag comes from the data directory, so that
// it is the same again when an installation is cut short.
func newIdentity(c Config) Identity {
	var b [8]byte
	rand.Read(b[:])
	node := c.Node
	if node == "" {
		node = hostLabel()
	}
	return Identity{
		Cluster: "c-" + hex.EncodeToString(b[:]),
		Node:    key.Node(node),
		Host:    1,
		Tag:     tagFor(c.DataDir),
		Domain:  c.Domain,
		Created: time.Now().UTC().Truncate(time.Second),
	}
}

// tagFor tells installations on one machine apart in names of interfaces, cgroups
// and tables: "b" and three hexadecimal digits.
func tagFor(dataDir string) string {
	sum := sha256.Sum256([]byte("tag " + dataDir))
	return "b" + hex.EncodeToString(sum[:2])[:3]
}

// checkDataDir looks whether the data directory can be used, and changes nothing.
func checkDataDir(path string) error {
	// The roles live below it, so each parent must let them through.
	if closed := checkReachable(filepath.Dir(path)); closed != "" {
		return fmt.Errorf("data directory %s cannot be used: %s is closed to other users, and Bulkhead's roles run as users of their own; choose another with --data-dir, or run chmod o+x %s", path, closed, closed)
	}
	fi, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		if fi, err := os.Stat(filepath.Dir(path)); err != nil {
			return fmt.Errorf("data directory %s cannot be made: %w", path, err)
		} else if !fi.IsDir() {
			return fmt.Errorf("data directory %s cannot be made: %s is not a directory", path, filepath.Dir(path))
		}
		return nil
	}
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return fmt.Errorf("data directory %s is not a directory", path)
	}
	if uid := fileOwner(fi); uid != 0 {
		return fmt.Errorf("data directory %s belongs to user %d; it must belong to root", path, uid)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	ours, foreign := len(entries) == 0, ""
	for _, e := range entries {
		switch n := e.Name(); {
		case n == lockFile || n == clusterFile:
			ours = true
		case n != "lost+found" && !strings.HasPrefix(n, "."):
			foreign = n
		}
	}
	if !ours && foreign != "" {
		return fmt.Errorf("data directory %s holds %s and is not Bulkhead's; choose an empty one with --data-dir", path, foreign)
	}
	return nil
}

// checkRunDir looks whether the runtime directory can be used, and changes nothing.
func checkRunDir(path string) error {
	if closed := checkReachable(filepath.Dir(path)); closed != "" {
		return fmt.Errorf("runtime directory %s cannot be used: %s is closed to other users; choose another with --run-dir", path, closed)
	}
	fi, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(filepath.Dir(path)); err != nil {
			return fmt.Errorf("runtime directory %s cannot be made: %w", path, err)
		}
		return nil
	}
	if err != nil {
		return err
	}
	if !fi.IsDir() || fileOwner(fi) != 0 {
		return fmt.Errorf("runtime directory %s must be a directory of root; choose another with --run-dir", path)
	}
	return nil
}
