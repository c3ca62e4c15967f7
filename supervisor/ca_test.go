package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"bulkhead/fault"
	"bulkhead/pki"
	"bulkhead/role"
)

// authority is a running platform as far as `bulkheadd ca` sees it: the authority's own
// handler on an admin socket.
func authority(t *testing.T) (*CA, *pki.CA, Config) {
	t.Helper()
	dir := t.TempDir()
	c := Config{DataDir: filepath.Join(dir, "data")}
	for _, d := range []string{c.DataDir, filepath.Join(dir, "run")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	st, _ := json.Marshal(State{RunDir: filepath.Join(dir, "run")})
	if err := os.WriteFile(filepath.Join(c.DataDir, stateFile), st, 0o600); err != nil {
		t.Fatal(err)
	}
	ca, err := pki.OpenCA(filepath.Join(dir, "ca"), "c-1", "apps.test")
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	noted := func(*http.Request, string, error) error { return nil }
	for pattern, h := range ca.AdminRoutes(noted, func(w http.ResponseWriter, err error) {
		http.Error(w, fault.MessageOf(err), http.StatusPreconditionFailed)
	}) {
		mux.HandleFunc(pattern, h)
	}
	mux.HandleFunc("/login", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(login{Pin: "pin", CAPEM: string(ca.RootPEM())})
	})
	l, err := net.Listen("unix", socketPath(filepath.Join(dir, "run"), role.SocketAdmin))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	a, err := OpenCA(c)
	if err != nil {
		t.Fatal(err)
	}
	return a, ca, c
}

// TestCARotation is the life of an authority: sealed for its owner, rotated with what was
// sealed, the root changed, the new one's key discarded, the root changed without it.
func TestCARotation(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	if scryptWork != 18 { // age's own choice
		t.Errorf("a passphrase is stretched 2^%d times", scryptWork)
	}
	scryptWork = 10 // under the race detector the real one takes half a minute and a gigabyte
	defer func() { scryptWork = 18 }()
	a, ca, c := authority(t)
	owner, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	ids, pass := filepath.Join(dir, "owner.key"), filepath.Join(dir, "pass")
	for path, text := range map[string]string{ids: owner.String() + "\n", pass: "correct horse battery\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sealed, again := filepath.Join(dir, "root.age"), filepath.Join(dir, "root2.age")
	toOwner, byOwner := Sealer{Recipients: []string{owner.Recipient().String()}}, Opener{IdentityFile: ids}

	refused := func(want string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	state := func(want string) pki.Status {
		t.Helper()
		st, err := a.Status(ctx)
		if err != nil || st.RootKey.State != want {
			t.Errorf("the root key is %+v, want %s: %v", st.RootKey, want, err)
		}
		return st
	}
	state(pki.RootKeyClear)
	refused("whom is the key sealed for", a.Seal(ctx, sealed, Sealer{}))
	refused("age-keygen", a.Seal(ctx, sealed, Sealer{Recipients: []string{"age1nobody"}}))
	refused("exclude each other", a.Seal(ctx, sealed, Sealer{Recipients: []string{"age1"}, PassphraseFile: pass}))
	refused("--out", a.Seal(ctx, "", toOwner))
	refused("replaces no file", a.Seal(ctx, ids, toOwner))
	state(pki.RootKeyClear)
	clear, err := ca.ClearRootKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Seal(ctx, sealed, toOwner); err != nil {
		t.Fatal(err)
	}
	st := state(pki.RootKeySealed)
	first := st.Roots[0].Fingerprint
	if b, err := os.ReadFile(sealed); err != nil || bytes.Contains(b, clear[30:60]) || !bytes.Contains(b, []byte("BEGIN AGE ENCRYPTED FILE")) {
		t.Errorf("sealed: %v %.60q", err, b)
	}
	if age, err := exec.LookPath("age"); err == nil { // and by the program itself, where it is
		if out, err := exec.Command(age, "-d", "-i", ids, sealed).Output(); err != nil || !bytes.Equal(out, clear) {
			t.Errorf("age -d: %v", err)
		}
	}

	_, err = a.Rotate(ctx, Rotation{})
	refused("not on this machine: it is sealed", err)
	_, err = a.Rotate(ctx, Rotation{RootKey: sealed})
	refused("--identity-file", err)
	stranger, _ := age.GenerateX25519Identity()
	other := filepath.Join(dir, "stranger.key")
	os.WriteFile(other, []byte(stranger.String()), 0o600)
	_, err = a.Rotate(ctx, Rotation{RootKey: sealed, Opener: Opener{IdentityFile: other}})
	refused("cannot be opened", err)

	before := ca.Generation()
	if st, err = a.Rotate(ctx, Rotation{RootKey: sealed, Opener: byOwner}); err != nil || ca.Generation() == before || st.Roots[0].Fingerprint != first {
		t.Fatalf("intermediates: %v, %+v", err, st)
	}
	state(pki.RootKeySealed)

	// The root, sealed with a passphrase this time, certified by the old one.
	if st, err = a.Rotate(ctx, Rotation{NewRoot: true, RootKey: sealed, Opener: byOwner, Out: again, Sealer: Sealer{PassphraseFile: pass}}); err != nil || len(st.Roots) != 2 || st.Overlap == nil || st.Overlap.IssueFrom.After(st.Overlap.Until) {
		t.Fatalf("root: %v, %+v", err, st)
	}
	if b, err := os.ReadFile(filepath.Join(c.DataDir, caFile)); err != nil || bytes.Count(b, []byte("BEGIN CERTIFICATE")) != 2 {
		t.Errorf("ca.crt: %v\n%s", err, b)
	}
	if text := CAText(st); strings.Count(text, "root      ") != 2 || !strings.Contains(text, "counts until") {
		t.Errorf("status:\n%s", text)
	}
	_, err = a.Rotate(ctx, Rotation{RootKey: sealed, Opener: byOwner})
	refused("not that of the root", err)
	if err := a.Finish(ctx); err != nil {
		t.Fatal(err)
	}
	if st = state(pki.RootKeySealed); len(st.Roots) != 1 || st.Roots[0].Fingerprint == first {
		t.Errorf("after the overlap: %+v", st)
	}
	if _, err = a.Rotate(ctx, Rotation{RootKey: again, Opener: Opener{PassphraseFile: pass}}); err != nil {
		t.Fatalf("with the passphrase: %v", err)
	}

	// The key is lost: only a new root helps, and it is let in at leisure.
	if err := a.Discard(ctx); err != nil {
		t.Fatal(err)
	}
	state(pki.RootKeyDiscarded)
	_, err = a.Rotate(ctx, Rotation{})
	refused("it is discarded", err)
	if st, err = a.Rotate(ctx, Rotation{NewRoot: true, Discard: true}); err != nil || st.Overlap == nil || !st.Overlap.IssueFrom.After(time.Now().Add(time.Hour)) {
		t.Fatalf("%v, %+v", err, st)
	}
	_, err = a.Rotate(ctx, Rotation{NewRoot: true, Discard: true})
	refused("the root is being changed until", err)
	if st, err = a.Rotate(ctx, Rotation{NewRoot: true, Discard: true, Now: true}); err != nil || len(st.Roots) != 1 {
		t.Errorf("in a hurry: %v, %+v", err, st)
	}
}
