package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"bulkhead/pki"
	"bulkhead/role"
)

// CA is what `bulkheadd ca` does with the running platform's authority. Its methods need
// root. The root's key is in this process alone while they run.
type CA struct {
	dataDir string
	admin   *admin
}

// OpenCA finds the running platform of a data directory.
func OpenCA(c Config) (*CA, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("bulkheadd ca must run as root")
	}
	st, err := readState(c.DataDir)
	if err != nil {
		return nil, err
	}
	return &CA{c.DataDir, newAdmin(socketPath(st.RunDir, role.SocketAdmin))}, nil
}

func (a *CA) call(ctx context.Context, method, path string, in, out any) error {
	var body []byte
	var err error
	if in != nil {
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	b, err := a.admin.send(ctx, method, path, body)
	if err != nil {
		return explainAdmin(a.dataDir, err)
	}
	return json.Unmarshal(b, out)
}

// Status returns what there is.
func (a *CA) Status(ctx context.Context) (st pki.Status, err error) {
	return st, a.call(ctx, "GET", "/ca", nil, &st)
}

// Seal writes the root's key, encrypted, to a new file and has it removed from this
// machine.
//
// Crash safety: the key is removed after the file is synced; in between there are both,
// the authority calls the key clear, and the next Seal wants another file.
func (a *CA) Seal(ctx context.Context, out string, by Sealer) error {
	key, err := a.rootKey(ctx)
	if err != nil {
		return err
	}
	if err := by.write(out, key); err != nil {
		return err
	}
	var st pki.Status
	return a.call(ctx, "POST", "/ca/root-key?state="+pki.RootKeySealed, nil, &st)
}

// Discard has the root's key removed from this machine. Nobody has it then.
func (a *CA) Discard(ctx context.Context) error {
	var st pki.Status
	return a.call(ctx, "POST", "/ca/root-key?state="+pki.RootKeyDiscarded, nil, &st)
}

// Finish ends the overlap of two roots at once.
func (a *CA) Finish(ctx context.Context) error {
	var st pki.Status
	if err := a.call(ctx, "POST", "/ca/finish", nil, &st); err != nil {
		return err
	}
	return a.publish(ctx, st)
}

// Rotation says how intermediates or the root are changed.
type Rotation struct {
	RootKey string // file of the sealed key; empty: it lies on the controller's disk
	Opener  Opener // opens it
	NewRoot bool   // the root is changed too
	Out     string // file for the new root's key, sealed by Sealer
	Sealer  Sealer
	Discard bool // or nowhere
	Now     bool // nothing of before counts any more
}

// Rotate makes new intermediates, and with NewRoot a new root above them.
//
// Crash safety: a new root's key is sealed and synced before anybody knows of the root. A
// rotation that is cut off before it is installed changes nothing.
func (a *CA) Rotate(ctx context.Context, r Rotation) (st pki.Status, err error) {
	if st, err = a.Status(ctx); err != nil {
		return st, err
	}
	newest := st.Roots[len(st.Roots)-1]
	var old, signs *pki.Root
	key, err := a.unsealed(ctx, r)
	switch {
	case err == nil:
		if old, err = pki.ParseRoot(newest.DER, key); err != nil {
			return st, err
		}
	case !r.NewRoot || r.RootKey != "" || st.RootKey.State == pki.RootKeyClear:
		return st, err
	}
	handed := pki.Issuers{}
	if signs = old; r.NewRoot {
		if signs, err = pki.NewRoot(st.Cluster, st.Domain); err != nil {
			return st, err
		}
		if handed.RootKey, err = r.keep(signs); err != nil {
			return st, err
		}
	} else {
		old = nil
	}
	var req pki.IssuerRequests
	if err := a.call(ctx, "POST", "/ca/request", nil, &req); err != nil {
		return st, err
	}
	in, err := signs.Sign(req, st.Cluster, old)
	if err != nil {
		return st, err
	}
	in.RootKey = handed.RootKey
	path := "/ca/install"
	if r.Now {
		path += "?now=1"
	}
	if err := a.call(ctx, "POST", path, in, &st); err != nil {
		return st, err
	}
	return st, a.publish(ctx, st)
}

// keep puts a new root's key where it is to be, and says where that is.
func (r Rotation) keep(root *pki.Root) (state string, err error) {
	if r.Discard {
		return pki.RootKeyDiscarded, nil
	}
	key, err := root.KeyPEM()
	if err != nil {
		return "", err
	}
	return pki.RootKeySealed, r.Sealer.write(r.Out, key)
}

func (a *CA) unsealed(ctx context.Context, r Rotation) ([]byte, error) {
	if r.RootKey == "" {
		return a.rootKey(ctx)
	}
	return r.Opener.read(r.RootKey)
}

func (a *CA) rootKey(ctx context.Context) ([]byte, error) {
	var out struct{ PEM string }
	err := a.call(ctx, "GET", "/ca/root-key", nil, &out)
	return []byte(out.PEM), err
}

// publish writes the roots that count into the file for clients.
func (a *CA) publish(ctx context.Context, st pki.Status) error {
	l, err := a.admin.login(ctx)
	if err != nil {
		return err
	}
	return writeFile(nil, filepath.Join(a.dataDir, caFile), []byte(l.CAPEM), 0o644, root)
}

// CAText is a Status for people.
func CAText(st pki.Status) string {
	var b strings.Builder
	fmt.Fprintf(&b, "cluster   %s\ndomain    %s\n", st.Cluster, st.Domain)
	for _, r := range st.Roots {
		fmt.Fprintf(&b, "root      %s, until %s, sha256 %s\n", r.Name, r.NotAfter.Format(time.DateOnly), r.Fingerprint)
	}
	for _, i := range st.Issuing {
		fmt.Fprintf(&b, "signs     %s, until %s\n", i.Name, i.NotAfter.Format(time.DateOnly))
	}
	if o := st.Overlap; o != nil {
		fmt.Fprintf(&b, "change    the new root signs from %s, the old one counts until %s\n", o.IssueFrom.Format(time.RFC3339), o.Until.Format(time.RFC3339))
	}
	fmt.Fprintf(&b, "root key  %s", st.RootKey.State)
	switch st.RootKey.State {
	case pki.RootKeyClear:
		b.WriteString(": it lies on this machine; \"bulkheadd ca seal --out FILE --recipient age1...\" or \"bulkheadd ca discard\" takes it away")
	case pki.RootKeyMissing:
		b.WriteString(": it is not on this machine, and nobody said why; \"bulkheadd ca rotate --root\" makes another root")
	default:
		fmt.Fprintf(&b, " since %s", st.RootKey.At.Format(time.RFC3339))
	}
	return b.String() + "\n"
}
