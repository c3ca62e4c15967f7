package world_test

import (
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"bulkhead/fixture"
	"bulkhead/world"
)

// TestPlatform runs software that nobody here wrote, unmodified, on one platform.
func TestPlatform(t *testing.T) {
	t.Parallel()
	shared := world.Shared(t)

	t.Run("StaticGoServer", func(t *testing.T) {
		w := shared.In(t)
		w.CreateApp("hello", "")
		m := w.Run("hello", world.Config{"image": w.Push("hello", fixture.StaticGo(t)), "services": world.HTTPService(8080)})
		w.Eventually(5*time.Second, func() string { return answers(w, "hello", "/", 200, "") })
		if m.PrivateIP == "" || m.InstanceID == "" {
			t.Errorf("the machine has no address or no instance: %+v", m)
		}
		curl(t, w, "--http1.1", "hello")
		curl(t, w, "--http2", "hello")

		resp, err := w.Client().Get("http://hello." + w.Ready.Domain + ":" + port(w.HTTPAddr) + "/x?y=1")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusMovedPermanently || resp.Header.Get("Location") != w.URL("hello", "/x?y=1") {
			t.Errorf("force_https gave %d to %q", resp.StatusCode, resp.Header.Get("Location"))
		}
	})

	t.Run("EveryWayToListen", func(t *testing.T) {
		w := shared.In(t)
		for app, listen := range map[string]string{"listens4": "tcp4,0.0.0.0:8080", "listens6": "tcp6,[::]:8080", "listens": "tcp,[::]:8080"} {
			w.CreateApp(app, "")
			config := sleepy(w.Push(app, fixture.StaticGo(t)), 0)
			config["env"] = map[string]string{"LISTEN": listen}
			m := w.Run(app, config)
			w.Eventually(10*time.Second, func() string { return answers(w, app, "/", 200, "") })
			stopped(w, app, m.ID)
			w.Eventually(20*time.Second, func() string { return answers(w, app, "/", 200, "") }) // woken
		}
		w.CreateApp("loopback", "")
		w.Run("loopback", world.Config{"image": w.Push("loopback", fixture.StaticGo(t)), "services": world.HTTPService(8080), "env": map[string]string{"LISTEN": "tcp,127.0.0.1:8080"}})
		w.Eventually(20*time.Second, func() string { return answers(w, "loopback", "/", 502, "PC01") })
	})

	t.Run("NginxServesFiles", func(t *testing.T) {
		w := shared.In(t)
		w.CreateApp("files", "")
		w.Run("files", world.Config{"image": w.Push("files", fixture.Nginx(t, "")), "services": world.HTTPService(8080)})
		w.Eventually(10*time.Second, func() string { return answers(w, "files", "/", 200, "nginx") })
		resp, err := w.Client().Get(w.URL("files", "/"))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		io.Copy(io.Discard, resp.Body)
		if resp.ProtoMajor != 2 {
			t.Errorf("the client spoke HTTP/%d with the edge", resp.ProtoMajor)
		}
	})

	shared.CreateApp("db", "backend") // of two subtests
	t.Run("PostgresAndRedisOverThePrivateNetwork", func(t *testing.T) {
		w := shared.In(t)
		w.CreateApp("cache", "backend")
		w.CreateApp("stranger", "elsewhere")
		big := map[string]any{"cpu_kind": "shared", "cpus": 1, "memory_mb": 512}
		pg := w.Run("db", world.Config{"image": w.Push("db", fixture.Postgres(t)), "guest": big})
		redis := w.Run("cache", world.Config{"image": w.Push("cache", fixture.Redis(t, "")), "guest": big})
		other := w.Run("stranger", world.Config{"image": w.Push("stranger", fixture.Redis(t, "")), "guest": big})

		// redis-cli in the cache's own image speaks to the server of another Machine of the
		// network, psql in the database's image to its own address.
		w.Eventually(30*time.Second, func() string {
			return wants(w.Exec("db", pg.ID, psql(pg, "select 6*7")...), "42")
		})
		client := w.Run("cache", world.Config{"image": w.Push("cache", fixture.Redis(t, "")), "guest": big})
		w.Eventually(30*time.Second, func() string {
			return wants(w.Exec("cache", client.ID, "redis-cli", "-h", redis.PrivateIP, "set", "k", "v1"), "OK")
		})
		if why := wants(w.Exec("cache", client.ID, "redis-cli", "-h", redis.PrivateIP, "get", "k"), "v1"); why != "" {
			t.Error(why)
		}
		pgclient := w.Run("db", world.Config{"image": w.Push("db", fixture.Postgres(t)), "guest": big})
		if why := wants(w.Exec("db", pgclient.ID, psql(pg, "create table t(a int); insert into t values (1),(2); select sum(a) from t")...), "3"); why != "" {
			t.Error(why)
		}
		// The same client from another network does not get through.
		status, body := w.APIRaw("POST", "/apps/stranger/machines/"+other.ID+"/exec", map[string]any{
			"command": []string{"redis-cli", "-h", redis.PrivateIP, "get", "k"}, "timeout": 4})
		if strings.Contains(string(body), "v1") || status == 200 && decode[world.ExecResult](t, body).ExitCode == 0 {
			t.Errorf("another network's Machine read the key: %d %s", status, body)
		}
	})

	t.Run("LogsReachTheUser", func(t *testing.T) {
		w := shared.In(t)
		out := w.MustCLI("logs", "--app", "db", "-n", "1000")
		if !strings.Contains(out, "database system is ready to accept connections") {
			t.Errorf("no word of PostgreSQL in its app's logs:\n%s", out)
		}
	})

	t.Run("MetricsOfEveryRole", func(t *testing.T) {
		w := shared.In(t)
		req, _ := http.NewRequest("GET", w.Ready.APIURL+"/metrics", nil)
		resp, err := w.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("metrics without a token: %d", resp.StatusCode)
		}
		req.Header.Set("Authorization", "Bearer "+w.Ready.Token)
		resp, err = w.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		for _, role := range []string{"controller", "worker", "warden", "edge"} {
			if !strings.Contains(string(b), `role="`+role+`"`) {
				t.Errorf("no metric of role %s", role)
			}
		}
	})
}

