package world

import (
	"fmt"
	"net"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"bulkhead/machine"
)

// Machine is what tests read of the API's Machine.
type Machine struct {
	ID         string         `json:"id"`
	State      string         `json:"state"`
	InstanceID string         `json:"instance_id"`
	PrivateIP  string         `json:"private_ip"`
	Cordoned   bool           `json:"cordoned"`
	Config     map[string]any `json:"config"`
	Events     []struct {
		Type      string `json:"type"`
		Timestamp int64  `json:"timestamp"` // Unix milliseconds
		Status    string `json:"status"`
		Request   *struct {
			Error      string              `json:"error"`
			Reason     string              `json:"reason"`
			LimitEvent *machine.LimitEvent `json:"limit_event"`
			ExitEvent  *struct {
				ExitCode      int  `json:"exit_code"`
				Signal        int  `json:"signal"`
				OOMKilled     bool `json:"oom_killed"`
				RequestedStop bool `json:"requested_stop"`
			} `json:"exit_event"`
		} `json:"request"`
	} `json:"events"`
}

// Config is a Machine's config as tests write it.
type Config map[string]any

// HTTPService is the services part of a config for a web app on a port.
func HTTPService(port int) []any {
	return []any{map[string]any{
		"protocol": "tcp", "internal_port": port,
		"ports": []any{
			map[string]any{"port": 80, "handlers": []string{"http"}, "force_https": true},
			map[string]any{"port": 443, "handlers": []string{"tls", "http"}},
		},
	}}
}

// CreateApp makes an app, in a private network of its own unless network names one.
// On the shared platform the app is deleted when the test ends.
func (w *World) CreateApp(name, network string) {
	w.T.Helper()
	in := map[string]any{"name": name, "org_slug": "personal"}
	if network != "" {
		in["network"] = network
	}
	w.Must("POST", "/apps", in, nil)
	w.Owns(name)
}

// Push puts an image into the cluster's registry under the app's name and returns
// the reference by digest.
func (w *World) Push(app string, img v1.Image) string {
	w.T.Helper()
	ref, err := w.TryPush(app, img)
	if err != nil {
		w.T.Fatal(err)
	}
	return ref
}

// TryPush is Push for images that may be refused.
func (w *World) TryPush(app string, img v1.Image) (string, error) {
	w.T.Helper()
	_, port, _ := net.SplitHostPort(w.Ready.HTTPSAddr)
	repo := "registry." + w.Ready.Domain + ":" + port + "/" + app
	ref, err := name.ParseReference(repo + ":test")
	if err != nil {
		w.T.Fatal(err)
	}
	err = remote.Write(ref, img, remote.WithTransport(w.client.Transport), remote.WithAuth(&authn.Basic{Username: "x", Password: w.Ready.Token}))
	if err != nil {
		return "", fmt.Errorf("push to %s: %w", ref, err)
	}
	digest, err := img.Digest()
	if err != nil {
		w.T.Fatal(err)
	}
	return repo + "@" + digest.String(), nil
}

// Run makes a Machine and waits until it is started.
func (w *World) Run(app string, config Config) Machine {
	w.T.Helper()
	var m Machine
	w.Must("POST", "/apps/"+app+"/machines", map[string]any{"config": config}, &m)
	w.Wait(app, m.ID, "started", 60*time.Second)
	return w.Machine(app, m.ID)
}

// Machine reads a Machine.
func (w *World) Machine(app, id string) Machine {
	w.T.Helper()
	var m Machine
	w.Must("GET", "/apps/"+app+"/machines/"+id, nil, &m)
	return m
}

// Wait waits for a state.
func (w *World) Wait(app, id, state string, limit time.Duration) {
	w.T.Helper()
	status, body := w.APIRaw("GET", Query("/apps/"+app+"/machines/"+id+"/wait", "state", state, "timeout", fmt.Sprint(int(limit.Seconds()))), nil)
	if status != 200 {
		_, m := w.APIRaw("GET", "/apps/"+app+"/machines/"+id, nil)
		w.T.Fatalf("machine %s did not become %s: %d %s\n%s", id, state, status, body, m)
	}
}

// ExecResult is the answer of Exec.
type ExecResult struct {
	ExitCode int    `json:"exit_code"`
	Stdout   string `json:"stdout"`
	Stderr   string `json:"stderr"`
}

// Exec runs a command in a Machine.
func (w *World) Exec(app, id string, command ...string) ExecResult {
	w.T.Helper()
	var r ExecResult
	w.Must("POST", "/apps/"+app+"/machines/"+id+"/exec", map[string]any{"command": command, "timeout": 50}, &r)
	return r
}
