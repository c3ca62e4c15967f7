package world_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"bulkhead/world"
)

// trial is one operation under way, on an app of its own.
type trial struct {
	*dying
	app     string
	id      string // of its Machine
	version int    // of its Machine's config, acknowledged last: the variable V
	process int    // of its sandbox, before the operation
	img     v1.Image
}

// call makes one call of the API. The error says that the outcome is unknown.
func (d *dying) call(method, path string, in, out any) (int, []byte, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return 0, nil, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, d.w.Ready.APIURL+"/v1"+path, body)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+d.w.Ready.Token)
	resp, err := d.w.Client().Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 500 {
		err = fmt.Errorf("status %d: %s", resp.StatusCode, b)
	}
	if err == nil && out != nil && resp.StatusCode < 300 {
		err = json.Unmarshal(b, out)
	}
	return resp.StatusCode, b, err
}

// do repeats a call until its outcome is known; it must succeed, or be refused with
// one of the statuses that say that an earlier try had succeeded.
func (d *dying) do(method, path string, in any, done ...int) error {
	var status int
	var body []byte
	var err error
	known := within(patience, func() bool {
		status, body, err = d.call(method, path, in, nil)
		return err == nil
	})
	if !known {
		return fmt.Errorf("%s %s: unknown for %v: %w", method, path, patience, err)
	}
	if status < 300 {
		return nil
	}
	for _, s := range done {
		if s == status {
			return nil
		}
	}
	return fmt.Errorf("%s %s: %d %s", method, path, status, body)
}

// machines lists an app's Machines.
func (d *dying) machines(app string) (all []world.Machine) {
	within(patience, func() bool {
		all = nil
		_, _, err := d.call("GET", "/apps/"+app+"/machines", nil, &all)
		return err == nil
	})
	return all
}

// newApp makes the trial's app.
func (t *trial) newApp() error {
	return t.do("POST", "/apps", map[string]any{"name": t.app, "org_slug": "personal"}, 422)
}

// config is the Machine's with the trial's version.
func (t *trial) config() world.Config {
	return world.Config{
		"image": t.image, "services": world.HTTPService(8080), "env": map[string]string{"V": fmt.Sprint(t.version)},
		"restart": map[string]any{"policy": "always"},
	}
}

// create makes a Machine. Its name tells a client that repeats whether it had
// succeeded.
func (t *trial) create(config world.Config, more ...any) error {
	in := map[string]any{"name": "m", "config": config}
	for i := 0; i+1 < len(more); i += 2 {
		in[more[i].(string)] = more[i+1]
	}
	if err := t.do("POST", "/apps/"+t.app+"/machines", in, 409); err != nil {
		return err
	}
	all := t.machines(t.app)
	if len(all) != 1 {
		return fmt.Errorf("%d machines were made of one", len(all))
	}
	t.id = all[0].ID
	return nil
}

// at is the path of the Machine.
func (t *trial) at(suffix string) string { return "/apps/" + t.app + "/machines/" + t.id + suffix }

// running makes an app with a Machine that runs.
func (t *trial) running() error { return t.runningAs(t.config()) }

func (t *trial) runningAs(config world.Config) error {
	if err := errors.Join(t.newApp(), t.create(config)); err != nil {
		return err
	}
	if err := t.until(func() string { return t.answers() }); err != nil {
		return err
	}
	t.process = t.sandbox()
	return nil
}

// stopped makes an app with a Machine that was stopped.
func (t *trial) stopped() error {
	if err := errors.Join(t.newApp(), t.create(t.config(), "skip_launch", true), t.do("POST", t.at("/start"), nil)); err != nil {
		return err
	}
	if err := t.until(func() string { return t.is("started") }); err != nil {
		return err
	}
	return errors.Join(t.do("POST", t.at("/stop"), nil), t.until(func() string { return t.is("stopped") }))
}

// is says how the Machine differs from what it should be, or "".
func (t *trial) is(states ...string) string {
	var m world.Machine
	status, body, err := t.call("GET", t.at(""), nil, &m)
	if err != nil || status != 200 {
		return fmt.Sprintf("the machine cannot be read: %d %s %v", status, body, err)
	}
	if env, _ := m.Config["env"].(map[string]any); env["V"] != fmt.Sprint(t.version) {
		return fmt.Sprintf("version %d was acknowledged, the config says %v", t.version, env["V"])
	}
	for _, s := range states {
		if m.State == s {
			return ""
		}
	}
	return fmt.Sprintf("the machine is %s and should be %s: %s", m.State, states[0], body)
}

// answers is is("started") for a Machine that serves, asked through the edge.
func (t *trial) answers() string {
	if why := t.is("started"); why != "" {
		return why
	}
	return answers(t.w, t.app, "/env", 200, fmt.Sprintf(`"V":"%d"`, t.version))
}

