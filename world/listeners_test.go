package world_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/doctor"
	"bulkhead/fixture"
	"bulkhead/world"
)

// TestNothingAnswersWithoutCredentials has the doctor list every socket on which a
// running platform listens, and try each without credentials. A socket that nobody
// planned fails it.
func TestNothingAnswersWithoutCredentials(t *testing.T) {
	cluster := "127.0.0.1:" + freePort(t)
	w := world.Start(t, "--cluster-addr", cluster)
	w.CreateApp("a", "red")
	w.Run("a", world.Config{"image": w.Push("a", fixture.StaticGo(t)), "services": world.HTTPService(8080)})

	report := examine(t, w, 0)
	var tcp []string
	known, attempts := map[string]int{}, 0
	for _, l := range report.Listeners {
		known[l.Expected]++
		attempts += len(l.Trials)
		if l.Expected == "" {
			t.Errorf("nobody planned %s %s (%s), held by %v", l.Network, l.Addr, l.Namespace, l.Processes)
		}
		for _, trial := range l.Trials {
			if !trial.Refused {
				t.Errorf("%s %s: %s is not refused: %s", l.Network, l.Addr, trial.What, trial.Got)
			}
		}
		if l.Network == "tcp" || l.Network == "udp" {
			tcp = append(tcp, l.Network+" "+l.Addr)
		}
	}
	want := []string{"tcp " + w.HTTPAddr, "tcp " + w.Ready.HTTPSAddr, "tcp " + cluster}
	slices.Sort(want)
	slices.Sort(tcp)
	if !slices.Equal(tcp, want) {
		t.Errorf("the platform listens on %v, want %v and nothing else", tcp, want)
	}
	// Nothing was overlooked: seven sockets of the roles, two of etcd, two of a sandbox, and its card.
	if len(known) < 13 || known["control socket of a sandbox"] != 2 || known["etcd"] != 2 || attempts < 60 {
		t.Errorf("%d attempts at %v", attempts, known)
	}
	// What the controller knows is asked: a fresh installation, whose token was used.
	for check, level := range map[string]doctor.Level{"installation": doctor.OK, "root key": doctor.Warn, "single sign-on": doctor.OK, "token limits": doctor.Warn, "audit log": doctor.Warn} {
		if !slices.ContainsFunc(report.Findings, func(f doctor.Finding) bool { return f.Check == check && f.Level == level }) {
			t.Errorf("%s is not found to be %s: %+v", check, level, report.Findings)
		}
	}
	t.Logf("%d attempts at %d sockets", attempts, len(report.Listeners))

	t.Run("TestDoctorSeesAnOpenedPlatform", func(t *testing.T) { openedPlatform(t, w) })

	t.Run("the API under another name", func(t *testing.T) {
		req, err := http.NewRequest("GET", w.URL("api", "/v1/apps"), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "somebody.example"
		resp, err := w.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("it answers %d", resp.StatusCode)
		}
	})

	t.Run("TestPlainPortOffersNoCertificate", func(t *testing.T) {
		plain := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		for _, host := range []string{w.HTTPAddr, "api." + w.Ready.Domain, "registry." + w.Ready.Domain, w.Ready.Domain, "ca." + w.Ready.Domain} {
			for _, path := range []string{"/", "/ca-cert", "/ca.pem", "/ca.crt", "/v1/ca"} {
				req, err := http.NewRequest("GET", "http://"+w.HTTPAddr+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Host = host
				resp, err := plain.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
				resp.Body.Close()
				if resp.StatusCode < 300 || bytes.Contains(body, []byte("CERTIFICATE")) || strings.Contains(resp.Header.Get("Content-Type"), "x509") {
					t.Errorf("http://%s%s answers %d with %.100q", host, path, resp.StatusCode, body)
				}
			}
		}
	})

	t.Run("the edge without an app", func(t *testing.T) {
		for _, sni := range []string{"nothing." + w.Ready.Domain, "", "example.com"} {
			c, err := tls.Dial("tcp", w.Ready.HTTPSAddr, &tls.Config{ServerName: sni, InsecureSkipVerify: true})
			if err == nil {
				c.Close()
				t.Errorf("a TLS handshake for %q succeeded", sni)
			}
		}
	})

}

// examine runs the doctor on a platform and wants an exit code.
func examine(t *testing.T, w *world.World, code int) doctor.Report {
	t.Helper()
	cmd := exec.Command(filepath.Join(w.Bin, "bulkheadd"), "doctor", "--json", "--data-dir", w.DataDir)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("bulkheadd doctor ends with %d, want %d: %v %s", got, code, err, complaints.String())
	}
	var r doctor.Report
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v: %.500s", err, out)
	}
	for _, f := range r.Findings {
		if code == 0 && f.Level == doctor.Fail {
			t.Errorf("%s: %s", f.Check, f.Found)
		}
	}
	return r
}

