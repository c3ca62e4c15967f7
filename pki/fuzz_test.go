package pki

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"bulkhead/key"
)

// FuzzParseID: an identity that is taken is written as it was read, and names a role
// and a node of one cluster.
func FuzzParseID(f *testing.F) {
	for _, s := range []string{
		"spiffe://c-1/worker/n1", "spiffe://c-1/worker/n1/x", "spiffe://c-1//n1", "spiffe://c-1/worker/", "spiffe://c-1/worker/n1?x", "spiffe://c-1/worker/n1#x", "spiffe://u@c-1/worker/n1",
		"SPIFFE://c-1/worker/n1", "spiffe://c-1/worker%2fn1/n1", "spiffe://c-1/wor%6ber/n1", "spiffe:///worker/n1", "https://c-1/worker/n1", "spiffe:c-1/worker/n1", "spiffe://c-1:80/worker/n1",
		"spiffe://C-1/worker/n1", "spiffe://c-1/worker/n1?", "spiffe://c-1/worker/n1#", "spiffe://c-1worker/n1", "spiffe://[::1]/a/b",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := url.Parse(s)
		if err != nil {
			return
		}
		id, err := ParseID(u)
		if err != nil {
			if id != (ID{}) {
				t.Errorf("%q is refused as %v", s, id)
			}
			return
		}
		if id.Cluster == "" || id.Role == "" || strings.ContainsAny(id.Role, "/?#%") {
			t.Errorf("%q is %+v", s, id)
		}
		again, err := url.Parse(id.String())
		if err != nil {
			t.Fatalf("%q is written as %q: %v", s, id, err)
		}
		if back, err := ParseID(again); err != nil || back != id {
			t.Errorf("%q is %+v, and written and read again %+v, %v", s, id, back, err)
		}
	})
}

// testCA is an authority for one fuzz target.
func testCA(f *testing.F) *CA {
	ca, err := OpenCA(f.TempDir(), "c-1", "example.com")
	if err != nil {
		f.Fatal(err)
	}
	return ca
}

func seedCSRs(f *testing.F) [][]byte {
	var out [][]byte
	for _, c := range []elliptic.Curve{elliptic.P256(), elliptic.P224(), elliptic.P384()} {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			f.Fatal(err)
		}
		u, _ := url.Parse("spiffe://c-1/controller/n9")
		for _, tmpl := range []*x509.CertificateRequest{{}, {DNSNames: []string{"api.example.com"}, URIs: []*url.URL{u}, IPAddresses: []net.IP{net.IPv4zero}}} {
			b, err := x509.CreateCertificateRequest(rand.Reader, tmpl, k)
			if err != nil {
				f.Fatal(err)
			}
			out = append(out, b)
		}
	}
	return append(out, nil, []byte{0x30, 0x80}, []byte(strings.Repeat("\x30\x84", 4000)))
}

// FuzzCSR: whatever a request for a certificate says, the certificate says what the
// caller is known to be, and nothing that the request asked for.
func FuzzCSR(f *testing.F) {
	ca := testCA(f)
	for _, b := range seedCSRs(f) {
		f.Add(b)
	}
	id := ID{Cluster: "c-1", Role: "worker", Node: key.Node("n1")}
	f.Fuzz(func(t *testing.T, csr []byte) {
		chain, _, err := ca.IssueIdentity(csr, id)
		if err == nil {
			leaf, err := x509.ParseCertificate(chain[0])
			if err != nil {
				t.Fatal(err)
			}
			got, err := IDOf(leaf)
			if err != nil || got != id || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0 || leaf.IsCA {
				t.Errorf("the certificate is for %+v, %v, %v", got, leaf.DNSNames, err)
			}
		}
		if chain, err = ca.IssueServer(csr, "web.example.com"); err == nil {
			leaf, err := x509.ParseCertificate(chain[0])
			if err != nil || len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != "web.example.com" || len(leaf.URIs)+len(leaf.IPAddresses) > 0 || leaf.IsCA {
				t.Errorf("the certificate is for %v, %v", leaf.DNSNames, err)
			}
		}
	})
}

// FuzzEnroll: a body on the enroll socket gets a certificate for the role of the
// caller's user or none, and a caller who runs no role gets none whatever it says.
func FuzzEnroll(f *testing.F) {
	s := &EnrollServer{CA: testCA(f), Cluster: "c-1", Node: "n1", Roles: map[uint32]string{7: "edge"}, Log: slog.New(slog.DiscardHandler)}
	for _, csr := range seedCSRs(f) {
		b, _ := json.Marshal(enrollRequest{CSR: csr})
		f.Add(b)
	}
	f.Add([]byte(`{"csr":"` + strings.Repeat("A", 1<<15) + `"}`))
	f.Add([]byte(strings.Repeat(`{"csr":`, 5000)))
	f.Add([]byte(`{"csr":null,"role":"controller","uid":0}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		for uid, role := range map[uint32]string{7: "edge", 8: ""} {
			r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(string(body)))
			r = r.WithContext(context.WithValue(r.Context(), peerKey{}, Peer{UID: uid}))
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			var out enrollResponse
			b, _ := io.ReadAll(w.Result().Body)
			if err := json.Unmarshal(b, &out); err != nil {
				t.Fatalf("the answer is %q", b)
			}
			if w.Code != http.StatusOK {
				if len(out.Chain) > 0 || out.Error == "" || len(out.Error) > 500 {
					t.Errorf("%d %q", w.Code, b)
				}
				continue
			}
			leaf, err := x509.ParseCertificate(out.Chain[0])
			if err != nil {
				t.Fatal(err)
			}
			if id, err := IDOf(leaf); err != nil || role == "" || id != (ID{Cluster: "c-1", Role: role, Node: "n1"}) {
				t.Errorf("user %d got a certificate for %+v", uid, id)
			}
		}
	})
}

// FuzzJoinToken: a join token that is taken is whole, and is the same when it is written
// and read again; nothing of one that is refused is used.
func FuzzJoinToken(f *testing.F) {
	whole := JoinToken{Cluster: "c-1", API: "https://api.apps.test", Pin: "pin", ID: "j1", Secret: "s", Role: "worker", Node: "n1"}
	for _, s := range []string{whole.String(), " " + whole.String() + "\n", whole.String()[:20], "bhj_", "bhj_e30", "bh_x", "", "bhj_bnVsbA", "bhj_W10"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseJoinToken(s)
		if err != nil {
			return
		}
		if tok.Cluster == "" || tok.API == "" || tok.Pin == "" || tok.ID == "" || tok.Secret == "" || tok.Role == "" {
			t.Errorf("%q is taken and is not whole: %+v", s, tok)
		}
		if again, err := ParseJoinToken(tok.String()); err != nil || again != tok {
			t.Errorf("%+v became %+v, %v", tok, again, err)
		}
	})
}
