package pki_test

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead/pki"
	"bulkhead/pki/pkitest"
)

// forgery is a certificate that the authority's intermediates could sign if they were in
// the wrong hands. good ones are the control.
type forgery struct {
	name string
	cert x509.Certificate
	good bool
	host string // what a client asks for; "" for none
}

func forgeries(t *testing.T) []forgery {
	uris := func(s string) []*url.URL { return []*url.URL{pkitest.URL(t, s)} }
	return []forgery{
		{name: "a name below the domain", cert: x509.Certificate{DNSNames: []string{"web.apps.test"}}, good: true, host: "web.apps.test"},
		{name: "an identity", cert: x509.Certificate{URIs: uris("spiffe://c-1/worker/n1")}, good: true},
		{name: "another domain", cert: x509.Certificate{DNSNames: []string{"bank.example"}}, host: "bank.example"},
		{name: "both", cert: x509.Certificate{DNSNames: []string{"web.apps.test", "bank.example"}}, host: "bank.example"},
		{name: "the domain as a prefix", cert: x509.Certificate{DNSNames: []string{"apps.test.bank.example"}}, host: "apps.test.bank.example"},
		{name: "the domain as a suffix of a label", cert: x509.Certificate{DNSNames: []string{"myapps.test"}}, host: "myapps.test"},
		{name: "a wildcard above", cert: x509.Certificate{DNSNames: []string{"*.test"}}, host: "bank.test"},
		{name: "another trust domain", cert: x509.Certificate{URIs: uris("spiffe://c-2/worker/n1")}},
		{name: "an https URI elsewhere", cert: x509.Certificate{URIs: uris("https://bank.example/")}},
		{name: "an IPv4 address", cert: x509.Certificate{IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)}}, host: "192.0.2.1"},
		{name: "an IPv6 address", cert: x509.Certificate{IPAddresses: []net.IP{net.ParseIP("2001:db8::1")}}, host: "2001:db8::1"},
		{name: "an e-mail address", cert: x509.Certificate{EmailAddresses: []string{"ceo@bank.example"}}},
		{name: "an e-mail address of the domain", cert: x509.Certificate{EmailAddresses: []string{"a@apps.test"}}},
		{name: "a common name alone", cert: x509.Certificate{Subject: pkix.Name{CommonName: "bank.example"}}, host: "bank.example"},
	}
}

// TestRootHarmsNobodyElsewhere imports the root into three verifiers, Go's, OpenSSL's and
// NSS's (Firefox's), and shows them what the cluster's keys in the wrong hands could sign.
func TestRootHarmsNobodyElsewhere(t *testing.T) {
	ca := newCA(t, "c-1", "apps.test")
	dir := t.TempDir()
	write := func(name string, der ...[]byte) string {
		var b []byte
		for _, d := range der {
			b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d})...)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	root := write("root.pem", ca.Roots()...)
	nss := newNSS(t, root)
	refused := map[string]int{}
	for i, f := range forgeries(t) {
		f.cert.KeyUsage = x509.KeyUsageDigitalSignature
		f.cert.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		leaf, issuer, _, err := ca.Leaf(&f.cert, false, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		verdicts := map[string]error{
			"Go":      goVerify(ca, leaf, issuer, f.host),
			"OpenSSL": opensslVerify(root, write("issuer.pem", issuer), write("leaf.pem", leaf), f.host),
			"NSS":     nss.verify(string(rune('a'+i)), write("leaf.pem", leaf), write("issuer.pem", issuer)),
		}
		for who, err := range verdicts {
			if f.good != (err == nil) {
				t.Errorf("%s: %s says %v", f.name, who, err)
			}
			if err != nil {
				refused[who]++
			}
		}
	}
	t.Logf("%d certificates; refused: %v", len(forgeries(t)), refused)

	// Control: under a root without constraints Go takes all but the last, which names
	// nobody where names are looked for.
	loose := pki.OpenUnconstrained(t, "c-1", "apps.test")
	taken := 0
	for _, f := range forgeries(t) {
		f.cert.KeyUsage, f.cert.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		leaf, issuer, _, err := loose.Leaf(&f.cert, false, time.Hour)
		if err == nil {
			err = goVerify(loose, leaf, issuer, f.host)
		}
		if err == nil {
			taken++
		}
	}
	if want := len(forgeries(t)) - 1; taken != want {
		t.Errorf("without constraints %d are taken, want %d: the forgeries are no good", taken, want)
	}
}

func goVerify(ca *pki.CA, leaf, issuer []byte, host string) error {
	cert, err := x509.ParseCertificate(leaf)
	if err != nil {
		return err
	}
	inter, err := x509.ParseCertificate(issuer)
	if err != nil {
		return err
	}
	roots, pool := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.RootPEM())
	pool.AddCert(inter)
	_, err = cert.Verify(x509.VerifyOptions{DNSName: host, Roots: roots, Intermediates: pool})
	return err
}

func opensslVerify(root, issuer, leaf, host string) error {
	args := []string{"verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", root, "-no-CApath", "-untrusted", issuer}
	switch {
	case net.ParseIP(host) != nil:
		args = append(args, "-verify_ip", host)
	case host != "":
		args = append(args, "-verify_hostname", host)
	}
	return said(exec.Command("openssl", append(args, leaf)...))
}

// said runs a command and makes an error of its words.
func said(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return &exec.Error{Name: strings.Join(cmd.Args, " "), Err: &wordsError{string(out)}}
	}
	return nil
}

type wordsError struct{ s string }

func (e *wordsError) Error() string { return e.s }

// nssDB is a data base of certificates as Firefox has one.
type nssDB struct {
	t   *testing.T
	dir string
}

func newNSS(t *testing.T, root string) *nssDB {
	t.Helper()
	if _, err := exec.LookPath("certutil"); err != nil {
		t.Fatal("certutil is missing: apt-get install libnss3-tools, or scripts/setup")
	}
	db := &nssDB{t, "sql:" + t.TempDir()}
	db.must("-N", "--empty-password")
	db.must("-A", "-n", "root", "-t", "C,,", "-i", root)
	return db
}

func (db *nssDB) must(args ...string) {
	db.t.Helper()
	if err := said(exec.CommandContext(context.Background(), "certutil", append([]string{"-d", db.dir}, args...)...)); err != nil {
		db.t.Fatal(err)
	}
}

func (db *nssDB) verify(name, leaf, issuer string) error {
	db.must("-A", "-n", "issuer", "-t", ",,", "-i", issuer)
	db.must("-A", "-n", name, "-t", ",,", "-i", leaf)
	return said(exec.Command("certutil", "-d", db.dir, "-V", "-u", "V", "-e", "-n", name))
}