// openedPlatform is the control: what is opened on a running platform is seen.
func openedPlatform(t *testing.T, w *world.World) {
	key := filepath.Join(w.DataDir, "controller", "api.key")
	var ports []string
	seeds := []struct {
		what string
		open func() (undo func(), err error)
		part string
	}{
		{"a key that others may read", func() (func(), error) {
			return func() { os.Chmod(key, 0o600) }, os.Chmod(key, 0o644)
		}, key + " (mode 0644)"},
		{"a socket of the platform that others may write to", func() (func(), error) {
			s := filepath.Join(w.RunDir(), "worker.sock")
			return func() { os.Chmod(s, 0o660) }, os.Chmod(s, 0o666)
		}, "(calls to the worker) does not refuse connecting as user nobody"},
		{"somebody else's socket in the runtime directory", func() (func(), error) {
			l, err := net.Listen("unix", filepath.Join(w.RunDir(), "stranger.sock"))
			return func() { l.Close() }, err
		}, "stranger.sock is answered by a process that is not the platform's"},
		{"a port opened by a program that was slipped in", func() (func(), error) {
			cmd, addr, err := implant(t, w)
			if err != nil {
				return nil, err
			}
			ports = append(ports, addr)
			return func() { cmd.Process.Kill(); cmd.Wait() }, nil
		}, "held by bulkhead-implant"},
		{"a one-time token that nobody has used", func() (func(), error) {
			return func() {}, exec.Command(filepath.Join(w.Bin, "bulkheadd"), "token", "--data-dir", w.DataDir).Run()
		}, "the one-time token of an operator, made"},
	}
	var undo []func()
	defer func() {
		for _, u := range undo {
			u()
		}
	}()
	for _, s := range seeds {
		u, err := s.open()
		if err != nil {
			t.Fatalf("%s: %v", s.what, err)
		}
		undo = append(undo, u)
	}
	report := examine(t, w, 1)
	for _, s := range seeds {
		if !slices.ContainsFunc(report.Findings, func(f doctor.Finding) bool {
			return f.Level != doctor.OK && strings.Contains(f.Found, s.part) && f.Remedy != ""
		}) {
			t.Errorf("%s is not found", s.what)
		}
	}
	for _, l := range report.Listeners {
		if slices.Contains(ports, l.Addr) && (l.Expected != "" || len(l.Trials) < 2 || l.Trials[1].Refused) {
			t.Errorf("the planted port: %+v", l)
		}
	}
}

// implant starts a program that serves HTTP and looks like one of the platform's.
func implant(t *testing.T, w *world.World) (*exec.Cmd, string, error) {
	b, err := os.ReadFile("/usr/bin/python3")
	if err != nil {
		return nil, "", err
	}
	bin := filepath.Join(t.TempDir(), "bulkhead-implant")
	if err := os.WriteFile(bin, b, 0o755); err != nil {
		return nil, "", err
	}
	addr := "127.0.0.1:" + freePort(t)
	cmd := exec.Command(bin, "-m", "http.server", "--bind", "127.0.0.1", "--directory", w.RunDir()+"/netns", port(addr))
	cmd.Env = []string{"PYTHONHOME=/usr"}
	if err := cmd.Start(); err != nil {
		return nil, "", err
	}
	w.Eventually(30*time.Second, func() string {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return "the planted program does not listen: " + err.Error()
		}
		c.Close()
		return ""
	})
	return cmd, addr, nil
}

// freePort returns a loopback port that was free a moment ago.
func freePort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return port(l.Addr().String())
}
