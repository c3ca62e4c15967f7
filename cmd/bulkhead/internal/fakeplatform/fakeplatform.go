// Package fakeplatform is the public API of Bulkhead as the command line sees it,
// without anything behind it: a TLS server with a key to pin, the paths of the
// Machines API that the CLI calls, and a registry. The CLI's tests run against it;
// the tests of the whole system run the CLI against the real platform.
//
// How a Machine behaves is said by its image's name: see behave.
package fakeplatform

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"bulkhead/machine"
)

// Token is the one token that the platform accepts.
const Token = "bhu_fakefakefakefakefakefakefakefakefakefakefak"

// Domain is the platform's domain.
const Domain = "fake.localhost"

// Platform is a running fake. Close ends it.
type Platform struct {
	Pin  string
	ca   string // the certificate that Pin is of, in PEM
	Port string

	srv      *http.Server
	registry http.Handler

	mu       sync.Mutex
	apps     map[string]*app
	requests []string
	arches   []string
	uploads  int // blobs whose upload was finished
	next     int
}

type app struct {
	name     string
	machines []*fakeMachine
	logs     []logLine
	watch    chan struct{} // closed and replaced at each log line
}

type logLine struct {
	Timestamp time.Time `json:"timestamp"`
	Machine   string    `json:"machine"`
	Stream    string    `json:"stream"`
	Message   string    `json:"message"`
}

// fakeMachine is the JSON of a Machine and its lease.
type fakeMachine struct {
	ID         string          `json:"id"`
	Name       string          `json:"name"`
	State      machine.State   `json:"state"`
	Region     string          `json:"region"`
	InstanceID string          `json:"instance_id"`
	PrivateIP  string          `json:"private_ip"`
	CreatedAt  string          `json:"created_at"`
	UpdatedAt  string          `json:"updated_at"`
	Config     *machine.Config `json:"config"`
	Events     []machine.Event `json:"events"`

	nonce string
	until time.Time
	owner string
}

// Start starts a platform on a free port of 127.0.0.1.
func Start() (*Platform, error) {
	p := &Platform{
		apps: map[string]*app{}, arches: []string{"amd64"},
		registry: registry.New(registry.Logger(log.New(io.Discard, "", 0))),
	}
	cert, err := p.certificate()
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	_, p.Port, _ = net.SplitHostPort(l.Addr().String())
	p.srv = &http.Server{Handler: http.HandlerFunc(p.serve), ErrorLog: log.New(io.Discard, "", 0)}
	go p.srv.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}))
	return p, nil
}

// URL returns the API's address.
func (p *Platform) URL() string { return "https://api." + Domain + ":" + p.Port }

// Close ends the server at once.
func (p *Platform) Close() { p.srv.Close() }

// certificate makes a key, a certificate nobody vouches for, and the pin.
func (p *Platform) certificate() (tls.Certificate, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "fake"},
		IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &k.PublicKey, k)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, err
	}
	p.ca = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	p.Pin = base64.RawURLEncoding.EncodeToString(sum[:])
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}, nil
}

// serve sorts requests by the name in the TLS handshake, as the edge does.
func (p *Platform) serve(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.requests = append(p.requests, r.Method+" "+r.URL.Path)
	p.mu.Unlock()
	switch r.TLS.ServerName {
	case "api." + Domain:
		w.Header().Set("fly-request-id", "01FAKE-local")
		if r.URL.Path == "/v1/ca" {
			answer(w, http.StatusOK, map[string]string{"pem": p.ca})
			return
		}
		if r.Header.Get("Authorization") != "Bearer "+Token {
			refuse(w, http.StatusUnauthorized, "Authenticate: token validation error", "")
			return
		}
		p.api().ServeHTTP(w, r)
	case "registry." + Domain:
		p.serveRegistry(w, r)
	default:
		refuse(w, http.StatusNotFound, "no such host", "")
	}
}

func (p *Platform) serveRegistry(w http.ResponseWriter, r *http.Request) {
	if _, pw, ok := r.BasicAuth(); !ok || pw != Token {
		w.Header().Set("WWW-Authenticate", `Basic realm="bulkhead"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/blobs/uploads/") {
		p.mu.Lock()
		p.uploads++
		p.mu.Unlock()
	}
	p.registry.ServeHTTP(w, r)
}

// Requests returns what was asked so far, as "METHOD path" lines, and forgets it.
func (p *Platform) Requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	rs := p.requests
	p.requests = nil
	return rs
}

// Uploads returns how many blobs were uploaded since it was last called.
func (p *Platform) Uploads() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.uploads
	p.uploads = 0
	return n
}

// SetArchitectures changes what the hosts run; none means that it is not told.
func (p *Platform) SetArchitectures(arches ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.arches = arches
}

// LeaseAll makes somebody else lease every Machine of an app.
func (p *Platform) LeaseAll(name string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, ok := p.apps[name]
	if !ok {
		return fmt.Errorf("no app %s", name)
	}
	for _, m := range a.machines {
		m.nonce, m.owner, m.until = "others", "eve@example.com", time.Now().Add(time.Hour)
	}
	return nil
}

// Leased counts the Machines of an app that are under a lease.
func (p *Platform) Leased(name string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, m := range p.apps[name].machines {
		if m.leased() {
			n++
		}
	}
	return n
}

// Log makes the first Machine of an app write a line.
func (p *Platform) Log(name, line string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, ok := p.apps[name]
	if !ok {
		return fmt.Errorf("no app %s", name)
	}
	id := "00000000000000"
	if len(a.machines) > 0 {
		id = a.machines[0].ID
	}
	a.log(id, line)
	return nil
}

// log notes a line and wakes who follows. p.mu is held.
func (a *app) log(id, line string) {
	a.logs = append(a.logs, logLine{time.Now().UTC().Truncate(time.Millisecond), id, "stdout", line})
	close(a.watch)
	a.watch = make(chan struct{})
}

// Machines returns the JSON of an app's Machines, without destroyed ones.
func (p *Platform) Machines(name string) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, ok := p.apps[name]
	if !ok {
		return nil, fmt.Errorf("no app %s", name)
	}
	return json.MarshalIndent(a.alive(), "", "  ")
}

func (a *app) alive() []*fakeMachine {
	out := []*fakeMachine{}
	for _, m := range a.machines {
		if m.State != machine.Destroyed {
			out = append(out, m)
		}
	}
	return out
}

func (m *fakeMachine) leased() bool { return m.nonce != "" && time.Now().Before(m.until) }

// answer writes v as JSON.
func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(v)
}

// leased is the reason of a call that somebody else's lease refuses.
const leased = "leased"

// refuse writes the API's error body.
func refuse(w http.ResponseWriter, code int, msg, status string) {
	body := map[string]any{"error": msg}
	switch status {
	case "":
	case leased:
		body["details"] = map[string]string{"reason": status}
	default:
		body["status"] = status
	}
	answer(w, code, body)
}
