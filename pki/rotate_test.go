package pki_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bulkhead/fault"
	"bulkhead/pki"
	"bulkhead/pki/pkitest"
)

// clock is a clock that a test sets. It stands while somebody holds passing: a handshake
// takes no days.
type clock struct {
	mu      sync.Mutex
	now     time.Time
	passing sync.RWMutex
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.passing.Lock()
	defer c.passing.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// inMemory is a directory on a disk that syncs in no time, where there is one.
func inMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "pki-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// rotate makes new intermediates under root; old is the root of before, when the root
// changes and its key is there.
func rotate(t *testing.T, ca *pki.CA, root, old *pki.Root, now bool) {
	t.Helper()
	req := must(ca.Request())
	in := must(root.Sign(req, "c-1", old))
	in.RootKey = pki.RootKeyDiscarded
	if err := ca.Install(in, now); err != nil {
		t.Fatal(err)
	}
}

func clearRoot(t *testing.T, ca *pki.CA) *pki.Root {
	t.Helper()
	roots := ca.Roots()
	return must(pki.ParseRoot(roots[len(roots)-1], must(ca.ClearRootKey())))
}

// TestRotationsBreakNoHandshake rotates intermediates and roots some hundred times, in all
// the ways there are, while roles that renew at any time shake hands all along.
func TestRotationsBreakNoHandshake(t *testing.T) {
	const rounds, overlap = 100, 48 * time.Hour
	dir := inMemory(t)
	ca := must(pki.OpenCA(dir, "c-1", "apps.test"))
	clk := &clock{now: time.Now()}
	ca.SetTime(clk.Now, overlap)
	var ids []*pki.Identity
	for _, r := range []string{"controller", "worker", "edge"} {
		ids = append(ids, pkitest.Identity(t, ca, pki.ID{Cluster: "c-1", Role: r, Node: "n1"}))
	}
	renew := func(i *pki.Identity) {
		if err := i.Renew(context.Background()); err != nil {
			t.Error(err)
		}
	}
	stop := make(chan struct{})
	var shakes atomic.Int64
	var wg sync.WaitGroup
	end := sync.OnceFunc(func() { close(stop); wg.Wait() })
	defer end()
	for i := range ids {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				clk.passing.RLock()
				server, client := ids[i], ids[(i+1+n%2)%3]
				if serr, cerr := handshake(t, server.ServerTLS(), client.ClientTLS(server.ID().Role, "n1")); serr != nil || cerr != nil {
					t.Errorf("%s calls %s: %v, %v", client.ID(), server.ID(), cerr, serr)
				}
				clk.passing.RUnlock()
				shakes.Add(1)
				select {
				case <-time.After(20 * time.Millisecond): // leave some of the machine to the rotations
				case <-stop:
				}
			}
		})
	}
	root := clearRoot(t, ca)
	kinds := map[string]int{}
	for n := range rounds {
		switch n % 4 {
		default: // intermediates alone
			rotate(t, ca, root, nil, false)
			kinds["intermediates"]++
		case 1: // a new root, the old one's key at hand: it signs at once
			next := must(pki.NewRoot("c-1", "apps.test"))
			rotate(t, ca, next, root, false)
			root = next
			kinds["root, certified by the old"]++
		case 3: // a new root, the old one's key discarded: it signs when all know it
			next := must(pki.NewRoot("c-1", "apps.test"))
			rotate(t, ca, next, nil, false)
			root = next
			kinds["root, the old key gone"]++
		}
		// As in a life: each renews once in each half of the overlap, none all at once.
		for range 3 {
			renew(ids[n%3])
			clk.add(overlap / 4)
			renew(ids[(n+1)%3])
			renew(ids[(n+2)%3])
			clk.add(overlap/4 + time.Minute)
		}
		if len(ca.Roots()) != 1 {
			t.Fatalf("round %d: %d roots after the overlap", n, len(ca.Roots()))
		}
	}
	end()
	again := must(pki.OpenCA(dir, "c-1", "apps.test"))
	again.SetTime(clk.Now, overlap)
	if !bytes.Equal(again.Roots()[0], root.Cert.Raw) {
		t.Error("opened anew, it is another")
	}
	if names := must(os.ReadDir(dir)); len(names) > 6 {
		t.Errorf("%d files are left: %v", len(names), names)
	}
	if shakes.Load() < rounds {
		t.Errorf("%d handshakes only", shakes.Load())
	}
	t.Logf("%v, %d handshakes", kinds, shakes.Load())

	// Control: without the overlap who has not heard of the new root refuses.
	rotate(t, ca, must(pki.NewRoot("c-1", "apps.test")), nil, true)
	renew(ids[0])
	if serr, cerr := handshake(t, ids[0].ServerTLS(), ids[1].ClientTLS("controller", "n1")); serr == nil && cerr == nil {
		t.Error("a new root was trusted before anybody heard of it")
	}
}

