package world_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"bulkhead/fixture"
	"bulkhead/world"
)

// TestTokensReachNoLog sends the admin token, and tokens and cookies of apps' own users,
// through every door of a running platform that logs all it can, and looks for them in what
// its programs write, in what they answer, and below the data directory, where the audit
// log is. The login line, which hands out the first token, is the one place for it.
// bulkheadd ends with a trace of all that it does.
func TestTokensReachNoLog(t *testing.T) {
	t.Setenv("BULKHEAD_DEBUG", "1")
	w := world.Start(t)
	w.CreateApp("web", "")
	w.Run("web", world.Config{"image": w.Push("web", fixture.StaticGo(t)), "services": world.HTTPService(8080)})
	w.Eventually(10*time.Second, func() string { return answers(w, "web", "/", 200, "") })
	planted := "planted-" + strings.Repeat("S3cret", 5)
	answered := 0
	for _, host := range []string{"api", "registry", "web", "nothing"} {
		for _, auth := range []string{"Bearer " + w.Ready.Token, "Basic " + planted, "Bearer " + planted, planted} {
			for _, method := range []string{"GET", "POST", "DELETE"} {
				req, err := http.NewRequest(method, w.URL(host, "/v1/x?token="+planted), strings.NewReader("{"))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Authorization", auth)
				req.Header.Set("Cookie", "session="+planted)
				if resp, err := w.Client().Do(req); err == nil {
					b, _ := io.ReadAll(resp.Body)
					resp.Body.Close()
					answered++
					for _, s := range []string{w.Ready.Token, planted} {
						if bytes.Contains(b, []byte(s)) && host != "web" { // an app may say what it likes
							t.Errorf("%s %s answers with a token: %.200s", method, host, b)
						}
					}
				}
			}
		}
	}
	// Requests that are no HTTP, over TLS to the edge's own server, and in the clear.
	raw := func(c net.Conn, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: web.%s\r\nAuthorization: Bearer %s\r\nContent-Length: 1\r\nContent-Length: 2\r\nTransfer-Encoding: %s\r\n\r\n", w.Ready.Domain, planted, planted)
		bufio.NewReader(c).ReadString('\n')
	}
	raw(net.Dial("tcp", w.HTTPAddr))
	for _, host := range []string{"web", "api"} {
		raw(tls.Dial("tcp", w.Ready.HTTPSAddr, &tls.Config{ServerName: host + "." + w.Ready.Domain, InsecureSkipVerify: true}))
	}
	raw(net.Dial("tcp", w.Ready.HTTPSAddr))

	for _, role := range []string{"controller", "worker", "edge"} {
		req, err := http.NewRequest("GET", w.Ready.APIURL+"/metrics?role="+role, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+w.Ready.Token)
		resp, err := w.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		page, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || !bytes.Contains(page, []byte("bulkhead_")) {
			t.Errorf("no metrics of the %s: %d %.200s", role, resp.StatusCode, page)
		}
		for _, s := range []string{w.Ready.Token, planted} {
			if bytes.Contains(page, []byte(s)) {
				t.Errorf("a token is among the metrics of the %s", role)
			}
		}
	}

	crashAll(t, w)
	seen := 0
	for line := range strings.Lines(w.Log()) {
		if strings.Contains(line, `"request"`) {
			seen++
		}
		if strings.HasPrefix(strings.TrimSpace(line), "bulkhead login ") {
			continue
		}
		for _, s := range []string{w.Ready.Token, planted} {
			if strings.Contains(line, s) {
				t.Errorf("a token is in the log: %s", line)
			}
		}
	}
	if seen == 0 || answered < 36 || !strings.Contains(w.Log(), "goroutine ") {
		t.Errorf("%d requests in the log, %d answers: nothing is shown", seen, answered)
	}
	// Nor do they lie on the disk, beside the file that was asked for, which is elsewhere.
	audited := 0
	filepath.WalkDir(w.DataDir, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(p)
		if err == nil && strings.Contains(p, "audit") {
			audited++
		}
		for _, s := range []string{w.Ready.Token, planted} {
			if err == nil && bytes.Contains(b, []byte(s)) {
				t.Errorf("a token is in %s", p)
			}
		}
		return nil
	})
	if audited == 0 {
		t.Error("no file of an audit log was searched")
	}
}

// crashAll ends bulkheadd with a trace of all its goroutines in the log.
func crashAll(t *testing.T, w *world.World) {
	t.Helper()
	for _, p := range w.Processes() {
		if p.Name == "bulkheadd" {
			syscall.Kill(p.PID, syscall.SIGQUIT)
			break
		}
	}
	w.Stop()
}
