package cli

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"bulkhead/client"
)

// offline are the commands that ask no server, and why.
var offline = map[string]string{
	"clusters list": "reads the configuration", "clusters use": "changes the configuration",
	"logout": "changes the configuration", "completion": "prints a script", "version": "prints a version",
	"open":             "asks in TestScripts, and then opens a browser",
	"tokens attenuate": "computes", "tokens debug": "computes", "tokens discharge": "asks only for a token that needs it",
	"audit proof": "asks in the order of audit verify", "audit verify": "reads its state first; --state",
}

// silenceArgs are arguments that make a command ask the server.
var silenceArgs = map[string]string{
	"login": "URL --pin PIN --token x", "auth login": "--no-browser", "auth passkey remove": "x",
	"auth sessions end": "x", "apps create": "x", "apps destroy": "x", "deploy": "--image x:1",
	"machine run": "x:1", "machine start": "3d8d413b4d6e89", "machine stop": "3d8d413b4d6e89",
	"machine restart": "3d8d413b4d6e89", "machine destroy": "3d8d413b4d6e89", "machine exec": "-- ls",
	"env set": "A=b", "env unset": "A", "secrets set": "A=b", "secrets import": "", "secrets unset": "A",
	"tokens create": "deploy", "tokens revoke": "t_5a025d4c15507205", "orgs create": "x",
	"orgs delete": "x", "orgs members": "x", "orgs invite": "x viewer", "orgs invitations": "x",
	"orgs uninvite": "x y", "orgs join": "x", "orgs role": "x y viewer", "orgs remove": "x y",
	"orgs domains grant": "x y", "orgs domains withdraw": "x", "orgs sso show": "x",
	"orgs sso set": "x --issuer https://x.example --client-id y", "orgs sso unset": "x",
	"users operator": "x", "users remove": "x", "node remove": "x", "node readmit": "x",
	"issuer rotate": "",
}

// TestNoCommandIsSilent runs every command against a server that answers only when the
// terminal has shown that the command waits for it.
func TestNoCommandIsSilent(t *testing.T) {
	s := &session{ui: &ui{}, env: Env{Getenv: func(string) string { return "" }}}
	var names []string
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			walk(sub)
		}
		name := strings.TrimPrefix(c.CommandPath(), "bulkhead ")
		if c.HasSubCommands() || c.Name() == "help" || offline[name] != "" {
			return
		}
		names = append(names, name)
	}
	walk(s.rootCommand())
	if len(names) < 40 {
		t.Errorf("only %d commands are tried", len(names))
	}
	// All at once: each waits for about a second.
	var wg sync.WaitGroup
	for _, name := range names {
		wg.Go(func() { waits(t, name) })
	}
	wg.Wait()
}

// waits runs a command and wants to see that it waits.
func waits(t *testing.T, name string) {
	screen := &screen{shown: make(chan struct{})}
	served := false
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served = true
		select {
		case <-screen.shown:
		case <-time.After(20 * time.Second):
			t.Errorf("the terminal showed nothing while %s %s was waited for: %q", r.Method, r.URL.Path, screen.text())
		}
		w.WriteHeader(http.StatusInternalServerError)
		io.WriteString(w, `{"error":"enough"}`)
	}))
	defer srv.Close()
	_, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	url, pin := "https://api.x.localhost:"+port, client.PinOf(srv.Certificate())
	env := map[string]string{"BULKHEAD_URL": url, "BULKHEAD_PIN": pin, "BULKHEAD_TOKEN": "t"}
	args := append(strings.Fields(name), "--app", "x", "--config", filepath.Join(t.TempDir(), "c.json"))
	args = append(args, strings.Fields(strings.NewReplacer("URL", url, "PIN", pin).Replace(silenceArgs[name]))...)
	if strings.HasPrefix(name, "apps destroy") {
		args = append(args, "--yes")
	}
	Run(t.Context(), Env{
		Args: args, Stdin: strings.NewReader("A=b\n"), Stdout: io.Discard, Stderr: screen, StderrTTY: true,
		Getenv: func(k string) string { return env[k] },
	})
	if !served {
		t.Errorf("%q asked no server: %s", args, screen.text())
	}
}

// screen is a terminal that says when a wait is shown.
type screen struct {
	mu    sync.Mutex
	b     bytes.Buffer
	once  sync.Once
	shown chan struct{}
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if bytes.Contains(p, []byte("… waiting for ")) {
		s.once.Do(func() { close(s.shown) })
	}
	return s.b.Write(p)
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
