package edge_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"bulkhead/internal/await"
	"bulkhead/pki"
)

// BenchmarkAgainstNginx compares the processor time that the edge's process takes
// per request with that of Debian's nginx as a reverse proxy, in the same run: the
// same backend (nginx, about 100 bytes), keep-alive, 64 connections, TLS, load by
// h2load. Wall time says little here, since everything shares the processors; read
// the ratio. Run it with a fixed count:
//
//	go test ./edge -run '^$' -bench AgainstNginx -benchtime 20000x
func BenchmarkAgainstNginx(b *testing.B) {
	if _, err := exec.LookPath("h2load"); err != nil {
		b.Fatalf("%v; apt-get install -y nghttp2-client", err)
	}
	w := newWorldWithoutEdge(b)
	p := startProcess(b, w)
	backend := nginx(b, "")
	w.ctl.set("web", web(at(backend))...)
	proxyAddr, proxyPid := nginxProxy(b, w, backend)
	edgePid := p.cmd.Process.Pid
	for _, version := range []string{"h1", "h2"} {
		args := []string{"--h1"}
		if version == "h2" {
			args = []string{"-m", "4"}
		}
		load(b, w.secure, args, 2000) // warm up: certificates, pools, code
		load(b, proxyAddr, args, 2000)
		b.Run("tls-"+version, func(b *testing.B) {
			ours, theirs := cpu(b, edgePid), cpu(b, proxyPid)
			load(b, w.secure, args, b.N)
			ours = cpu(b, edgePid) - ours
			load(b, proxyAddr, args, b.N)
			theirs = cpu(b, proxyPid) - theirs
			b.ReportMetric(float64(ours.Microseconds())/float64(b.N), "edge-cpu-µs/req")
			b.ReportMetric(float64(theirs.Microseconds())/float64(b.N), "nginx-cpu-µs/req")
			if theirs > 0 {
				b.ReportMetric(float64(ours)/float64(theirs), "edge/nginx")
			}
		})
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", edgePid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "VmHWM") {
			b.Log("edge ", strings.TrimSpace(line))
		}
	}
}

// load asks n times over 64 connections and fails when any answer is not 200.
func load(b *testing.B, addr string, args []string, n int) {
	b.Helper()
	n = max(n, 64)
	args = append([]string{"-c", "64", "-t", "1", "-n", strconv.Itoa(n), "--connect-to", addr}, args...)
	out, err := exec.Command("h2load", append(args, "https://web."+domain+"/hello.txt")...).CombinedOutput()
	if err != nil || !strings.Contains(string(out), fmt.Sprintf("status codes: %d 2xx", n)) {
		b.Fatalf("%v\n%s", err, out)
	}
}

// cpu returns the user and system time that a process has used.
func cpu(b *testing.B, pid int) time.Duration {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	f := strings.Fields(rest)
	ticks := 0
	for _, s := range f[11:13] {
		n, err := strconv.Atoi(s)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond // USER_HZ is 100
}

// nginxProxy runs nginx as a reverse proxy with TLS before backend.
func nginxProxy(b *testing.B, w *world, backend string) (addr string, pid int) {
	b.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	csr, err := pki.NewCSR(k)
	if err != nil {
		b.Fatal(err)
	}
	chain, err := w.ca.IssueServer(csr, "web."+domain)
	if err != nil {
		b.Fatal(err)
	}
	var certs []byte
	for _, c := range chain {
		certs = append(certs, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	for name, data := range map[string][]byte{"cert": certs, "key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	l := listen(b)
	addr = l.Addr().String()
	l.Close()
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, `daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/error.log;
events { worker_connections 4096; }
http {
  access_log off; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  keepalive_requests 1000000;
  upstream app { server %[2]s; keepalive 64; keepalive_requests 1000000; }
  server { listen %[3]s ssl http2; ssl_certificate %[1]s/cert; ssl_certificate_key %[1]s/key; ssl_protocols TLSv1.2 TLSv1.3;
    location / { proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto https; } }
}`, dir, backend, addr), 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command("/usr/sbin/nginx", "-p", dir, "-c", conf)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	await.True(b, "the nginx proxy listens", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return addr, cmd.Process.Pid
}
