package pki_test

import (
	"testing"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"

	"bulkhead/pki"
)

// excused are rules that are broken on purpose, with the reason.
var excused = map[string]string{
	"e_name_constraint_not_fqdn":                    "a SPIFFE trust domain is a name of its own and need not be in the DNS",
	"e_ext_san_uri_host_not_fqdn_or_ip":             "the same, in an identity",
	"w_ext_subject_key_identifier_missing_sub_cert": "nothing looks for a leaf by its key's name",
}

// TestCertificatesPassZlint holds every kind of certificate that is issued against zlint:
// RFC 5280 and what browsers ask for.
func TestCertificatesPassZlint(t *testing.T) {
	ca := newCA(t, "c-1", "apps.test")
	root := clearRoot(t, ca)
	rotate(t, ca, must(pki.NewRoot("c-1", "apps.test")), root, false)
	req, _ := csr(t)
	identity, roots, err := ca.IssueIdentity(req, pki.ID{Cluster: "c-1", Role: "worker", Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	app := must(ca.IssueServer(req, "web.apps.test"))
	api := must(ca.IssueServer(req, "api.apps.test", "registry.apps.test"))
	all := map[string][]byte{
		"the first root": root.Cert.Raw, "the second root": roots[len(roots)-len(ca.Roots()[1]):],
		"the intermediate for identities": identity[1], "crossed": identity[2], "an identity": identity[0],
		"the intermediate for servers": app[1], "crossed too": app[2], "an app's": app[0], "the API's": api[0],
	}
	registry, err := lint.GlobalRegistry().Filter(lint.FilterOptions{IncludeSources: lint.SourceList{lint.RFC5280, lint.RFC5480, lint.RFC5891, lint.RFC8813, lint.Community}})
	if err != nil {
		t.Fatal(err)
	}
	checked, used := 0, map[string]bool{}
	for name, der := range all {
		cert, err := zx509.ParseCertificate(der)
		if err != nil {
			t.Fatal(name, err)
		}
		for rule, r := range zlint.LintCertificateEx(cert, registry).Results {
			if r.Status < lint.Pass {
				continue
			}
			checked++
			if r.Status <= lint.Notice {
				continue
			}
			if excused[rule] != "" {
				used[rule] = true
				continue
			}
			t.Errorf("%s: %s is %s %s", name, rule, r.Status, r.Details)
		}
	}
	for rule := range excused {
		if !used[rule] {
			t.Errorf("%s is excused and never broken", rule)
		}
	}
	t.Logf("%d certificates, %d rules applied", len(all), checked)
}
