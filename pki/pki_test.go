package pki_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead/pki"
	"bulkhead/pki/pkitest"
)

func newCA(t *testing.T, cluster, domain string) *pki.CA {
	t.Helper()
	ca, err := pki.OpenCA(t.TempDir(), cluster, domain)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func csr(t *testing.T) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := pki.NewCSR(k)
	if err != nil {
		t.Fatal(err)
	}
	return der, k
}

// handshake connects client to server and returns both ends' errors.
func handshake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	deadline := time.Now().Add(40 * time.Second)
	c.SetDeadline(deadline)
	s.SetDeadline(deadline)
	done := make(chan error, 1)
	go func() {
		conn := tls.Server(s, server)
		err := conn.Handshake()
		if err != nil {
			s.Close()
		}
		done <- err
	}()
	conn := tls.Client(c, client)
	clientErr = conn.Handshake()
	if clientErr != nil {
		c.Close()
	}
	return <-done, clientErr
}

func TestIdentitiesRecognizeEachOther(t *testing.T) {
	ca := newCA(t, "c-1", "x.localhost")
	w := pkitest.Identity(t, ca, pki.ID{Cluster: "c-1", Role: "worker", Node: "n1"})
	c := pkitest.Identity(t, ca, pki.ID{Cluster: "c-1", Role: "controller", Node: "n1"})
	if serr, cerr := handshake(t, c.ServerTLS(), w.ClientTLS("controller", "n1")); serr != nil || cerr != nil {
		t.Fatalf("server: %v, client: %v", serr, cerr)
	}
}

func TestRefusedHandshakes(t *testing.T) {
	ca := newCA(t, "c-1", "x.localhost")
	worker := pkitest.Identity(t, ca, pki.ID{Cluster: "c-1", Role: "worker", Node: "n1"})
	controller := pkitest.Identity(t, ca, pki.ID{Cluster: "c-1", Role: "controller", Node: "n1"})
	stranger := pkitest.Identity(t, newCA(t, "c-1", "x.localhost"), pki.ID{Cluster: "c-1", Role: "worker", Node: "n1"})

	req, k := csr(t)
	chain, err := ca.IssueServer(req, "app.x.localhost")
	if err != nil {
		t.Fatal(err)
	}
	web := worker.ClientTLS("controller", "n1")
	web.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &tls.Certificate{Certificate: chain, PrivateKey: k}, nil
	}
	none := worker.ClientTLS("controller", "n1")
	none.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }
	old := worker.ClientTLS("controller", "n1")
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12

	for name, client := range map[string]*tls.Config{
		"no certificate":                         none,
		"a server certificate of the same root":  web,
		"another authority of the same name":     stranger.ClientTLS("controller", "n1"),
		"TLS 1.2":                                old,
		"the server has another role than asked": worker.ClientTLS("edge", "n1"),
		"the server is another node than asked":  worker.ClientTLS("controller", "n2"),
	} {
		t.Run(name, func(t *testing.T) {
			if serr, cerr := handshake(t, controller.ServerTLS(), client); serr == nil && cerr == nil {
				t.Fatal("the handshake succeeded")
			}
		})
	}
}

func TestRootMayOnlySignForItsOwnNames(t *testing.T) {
	ca := newCA(t, "c-1", "x.localhost")
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.RootPEM())
	for name, good := range map[string]bool{"app.x.localhost": true, "bank.example": false, "x.localhost.example": false, "127.0.0.1": false} {
		req, _ := csr(t)
		chain, err := ca.IssueServer(req, name)
		if err != nil {
			t.Fatal(err)
		}
		leaf, _ := x509.ParseCertificate(chain[0])
		inter, _ := x509.ParseCertificate(chain[1])
		pool := x509.NewCertPool()
		pool.AddCert(inter)
		_, err = leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: pool})
		if (err == nil) != good {
			t.Errorf("%s: good is %v, want %v: %v", name, err == nil, good, err)
		}
	}
}

