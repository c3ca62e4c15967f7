package controller_test

import (
	"bytes"
	"encoding/base64"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestTokensReachNoLog plants tokens, good and bad, in every way in, and looks for
// them in the log at its most talkative, and on the disk.
func TestTokensReachNoLog(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	e.push("web:v1")
	m := e.launch("web", web())
	bad := "bh_" + strings.Repeat("Planted", 6) + "X"
	secrets := []string{e.token, bad}
	client := &http.Client{Transport: e.transport()}
	for _, host := range []string{"api", "registry"} {
		for _, method := range []string{"GET", "POST", "DELETE", "BREW"} {
			for _, path := range []string{"/v1/apps", "/v1/apps/nope", "/v1/apps/web/machines/" + m.ID + "/metadata/k", "/v2/", "/v2/web/manifests/none", "/v2/web/blobs/uploads/", "/v2/nope/manifests/v1", "/metrics", "/\x7f", "/v1/apps/" + bad, "/v1/apps/web/machines/" + bad + "/start", "/v1/tokens/" + bad + "?" + bad, "/v2/" + strings.ToLower(bad) + "/manifests/" + bad} {
				for _, auth := range []string{
					"Bearer " + e.token, "FlyV1 " + e.token + ",fm2_" + e.token, "Bearer " + bad, "FlyV1 " + bad, bad,
					"Digest " + e.token, "Basic " + base64.StdEncoding.EncodeToString([]byte("x:"+e.token)),
					"Basic " + base64.StdEncoding.EncodeToString([]byte("x:"+bad)), "Basic " + bad,
				} {
					if method == "DELETE" && strings.HasSuffix(path, "/v1/apps") {
						continue
					}
					req, err := http.NewRequest(method, "https://"+host+"."+domain, strings.NewReader("{"))
					if err != nil {
						t.Fatal(err)
					}
					req.URL.Path, req.URL.RawQuery = path, "token="+bad
					req.Header.Set("Authorization", auth)
					req.Header.Set("Cookie", "token="+e.token)
					req.Header.Set("fly-machine-lease-nonce", bad)
					req.Header.Set("User-Agent", "tool/"+bad)
					req.Header.Set("Referer", "https://x/?token="+bad)
					if host == "registry" && strings.HasPrefix(auth, "Basic ") {
						secrets = append(secrets, strings.TrimPrefix(auth, "Basic "))
					}
					resp, err := client.Do(req)
					if err != nil {
						t.Fatal(err)
					}
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			}
		}
	}
	secrets = append(secrets, e.mint("")) // a new one, over the admin socket
	e.admin("POST", "/token?if_none=1")
	slices.Sort(secrets)
	secrets = slices.Compact(secrets) // every request has added its own again
	e.stop()
	log := e.logs.String()
	if strings.Count(log, `"registry request"`) < 100 || strings.Count(log, `"request"`) < 100 {
		t.Fatal("the log does not tell of the requests: nothing is shown")
	}
	for _, s := range secrets {
		if i := strings.Index(log, s); i >= 0 {
			t.Errorf("a token is in the log: …%s", log[max(0, i-200):i+len(s)])
		}
	}
	err := filepath.WalkDir(e.cfg.Role.DataDir, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		for _, s := range secrets {
			if bytes.Contains(b, []byte(s)) {
				t.Errorf("a token is in %s", p)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
