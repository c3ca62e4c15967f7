package controller_test

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"testing"
)

// TestFront: a browser at the API's or the cluster's own name is led to the sign-in page;
// other clients see no change, and the cluster's own name serves nothing else.
func TestFront(t *testing.T) {
	e := newEnvWithoutWorker(t)
	tr := e.transport()
	defer tr.CloseIdleConnections()
	const browser = "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"
	for _, x := range []struct {
		method, host, path, accept string
		code                       int
		location                   string
	}{
		{"GET", "api." + domain, "/", browser, 303, "/login"},
		{"GET", domain, "/", browser, 303, "/login"},
		{"HEAD", domain, "/some/page", browser, 303, "/login"},
		{"GET", domain + ".:8443", "/", browser, 303, "/login"},
		{"GET", "api." + domain, "/", "application/json", 401, ""},
		{"POST", "api." + domain, "/", browser, 401, ""},
		{"GET", "api." + domain, "/v1/apps", browser, 401, ""},
		{"GET", domain, "/v1/apps", "*/*", 401, ""},
		{"POST", domain, "/login/sso", browser, 401, ""},
	} {
		req, _ := http.NewRequest(x.method, "https://"+x.host+x.path, nil)
		req.Header.Set("Accept", x.accept)
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		at := resp.Header.Get("Location")
		if resp.StatusCode != x.code || (at == "") != (x.location == "") || at != "" && at[len(at)-len(x.location):] != x.location {
			t.Errorf("%s %s%s, Accept %s: %d, to %q", x.method, x.host, x.path, x.accept, resp.StatusCode, at)
		}
	}
	c, err := e.dialAPI(t.Context(), "", &tls.Config{RootCAs: e.roots, ServerName: domain})
	if err != nil {
		t.Fatalf("the certificate is not for the cluster's own name: %v", err)
	}
	defer c.Close()
	if err := c.ConnectionState().PeerCertificates[0].VerifyHostname("other." + domain); err == nil {
		t.Error("the certificate is for every name")
	} else if _, ok := err.(x509.HostnameError); !ok {
		t.Error(err)
	}
}
