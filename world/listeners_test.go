package world_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"bulkhead/world"
)

// TestNothingAnswersWithoutCredentials lists every socket on which a running
// platform listens, and tries each without credentials. A socket that nobody
// planned fails the test.
func TestNothingAnswersWithoutCredentials(t *testing.T) {
	cluster := "127.0.0.1:" + freePort(t)
	w := world.Start(t, "--cluster-addr", cluster)

	t.Run("the cluster port", func(t *testing.T) {
		if err := plainTLS("tcp", cluster); err == nil {
			t.Error("it answers a caller without a certificate")
		}
	})

	t.Run("TCP and UDP", func(t *testing.T) {
		var got []string
		for _, p := range w.Processes() {
			got = append(got, listening(t, p.PID)...)
		}
		slices.Sort(got)
		got = slices.Compact(got)
		want := []string{"tcp " + w.HTTPAddr, "tcp " + w.Ready.HTTPSAddr, "tcp " + cluster}
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("the platform listens on %v, want %v and nothing else", got, want)
		}
	})

	t.Run("the public API", func(t *testing.T) {
		for _, host := range []string{"api", "registry"} {
			for _, path := range []string{"/", "/v1/apps", "/v1/platform/regions", "/healthz", "/metrics", "/v2/", "/v2/x/tags/list", "/debug/pprof/", "/nothing"} {
				for _, auth := range []string{"", "Bearer bh_wrong", "FlyV1 fm2_wrong", "Basic eDp4"} {
					req, err := http.NewRequest("GET", w.URL(host, path), nil)
					if err != nil {
						t.Fatal(err)
					}
					if auth != "" {
						req.Header.Set("Authorization", auth)
					}
					resp, err := w.Client().Do(req)
					if err != nil {
						t.Fatalf("%s%s: %v", host, path, err)
					}
					resp.Body.Close()
					if resp.StatusCode != http.StatusUnauthorized {
						t.Errorf("%s%s with %q answers %d", host, path, auth, resp.StatusCode)
					}
				}
			}
		}
	})

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

	t.Run("unix sockets", func(t *testing.T) {
		found := 0
		filepath.Walk(w.RunDir(), func(path string, fi os.FileInfo, err error) error {
			if err != nil || fi.Mode()&os.ModeSocket == 0 {
				return nil
			}
			found++
			if fi.Mode().Perm()&0o007 != 0 {
				t.Errorf("%s is open to everybody: %v", path, fi.Mode())
			}
			if err := dialAs(65534, path); err == nil {
				t.Errorf("user nobody may connect to %s", path)
			}
			name := strings.TrimSuffix(filepath.Base(path), ".sock")
			switch name {
			case "internal", "worker", "edge":
				if err := plainTLS("unix", path); err == nil {
					t.Errorf("%s answers a caller without a certificate", path)
				}
			}
			return nil
		})
		if found < 6 {
			t.Errorf("only %d sockets were found in %s", found, w.RunDir())
		}
	})
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

// listening lists what a process listens on, over TCP, UDP and abstract sockets,
// in its own network namespace.
func listening(t *testing.T, pid int) (out []string) {
	inodes := map[string]bool{}
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err == nil && strings.HasPrefix(link, "socket:[") {
			inodes[strings.Trim(link[7:], "[]")] = true
		}
	}
	// A socket belongs to the namespace it was made in: the host's table shows those
	// that the edge inherited.
	for _, table := range []string{fmt.Sprintf("/proc/%d/net/", pid), "/proc/self/net/"} {
		for _, proto := range []string{"tcp", "tcp6", "udp", "udp6"} {
			b, err := os.ReadFile(table + proto)
			if err != nil {
				continue
			}
			for line := range strings.Lines(string(b)) {
				f := strings.Fields(line)
				if len(f) < 10 || !inodes[f[9]] || (proto[:3] == "tcp" && f[3] != "0A") {
					continue
				}
				out = append(out, proto[:3]+" "+hexAddr(f[1]))
			}
		}
		b, _ := os.ReadFile(table + "unix")
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) == 8 && inodes[f[6]] && strings.HasPrefix(f[7], "@") && f[3] == "00010000" {
				out = append(out, "abstract "+f[7])
			}
		}
	}
	return out
}

// hexAddr reads the kernel's form of an address.
func hexAddr(s string) string {
	host, p, _ := strings.Cut(s, ":")
	n, _ := strconv.ParseUint(p, 16, 16)
	var ip net.IP
	for i := 0; i+8 <= len(host); i += 8 {
		for j := 6; j >= 0; j -= 2 {
			b, _ := strconv.ParseUint(host[i+j:i+j+2], 16, 8)
			ip = append(ip, byte(b))
		}
	}
	return net.JoinHostPort(ip.String(), strconv.Itoa(int(n)))
}

// dialAs connects to a unix socket as another user.
func dialAs(uid int, path string) error {
	done := make(chan error, 1)
	go func() {
		// The thread keeps the user and ends with the goroutine, which never unlocks it.
		runtime.LockOSThread()
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
			done <- nil
			return
		}
		fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
		if err != nil {
			done <- nil
			return
		}
		defer syscall.Close(fd)
		done <- syscall.Connect(fd, &syscall.SockaddrUnix{Name: path})
	}()
	return <-done
}

// plainTLS asks a socket for HTTP over TLS without showing a certificate.
func plainTLS(network, addr string) error {
	c, err := net.Dial(network, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	conn := tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err := conn.Handshake(); err != nil {
		return err
	}
	// In TLS 1.3 the refusal of a client certificate arrives with the first read.
	_, err = conn.Read(make([]byte, 1))
	if err == nil {
		// The server's HTTP/2 settings frame: it took us for a caller.
		return nil
	}
	return err
}