// TestRotationIsAllOrNothing: an answer that is not sound is refused and changes nothing,
// and what a crash leaves of a rotation is cleared away.
func TestRotationIsAllOrNothing(t *testing.T) {
	dir := t.TempDir()
	ca := must(pki.OpenCA(dir, "c-1", "apps.test"))
	root := clearRoot(t, ca)
	before := ca.RootPEM()
	stranger := must(pki.NewRoot("c-2", "bank.example"))
	other := must(pki.NewRoot("c-1", "apps.test"))
	req := must(ca.Request())
	good := must(root.Sign(req, "c-1", nil))
	foreign := must(ca.Request()) // the first request is void now
	for name, in := range map[string]pki.Issuers{
		"keys of an earlier request":         good,
		"a root of another cluster":          must(stranger.Sign(foreign, "c-1", nil)),
		"a new root whose key is in the air": must(other.Sign(foreign, "c-1", nil)),
		"signed by another root":             func() pki.Issuers { i := must(other.Sign(foreign, "c-1", nil)); i.Root = root.Cert.Raw; return i }(),
		"the two swapped": func() pki.Issuers {
			i := must(root.Sign(foreign, "c-1", nil))
			i.Identity, i.Server = i.Server, i.Identity
			return i
		}(),
		"crossed by a stranger": func() pki.Issuers {
			i := must(other.Sign(foreign, "c-1", stranger))
			i.RootKey = pki.RootKeySealed
			return i
		}(),
		"nothing": {},
	} {
		if err := ca.Install(in, false); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
	if !bytes.Equal(before, ca.RootPEM()) || ca.Generation() != 0 {
		t.Fatal("it was changed")
	}
	if again := must(pki.OpenCA(dir, "c-1", "apps.test")); again.Generation() != 0 {
		t.Fatal("opened anew, it is changed")
	}
	if _, err := os.Stat(filepath.Join(dir, "next")); !errors.Is(err, os.ErrNotExist) {
		t.Error("what was begun is still there")
	}
	if err := ca.Install(good, false); !fault.Is(err, fault.Precondition) {
		t.Errorf("installed without a request: %v", err)
	}
	// While the root changes, only who is in a hurry changes it again.
	rotate(t, ca, other, root, false)
	in := must(other.Sign(must(ca.Request()), "c-1", nil))
	if err := ca.Install(in, false); !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "until") {
		t.Errorf("a second rotation: %v", err)
	}
	if st := ca.Status(); len(st.Roots) != 2 || st.Overlap == nil {
		t.Errorf("status: %+v", st)
	}
	if err := ca.Finish(); err != nil {
		t.Fatal(err)
	}
	if st := ca.Status(); len(st.Roots) != 1 || st.Overlap != nil || st.RootKey.State != pki.RootKeyDiscarded {
		t.Errorf("status: %+v", st)
	}
	if _, err := ca.ClearRootKey(); !fault.Is(err, fault.Precondition) {
		t.Errorf("the old root's key is still there: %v", err)
	}
}

// TestRootKeyIsDropped: sealed and discarded are told apart and stay so, and everything but
// a rotation goes on without the key.
func TestRootKeyIsDropped(t *testing.T) {
	for _, state := range []string{pki.RootKeySealed, pki.RootKeyDiscarded} {
		dir := t.TempDir()
		ca := must(pki.OpenCA(dir, "c-1", "apps.test"))
		if st := ca.Status().RootKey.State; st != pki.RootKeyClear {
			t.Errorf("after installation it is %s", st)
		}
		root := clearRoot(t, ca)
		if err := ca.DropRootKey("lost"); !fault.Is(err, fault.Invalid) {
			t.Errorf("dropped as lost: %v", err)
		}
		if err := ca.DropRootKey(state); err != nil {
			t.Fatal(err)
		}
		pem := must(root.KeyPEM())
		filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if b, _ := os.ReadFile(path); bytes.Contains(b, pem[40:80]) {
				t.Errorf("%s holds the key", path)
			}
			return err
		})
		ca = must(pki.OpenCA(dir, "c-1", "apps.test"))
		if st := ca.Status().RootKey; st.State != state || st.At.IsZero() {
			t.Errorf("it is %+v, want %s", st, state)
		}
		if err := ca.DropRootKey(pki.RootKeySealed); !fault.Is(err, fault.Precondition) {
			t.Errorf("sealed again: %v", err)
		}
		req, _ := csr(t)
		if _, err := ca.IssueServer(req, "web.apps.test"); err != nil {
			t.Error(err)
		}
		if state == pki.RootKeySealed { // and it still is after its owner has rotated
			rotate(t, ca, root, nil, false)
			if st := ca.Status().RootKey.State; st != state {
				t.Errorf("after a rotation it is %s", st)
			}
		}
		if err := os.Remove(filepath.Join(dir, "root-key.json")); err == nil && state == pki.RootKeyDiscarded {
			if st := ca.Status().RootKey.State; st != pki.RootKeyMissing {
				t.Errorf("without a word about it it is %s", st)
			}
		}
	}
}

// TestRememberedRoots: what a role keeps on disk while the root changes holds both.
func TestRememberedRoots(t *testing.T) {
	ca := newCA(t, "c-1", "apps.test")
	id := pki.ID{Cluster: "c-1", Role: "worker", Node: "n1"}
	older := pkitest.Identity(t, ca, pki.ID{Cluster: "c-1", Role: "controller", Node: "n1"})
	root := clearRoot(t, ca)
	rotate(t, ca, must(pki.NewRoot("c-1", "apps.test")), root, false)
	file := filepath.Join(t.TempDir(), "identity.pem")
	must(pki.OpenIdentity(t.Context(), file, pkitest.Signer(ca, id), slog.New(slog.DiscardHandler))).Close()
	away := func(context.Context, []byte) ([][]byte, []byte, error) { return nil, nil, errors.New("away") }
	back := must(pki.OpenIdentity(t.Context(), file, away, slog.New(slog.DiscardHandler)))
	defer back.Close()
	if serr, cerr := handshake(t, older.ServerTLS(), back.ClientTLS("controller", "n1")); serr != nil || cerr != nil {
		t.Errorf("old and new do not know each other: %v, %v", serr, cerr)
	}
	var conf *tls.Config = back.ServerTLS()
	cert, err := conf.GetCertificate(nil)
	if err != nil || len(cert.Certificate) != 3 || slices.ContainsFunc(cert.Certificate[1:], func(b []byte) bool { c, _ := x509.ParseCertificate(b); return !c.IsCA }) {
		t.Errorf("the chain has %d certificates: %v", len(cert.Certificate), err)
	}
}
