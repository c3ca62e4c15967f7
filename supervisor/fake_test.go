package supervisor

import (
	"bytes"
	"context"
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
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/role"
)

// TestMain makes this program also the roles' programs, the stage before them, and
// a bulkheadd of its own that a test can kill.
func TestMain(m *testing.M) {
	// Under the race detector a program sleeps for a second before it ends, and these
	// tests wait for the end of hundreds.
	os.Setenv("GORACE", "atexit_sleep_ms=10 "+os.Getenv("GORACE"))
	passed = append(passed, "GORACE")
	if len(os.Args) > 1 && os.Args[1] == StageCommand {
		fmt.Fprintln(os.Stderr, Stage(os.Args[2:]))
		os.Exit(1)
	}
	if len(os.Args) == 2 && os.Args[1] == ProbeCommand {
		os.Exit(ProbeHost())
	}
	if len(os.Args) == 2 && os.Args[1] == "version" {
		os.Exit(0)
	}
	if len(os.Args) > 1 && os.Args[1] == "fake-bulkheadd" {
		fakeBulkheadd(os.Args[2])
	}
	if name, ok := strings.CutPrefix(filepath.Base(os.Args[0]), "bulkhead-"); ok {
		fakeRole(name)
	}
	code := m.Run()
	os.RemoveAll(sharedDir)
	os.Exit(code)
}

// behaviour tells a fake role how to misbehave; it lies in <lib_dir>/<role>.json.
type behaviour struct {
	FailStarts int    `json:"fail_starts"` // so many starts end with exit code 3 before they are ready
	Say        string `json:"say"`         // logged at each start
	EndWith    string `json:"end_with"`    // the error of starts that fail
	NeverReady bool   `json:"never_ready"`
	IgnoreTerm bool   `json:"ignore_term"`
	NotReady   bool   `json:"not_ready"` // controller: /ready answers 503
}

// report is what a fake role found out about itself.
type report struct {
	Status string            `json:"status"` // /proc/self/status
	Limits string            `json:"limits"`
	NetNS  string            `json:"netns"`
	Env    []string          `json:"env"`
	FDs    []string          `json:"fds"`
	Files  map[string]string `json:"files"` // what it could read
	Config role.Config       `json:"config"`
}

// fakeRole is a role that does as much as the supervisor can see.
func fakeRole(name string) {
	env := os.Environ()
	fds := openFDs()
	role.Main(name, func(ctx context.Context, e *role.Env) error {
		lib := e.Config.LibDir
		var b behaviour
		if raw, err := os.ReadFile(filepath.Join(lib, name+".json")); err == nil {
			if err := json.Unmarshal(raw, &b); err != nil {
				return err
			}
		}
		started := event(lib, "start %s %d", name, os.Getpid())
		if b.Say != "" {
			fmt.Fprintln(os.Stderr, b.Say)
		}
		if started <= b.FailStarts {
			if b.EndWith != "" {
				return errors.New(b.EndWith)
			}
			os.Exit(3)
		}
		writeReport(lib, name, env, fds, e.Config)
		if b.IgnoreTerm {
			signal.Ignore(syscall.SIGTERM)
		}
		if err := fakeServe(ctx, e, name, b); err != nil {
			return err
		}
		if !b.NeverReady {
			if err := e.Ready(); err != nil {
				return err
			}
		}
		<-ctx.Done()
		event(lib, "stop %s", name)
		return nil
	})
}

// event appends a line to <lib_dir>/events and returns how often its first two
// words were there, itself included.
func event(lib, format string, args ...any) int {
	line := fmt.Sprintf(format, args...)
	f, err := os.OpenFile(filepath.Join(lib, "events"), os.O_APPEND|os.O_RDWR, 0)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	f.WriteString(line + "\n")
	b, _ := os.ReadFile(f.Name())
	w := strings.Fields(line)
	return strings.Count("\n"+string(b), "\n"+w[0]+" "+w[1])
}

func openFDs() (out []string) {
	links, _ := filepath.Glob("/proc/self/fd/*")
	for _, l := range links {
		if t, err := os.Readlink(l); err == nil {
			out = append(out, t)
		}
	}
	return out
}

func writeReport(lib, name string, env, fds []string, c role.Config) {
	status, _ := os.ReadFile("/proc/thread-self/status")
	limits, _ := os.ReadFile("/proc/self/limits")
	netns, _ := os.Readlink("/proc/self/ns/net")
	r := report{Status: string(status), Limits: string(limits), NetNS: netns, Env: env, FDs: fds, Config: c, Files: map[string]string{}}
	data := filepath.Dir(c.DataDir)
	for _, f := range []string{grantKey, grantPub, clusterFile} {
		if b, err := os.ReadFile(filepath.Join(data, f)); err == nil {
			r.Files[f] = fmt.Sprint(len(b))
		}
	}
	for _, other := range []string{role.Controller, role.Worker, role.Warden, role.Edge} {
		if _, err := os.ReadFile(filepath.Join(c.RunDir, "roles", other+".json")); err == nil {
			r.Files["config of "+other] = "read"
		}
		if _, err := os.ReadDir(filepath.Join(data, other)); err == nil {
			r.Files["directory of "+other] = "read"
		}
	}
	for n, p := range c.Sockets {
		if conn, err := net.DialTimeout("unix", p, time.Second); err == nil {
			conn.Close()
			r.Files["socket "+n] = "connected"
		}
	}
	b, _ := json.Marshal(r)
	if err := os.WriteFile(filepath.Join(lib, "reports", name), b, 0o644); err != nil {
		panic(err)
	}
}