func TestCAIsTheSameAfterReopeningAndAfterACrashWhileItWasMade(t *testing.T) {
	dir := t.TempDir()
	// A crash before "complete": whatever files there are do not count.
	os.WriteFile(filepath.Join(dir, "identity.key"), []byte("half a key"), 0o600)
	os.WriteFile(filepath.Join(dir, "root.crt.tmp"), []byte("torn"), 0o600)
	a, err := pki.OpenCA(dir, "c-1", "x.localhost")
	if err != nil {
		t.Fatal(err)
	}
	b, err := pki.OpenCA(dir, "c-1", "x.localhost")
	if err != nil {
		t.Fatal(err)
	}
	if string(a.RootPEM()) != string(b.RootPEM()) {
		t.Fatal("the root changed")
	}
	for _, f := range []string{"root.key", "identity.key", "server.key"} {
		st, err := os.Stat(filepath.Join(dir, f))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f, st.Mode(), err)
		}
	}
	// A key that is not the certificate's is found, not used.
	os.WriteFile(filepath.Join(dir, "server.key"), must(os.ReadFile(filepath.Join(dir, "identity.key"))), 0o600)
	if _, err := pki.OpenCA(dir, "c-1", "x.localhost"); err == nil || !strings.Contains(err.Error(), "does not belong") {
		t.Fatalf("a swapped key was accepted: %v", err)
	}
}

func TestEnrollGivesARoleOnlyItsOwnIdentity(t *testing.T) {
	ca := newCA(t, "c-1", "x.localhost")
	sock := filepath.Join(t.TempDir(), "enroll.sock")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	srv := &pki.EnrollServer{CA: ca, Cluster: "c-1", Node: "n1", Log: slog.New(slog.DiscardHandler), Roles: map[uint32]string{uint32(os.Getuid()): "worker"}}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	go srv.Serve(ctx, l)

	id, err := pki.NewIdentity(ctx, pki.Enroller(sock), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer id.Close()
	if got := id.ID().String(); got != "spiffe://c-1/worker/n1" {
		t.Errorf("identity is %s", got)
	}

	srv.Roles = map[uint32]string{uint32(os.Getuid()) + 1: "worker"}
	short, stop := context.WithTimeout(ctx, 40*time.Second)
	defer stop()
	if _, err := pki.NewIdentity(short, untilRefused(pki.Enroller(sock), stop), slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "runs no role") {
		t.Fatalf("a stranger's request: %v", err)
	}
}

func TestParseIDRefuses(t *testing.T) {
	for _, s := range []string{"https://c/worker/n", "spiffe:///worker/n", "spiffe://c/worker", "spiffe://c/worker/n/x", "spiffe://c//n", "spiffe://c/worker/N_1", "spiffe://c/worker/n?x=1"} {
		if id, err := pki.ParseID(pkitest.URL(t, s)); err == nil {
			t.Errorf("%s gave %v", s, id)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestClockSetBack: with the clock an hour back what was signed before is good, on
// this machine and for clients whose clock is right when the signer's is an hour fast.
func TestClockSetBack(t *testing.T) {
	ca := newCA(t, "c1", "apps.test")
	der, _ := csr(t)
	chain, err := ca.IssueServer(der, "web.apps.test")
	if err != nil {
		t.Fatal(err)
	}
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.RootPEM())
	var leaf *x509.Certificate
	for i, b := range chain {
		c, err := x509.ParseCertificate(b)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			leaf = c
		} else {
			inter.AddCert(c)
		}
	}
	for _, back := range []time.Duration{0, time.Hour} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, CurrentTime: time.Now().Add(-back)}); err != nil {
			t.Errorf("%v back: %v", back, err)
		}
	}
	// The authority itself outlasts much more, since nobody makes another.
	root, inters := ca.RootPEM(), chain[1:]
	block, _ := pem.Decode(root)
	for _, b := range append(inters, block.Bytes) {
		c, err := x509.ParseCertificate(b)
		if err != nil {
			t.Fatal(err)
		}
		if since := time.Since(c.NotBefore); since < 7*24*time.Hour {
			t.Errorf("%s is good from %v before it was made", c.Subject, since)
		}
	}
}
