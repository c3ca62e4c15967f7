package supervisor

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// admin is the client of the controller's admin socket, which only root can open.
type admin struct {
	http *http.Client
}

func newAdmin(socket string) *admin {
	return &admin{http: &http.Client{
		Timeout: 15 * time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}, DisableKeepAlives: true},
	}}
}

// login is what a client must know of the cluster to trust it.
type login struct {
	Pin   string `json:"pin"`    // base64url SHA-256 of the API key's SPKI
	CAPEM string `json:"ca_pem"` // root of the cluster's CA
}

// login fetches the pin and the root certificate.
func (a *admin) login(ctx context.Context) (login, error) {
	var l login
	b, err := a.call(ctx, http.MethodGet, "/login")
	if err != nil {
		return l, err
	}
	if err := json.Unmarshal(b, &l); err != nil {
		return l, fmt.Errorf("the controller's answer to /login: %w", err)
	}
	if l.Pin == "" || !strings.Contains(l.CAPEM, "BEGIN CERTIFICATE") {
		return l, errors.New("the controller's answer to /login lacks pin or ca_pem")
	}
	return l, nil
}

// ready says whether the controller has a worker and serves.
func (a *admin) ready(ctx context.Context) error {
	_, err := a.call(ctx, http.MethodGet, "/ready")
	return err
}

// token makes a new admin token. It is in the answer and nowhere else.
func (a *admin) token(ctx context.Context) (string, error) {
	b, err := a.call(ctx, http.MethodPost, "/token")
	if err != nil {
		return "", err
	}
	var t struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal(b, &t); err != nil || t.Token == "" {
		return "", errors.New("the controller's answer to /token has no token")
	}
	return t.Token, nil
}

func (a *admin) call(ctx context.Context, method, path string) ([]byte, error) {
	return a.send(ctx, method, path, nil)
}

func (a *admin) send(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://admin"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("the controller answered %s to %s: %s", resp.Status, path, strings.TrimSpace(string(b)))
	}
	return b, nil
}

// probeAPI asks the API for something, as a client outside does: over TCP and TLS,
// by the API's name, through the edge. Every answer counts that only the API
// gives: anything below 500 under a certificate that holds the pinned key.
func probeAPI(ctx context.Context, httpsAddr, domain string, l login) error {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(l.CAPEM)) {
		return errors.New("the cluster's root certificate cannot be read")
	}
	name := "api." + domain
	conf := &tls.Config{RootCAs: roots, ServerName: name, VerifyConnection: func(cs tls.ConnectionState) error {
		sum := sha256.Sum256(cs.PeerCertificates[0].RawSubjectPublicKeyInfo)
		if base64.RawURLEncoding.EncodeToString(sum[:]) != strings.TrimRight(l.Pin, "=") {
			return fmt.Errorf("%s answers with another key than the pinned one", name)
		}
		return nil
	}}
	client := &http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", dialable(httpsAddr))
			}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+name+"/v1/apps?org_slug=personal", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 500 {
		return fmt.Errorf("https://%s answers %s", name, resp.Status)
	}
	return nil
}

// dialable makes of an address to listen on one to connect to from this machine.
func dialable(addr string) string {
	host, port, _ := net.SplitHostPort(addr)
	switch host {
	case "", "0.0.0.0":
		host = "127.0.0.1"
	case "::":
		host = "::1"
	}
	return net.JoinHostPort(host, port)
}

// apiURL is how clients name the API.
func apiURL(domain, httpsAddr string) string {
	_, port, _ := net.SplitHostPort(httpsAddr)
	if port == "443" {
		return "https://api." + domain
	}
	return "https://api." + domain + ":" + port
}

// loginLine is what a user runs on a machine of theirs.
func loginLine(api, pin, token string) string {
	return fmt.Sprintf("bulkhead login %s --pin %s --token %s", api, pin, token)
}