// sandbox returns the process of the Machine's sandbox, or 0.
func (t *trial) sandbox() int {
	first := 0
	for _, p := range t.w.Processes() {
		if machineOf(p) == t.id && p.Name == "runsc-sandbox" && (first == 0 || p.PID < first) {
			first = p.PID
		}
	}
	return first
}

// machineOf names the Machine that a shim or a sandbox is of.
func machineOf(p world.Process) string {
	if p.Name != "bulkhead-shim" && p.Name != "runsc-sandbox" {
		return ""
	}
	for _, a := range p.Args {
		if len(a) == 14 && strings.Trim(a, "0123456789abcdef") == "" {
			return a
		}
	}
	return ""
}

// until waits for f to find nothing wrong.
func (t *trial) until(f func() string) error {
	var why string
	if !within(patience, func() bool { why = f(); return why == "" }) {
		return fmt.Errorf("not within %v: %s", patience, why)
	}
	return nil
}

// settles waits until the operation's end is reached.
func (t *trial) settles(op operation) error { return t.until(func() string { return op.settled(t) }) }

// watch looks again and again how many sandboxes each Machine has. The function that
// it returns ends that and says whether there were ever two.
func (t *trial) watch() func() error {
	end, out := make(chan struct{}), make(chan error, 1)
	go func() {
		var err error
		for {
			if err == nil {
				err = twice(t.w.Processes())
			}
			select {
			case <-end:
				out <- err
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	return sync.OnceValue(func() error { close(end); return <-out })
}

// twice finds a Machine that runs twice: with two sandboxes or two shims, of which
// neither is the other's child. (A sandbox has children of its name: those in which
// the Machine's programs run.)
func twice(all []world.Process) error {
	kind := map[int]string{}
	for _, p := range all {
		if m := machineOf(p); m != "" {
			kind[p.PID] = p.Name + " of machine " + m
		}
	}
	first := map[string]int{}
	for _, p := range all {
		k := kind[p.PID]
		if k == "" || kind[p.PPID] == k {
			continue
		}
		if other := first[k]; other != 0 {
			return fmt.Errorf("twice at a time: %s, processes %d and %d", k, other, p.PID)
		}
		first[k] = p.PID
	}
	return nil
}

// push pushes the trial's image until that is acknowledged.
func (t *trial) push() error {
	return t.registry(func(ref name.Reference, o ...remote.Option) error { return remote.Write(ref, t.img, o...) })
}

// pulled says how the registry's answer differs from the image pushed.
func (t *trial) pulled() string {
	want, err := t.img.Digest()
	if err != nil {
		return err.Error()
	}
	why := ""
	err = t.registryOnce(func(ref name.Reference, o ...remote.Option) error {
		got, err := remote.Image(ref, o...)
		if err != nil {
			return err
		}
		if d, err := got.Digest(); err != nil || d != want {
			why = fmt.Sprintf("the tag means %v (%v), pushed and acknowledged was %v", d, err, want)
			return nil
		}
		layers, err := got.Layers()
		if err != nil {
			return err
		}
		for _, l := range layers {
			r, err := l.Compressed()
			if err == nil {
				_, err = io.Copy(io.Discard, r)
				r.Close()
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err.Error()
	}
	return why
}

// registry repeats a call of the registry until it succeeds.
func (t *trial) registry(f func(name.Reference, ...remote.Option) error) error {
	var err error
	if !within(patience, func() bool { err = t.registryOnce(f); return err == nil }) {
		return fmt.Errorf("the registry, for %v: %w", patience, err)
	}
	return nil
}

func (t *trial) registryOnce(f func(name.Reference, ...remote.Option) error) error {
	ref, err := name.ParseReference("registry." + t.w.Ready.Domain + ":" + port(t.w.Ready.HTTPSAddr) + "/" + t.app + ":test")
	if err != nil {
		return err
	}
	return f(ref, remote.WithTransport(t.w.Client().Transport), remote.WithAuth(&authn.Basic{Username: "x", Password: t.w.Ready.Token}),
		remote.WithRetryBackoff(remote.Backoff{Duration: 20 * time.Millisecond, Factor: 1, Steps: 1}))
}

// cleanUp destroys everything and says what is left.
func (t *trial) cleanUp() error {
	if err := t.do("DELETE", "/apps/"+t.app, nil, 404); err != nil {
		return fmt.Errorf("deleting the app: %w", err)
	}
	gone := func() string {
		if status, body, err := t.call("GET", "/apps/"+t.app, nil, nil); status != 404 {
			return fmt.Sprintf("the app is not gone: %d %s %v", status, body, err)
		}
		return ""
	}
	if err := t.until(gone); err != nil {
		return err
	}
	t.w.Client().CloseIdleConnections() // one to each app so far
	if why := t.w.ReturnsTo(t.before, t.limit); why != "" {
		return errors.New(why)
	}
	return nil
}