// fakeServe does what the platform needs of a role to become ready.
func fakeServe(ctx context.Context, e *role.Env, name string, b behaviour) error {
	switch name {
	case role.Warden:
		return fakeRouter(filepath.Join(e.Config.RunDir, "netns"))
	case role.Controller:
		return fakeController(e, b)
	case role.Edge:
		go func() {
			for {
				c, err := e.Listeners[role.SocketHTTPS].Accept()
				if err != nil {
					return
				}
				go pipe(c, e.Config.Sockets[role.SocketAPI])
			}
		}()
	}
	return nil
}

// fakeRouter binds a new network namespace to <dir>/router, once.
func fakeRouter(dir string) error {
	path := filepath.Join(dir, "router")
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		return err
	}
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			errc <- err
			return
		}
		errc <- unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	}()
	return <-errc
}

func pipe(c net.Conn, socket string) {
	defer c.Close()
	u, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer u.Close()
	go func() { io.Copy(u, c); u.Close() }()
	io.Copy(c, u)
}

// fakeController answers on the admin socket, and as the API under a certificate
// of a CA of its own.
func fakeController(e *role.Env, b behaviour) error {
	caPEM, cert, pin, err := fakeCA(e.Config.DataDir, "api."+e.Config.Domain)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /login", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(login{Pin: pin, CAPEM: string(caPEM)})
	})
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if b.NotReady {
			http.Error(w, "the worker has not synced", http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, _ *http.Request) {
		n := event(e.Config.LibDir, "token made")
		fmt.Fprintf(w, `{"token":"bh_%d"}`, n)
	})
	go http.Serve(e.Listeners[role.SocketAdmin], mux)
	api := tls.NewListener(e.Listeners[role.SocketAPI], &tls.Config{Certificates: []tls.Certificate{cert}})
	go http.Serve(api, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }))
	return nil
}

// fakeCA makes a CA in dir, or reads the one that is there, and a certificate.
func fakeCA(dir, name string) (caPEM []byte, cert tls.Certificate, pin string, err error) {
	file := filepath.Join(dir, "ca.pem")
	caPEM, err = os.ReadFile(file)
	var leafKey *ecdsa.PrivateKey
	if err == nil {
		cert, err = tls.LoadX509KeyPair(filepath.Join(dir, "leaf.pem"), filepath.Join(dir, "leaf.pem"))
		if err != nil {
			return
		}
		leafKey = cert.PrivateKey.(*ecdsa.PrivateKey)
	} else {
		caKey, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		leafKey, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "fake"}, NotBefore: time.Now().Add(-time.Hour),
			NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
		caDER, e1 := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
		leaf := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{name}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter}
		leafDER, e2 := x509.CreateCertificate(rand.Reader, leaf, ca, &leafKey.PublicKey, caKey)
		keyDER, e3 := x509.MarshalPKCS8PrivateKey(leafKey)
		if err = errors.Join(e1, e2, e3); err != nil {
			return
		}
		var b bytes.Buffer
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: leafDER})
		pem.Encode(&b, &pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
		caPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
		if err = writeFile(nil, filepath.Join(dir, "leaf.pem"), b.Bytes(), 0o600, owner{uint32(os.Getuid()), uint32(os.Getgid())}); err != nil {
			return
		}
		if err = writeFile(nil, file, caPEM, 0o600, owner{uint32(os.Getuid()), uint32(os.Getgid())}); err != nil {
			return
		}
		cert, err = tls.X509KeyPair(b.Bytes(), b.Bytes())
	}
	spki, _ := x509.MarshalPKIXPublicKey(&leafKey.PublicKey)
	sum := sha256.Sum256(spki)
	return caPEM, cert, base64.RawURLEncoding.EncodeToString(sum[:]), err
}

// order is what a test asks of a bulkheadd in a process of its own.
type order struct {
	Config Config `json:"config"`
	// DieAt is the number of the step at which it kills itself, from 1; 0: none.
	DieAt int `json:"die_at"`
	// Lose makes it replace its program without its sockets.
	Lose bool `json:"lose"`
}

// fakeBulkheadd is a real Supervisor in a process that can be killed. It prints
// each step.
func fakeBulkheadd(arg string) {
	var o order
	if err := json.Unmarshal([]byte(arg), &o); err != nil {
		panic(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	s := New(o.Config)
	s.timing = fastTiming
	s.probes = nil // TestPreflight tries the host, once for all
	again := make(chan os.Signal, 1)
	signal.Notify(again, RestartSignal)
	s.Restart = again
	n := 0
	s.fault = func(step string) error {
		n++
		if step == "replace" && o.Lose {
			clear(s.sockets.addrs)
		}
		fmt.Printf("step %d: %s\n", n, step)
		if n == o.DieAt {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		return nil
	}
	if err := s.Up(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// fastTiming is as default, for roles that start at once. Back-off is not shortened
// where its growth is the thing tested.
var fastTiming = timing{
	ready: 40 * time.Second, attempts: 3, min: 20 * time.Millisecond, max: 160 * time.Millisecond,
	healthy: time.Hour, stop: 10 * time.Second, platform: 40 * time.Second,
}
