package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"bulkhead/role"
)

// Where the cluster key may lie, as cluster_key of the configuration says.
const (
	keyInCredential = "credential:"
	keyInKMS        = "kms:"
)

var credentialRE = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// checkClusterKey checks the form of cluster_key.
func checkClusterKey(v string) error {
	if name, ok := strings.CutPrefix(v, keyInCredential); ok && credentialRE.MatchString(name) {
		return nil
	}
	if path, ok := strings.CutPrefix(v, keyInKMS); ok && pathRE.MatchString(path) {
		return nil
	}
	if v == "" || v == "file" {
		return nil
	}
	return fmt.Errorf("cluster_key %q is none of \"file\", \"credential:NAME\" (of systemd, LoadCredential=) and \"kms:/SOCKET\"", v)
}

// clusterKey tells the controller where its key is, and opens the credential for it: only
// bulkheadd's own user may read that.
func (s *Supervisor) clusterKey(rc *role.Config) (*os.File, error) {
	rc.ClusterKeyFile = filepath.Join(s.in.path(clusterKeyDir), clusterKeyFile)
	v := s.Config.ClusterKey
	if path, ok := strings.CutPrefix(v, keyInKMS); ok {
		rc.ClusterKMS = path
		return nil, nil
	}
	name, ok := strings.CutPrefix(v, keyInCredential)
	if !ok {
		return nil, nil
	}
	rc.ClusterKeyFile, rc.ClusterCredential = "", name
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return nil, fmt.Errorf("cluster_key is the credential %s, and bulkheadd was given none: run it as a service with LoadCredential=%s:FILE or LoadCredentialEncrypted=", name, name)
	}
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return nil, fmt.Errorf("cluster_key is the credential %s, which cannot be opened: %w", name, err)
	}
	return f, nil
}

// rotateLimit bounds the replacement of the cluster key.
const rotateLimit = 10 * time.Minute

// RotateKey replaces the cluster key of the running platform and says what was done.
func RotateKey(ctx context.Context, c Config) (string, error) {
	if os.Geteuid() != 0 {
		return "", errors.New("bulkheadd secrets must run as root")
	}
	st, err := readState(c.DataDir)
	if err != nil {
		return "", err
	}
	a := newAdmin(socketPath(st.RunDir, role.SocketAdmin))
	a.http.Timeout = rotateLimit
	b, err := a.call(ctx, http.MethodPost, "/secrets/rotate-key")
	if err != nil {
		return "", fmt.Errorf("%w; nothing is lost: run it again to go on", explainAdmin(c.DataDir, err))
	}
	var out struct{ Key, Old, Note string }
	if err := json.Unmarshal(b, &out); err != nil {
		return "", fmt.Errorf("the controller's answer: %w", err)
	}
	text := fmt.Sprintf("the cluster key is %s now; everything that %s wrapped is wrapped with it", out.Key, out.Old)
	if out.Note != "" {
		return text + "\n" + out.Note, nil
	}
	return text + "\nkeep a copy of the new key apart from the data directory; copies of the old one are of no more use", nil
}
