package controller_test

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"testing"
)

// TestRootCertificates: anyone may have the authority's certificate, and nothing else.
func TestRootCertificates(t *testing.T) {
	e := newEnvWithoutWorker(t)
	a := e.do("GET", "/v1/ca", nil, "Authorization", "")
	var out map[string]string
	if err := json.Unmarshal(a.body, &out); a.code != 200 || err != nil || len(out) != 1 {
		t.Fatalf("%d %s: %v", a.code, a.body, err)
	}
	b, rest := pem.Decode([]byte(out["pem"]))
	if b == nil || b.Type != "CERTIFICATE" || len(rest) > 0 {
		t.Fatalf("%s", a.body)
	}
	if cert, err := x509.ParseCertificate(b.Bytes); err != nil || !cert.IsCA || cert.MaxPathLen == 0 {
		t.Errorf("%v, %+v", err, cert)
	}
}
