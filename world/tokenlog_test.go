package world_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead/fixture"
	"bulkhead/world"
)

// TestTokensReachNoLog sends the admin token, and tokens of apps' own users, through
// every door of a running platform that logs all it can, and looks for them in what
// its programs write. The login line, which hands out the first token, is the one
// place for it.
func TestTokensReachNoLog(t *testing.T) {
	t.Setenv("BULKHEAD_DEBUG", "1")
	w := world.Start(t)
	w.CreateApp("web", "")
	w.Run("web", world.Config{"image": w.Push("web", fixture.StaticGo(t)), "services": world.HTTPService(8080)})
	w.Eventually(10*time.Second, func() string { return answers(w, "web", "/", 200, "") })
	planted := "planted-" + strings.Repeat("S3cret", 5)
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
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
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

	w.Stop()
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
	if seen == 0 {
		t.Error("the log tells of no request: nothing is shown")
	}
	// Nor does the admin token lie on the disk, beside the file that was asked for, which is elsewhere.
	filepath.WalkDir(w.DataDir, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), w.Ready.Token) {
			t.Errorf("the admin token is in %s", p)
		}
		return nil
	})
}