// psql is the command that asks a Machine's database over the private network. The
// program's folder names its version.
func psql(m world.Machine, query string) []string {
	return []string{"/bin/sh", "-c", `exec /usr/lib/postgresql/*/bin/psql "$0" -qAtc "$1"`,
		"host=" + m.PrivateIP + " user=postgres password=" + fixture.PostgresPassword, query}
}

// answers asks an app and says what is wrong with its answer, or "".
func answers(w *world.World, app, path string, status int, part string) string {
	got, body, err := w.Get(app, path)
	switch {
	case err != nil:
		return err.Error()
	case got != status:
		return fmt.Sprintf("status %d: %s", got, body)
	case !strings.Contains(body, part):
		return fmt.Sprintf("%q is not in the answer %q", part, body)
	}
	return ""
}

// wants says what is wrong with a command's result, or "".
func wants(r world.ExecResult, part string) string {
	if r.ExitCode != 0 || !strings.Contains(r.Stdout, part) {
		return fmt.Sprintf("exit code %d, stdout %q, stderr %q; want %q", r.ExitCode, r.Stdout, r.Stderr, part)
	}
	return ""
}

// curl asks an app with Debian's curl, which trusts the cluster's root and nothing else.
func curl(t *testing.T, w *world.World, version, app string) {
	t.Helper()
	host := app + "." + w.Ready.Domain
	p := port(w.Ready.HTTPSAddr)
	out, err := exec.Command("curl", "-sS", "--fail", "--max-time", "10", version, "--cacert", w.Ready.CAFile,
		"--resolve", host+":"+p+":127.0.0.1", "-w", " %{http_version}", w.URL(app, "/")).CombinedOutput()
	if err != nil {
		t.Errorf("curl %s: %v\n%s", version, err, out)
	}
	if want := strings.TrimPrefix(version, "--http"); !strings.HasSuffix(string(out), " "+want) {
		t.Errorf("curl %s spoke another version: %s", version, out)
	}
}

func port(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }
