package fakeplatform

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"bulkhead/api/execstream"
	"bulkhead/machine"
)

// api returns the routes. All handlers run with p.mu held but those that wait.
func (p *Platform) api() http.Handler {
	mux := http.NewServeMux()
	locked := func(h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			p.mu.Lock()
			defer p.mu.Unlock()
			h(w, r)
		}
	}
	mux.HandleFunc("GET /v1/platform/regions", locked(p.regions))
	mux.HandleFunc("GET /v1/user", func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, map[string]any{"name": "alice"}) })
	mux.HandleFunc("GET /v1/apps", locked(p.listApps))
	mux.HandleFunc("POST /v1/apps", locked(p.createApp))
	mux.HandleFunc("GET /v1/apps/{app}", locked(p.getApp))
	mux.HandleFunc("DELETE /v1/apps/{app}", locked(p.deleteApp))
	mux.HandleFunc("GET /v1/apps/{app}/logs", p.logs)
	const m = "/v1/apps/{app}/machines"
	mux.HandleFunc("GET "+m, locked(p.listMachines))
	mux.HandleFunc("POST "+m, locked(p.createMachine))
	mux.HandleFunc("GET "+m+"/{id}", locked(p.getMachine))
	mux.HandleFunc("POST "+m+"/{id}", locked(p.changing(p.updateMachine)))
	mux.HandleFunc("DELETE "+m+"/{id}", locked(p.changing(p.destroyMachine)))
	mux.HandleFunc("POST "+m+"/{id}/start", locked(p.changing(p.startMachine)))
	mux.HandleFunc("POST "+m+"/{id}/stop", locked(p.changing(p.stopMachine)))
	mux.HandleFunc("POST "+m+"/{id}/restart", locked(p.changing(p.startMachine)))
	mux.HandleFunc("POST "+m+"/{id}/exec/stream", locked(p.exec))
	mux.HandleFunc("GET "+m+"/{id}/wait", p.wait)
	mux.HandleFunc("GET "+m+"/{id}/ports", locked(p.ports))
	mux.HandleFunc("GET "+m+"/{id}/logs", p.logs)
	mux.HandleFunc("POST "+m+"/{id}/lease", locked(p.lease))
	mux.HandleFunc("DELETE "+m+"/{id}/lease", locked(p.release))
	return mux
}

func (p *Platform) regions(w http.ResponseWriter, _ *http.Request) {
	r := map[string]any{"code": "local", "name": "Local"}
	if len(p.arches) > 0 {
		r["architectures"] = p.arches
	}
	answer(w, 200, map[string]any{"nearest": "local", "regions": []any{r}})
}

func (a *app) body() map[string]any {
	return map[string]any{"id": "app_" + a.name, "name": a.name, "status": "deployed", "machine_count": len(a.alive()),
		"organization": map[string]string{"slug": "personal", "name": "personal"}}
}

func (p *Platform) listApps(w http.ResponseWriter, _ *http.Request) {
	list := []any{}
	for _, a := range p.apps {
		list = append(list, a.body())
	}
	answer(w, 200, map[string]any{"total_apps": len(list), "apps": list})
}

func (p *Platform) createApp(w http.ResponseWriter, r *http.Request) {
	var in struct{ Name, Org_slug string }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		refuse(w, 400, "bad request", "")
		return
	}
	if p.apps[in.Name] != nil {
		refuse(w, 422, "Name has already been taken", "name_taken")
		return
	}
	p.apps[in.Name] = &app{name: in.Name, watch: make(chan struct{})}
	answer(w, 201, map[string]any{"id": "app_" + in.Name, "created_at": 1})
}

// find returns the app of a request, or answers 404.
func (p *Platform) find(w http.ResponseWriter, r *http.Request) *app {
	a := p.apps[r.PathValue("app")]
	if a == nil {
		refuse(w, 404, "app not found", "")
	}
	return a
}

func (p *Platform) getApp(w http.ResponseWriter, r *http.Request) {
	if a := p.find(w, r); a != nil {
		answer(w, 200, a.body())
	}
}

func (p *Platform) deleteApp(w http.ResponseWriter, r *http.Request) {
	if a := p.find(w, r); a != nil {
		delete(p.apps, a.name)
		answer(w, 202, nil)
	}
}

// findMachine returns the Machine of a request, or answers 404.
func (p *Platform) findMachine(w http.ResponseWriter, r *http.Request) (*app, *fakeMachine) {
	a := p.find(w, r)
	if a == nil {
		return nil, nil
	}
	for _, m := range a.machines {
		if m.ID == r.PathValue("id") {
			return a, m
		}
	}
	refuse(w, 404, "machine not found", "")
	return nil, nil
}

func (p *Platform) listMachines(w http.ResponseWriter, r *http.Request) {
	if a := p.find(w, r); a != nil {
		answer(w, 200, a.alive())
	}
}

func (p *Platform) getMachine(w http.ResponseWriter, r *http.Request) {
	if _, m := p.findMachine(w, r); m != nil {
		answer(w, 200, m)
	}
}

// ports answers as if the ports of a Machine's services had been tried.
func (p *Platform) ports(w http.ResponseWriter, r *http.Request) {
	_, m := p.findMachine(w, r)
	if m == nil {
		return
	}
	deaf := strings.Contains(m.Config.Image, "deaf")
	ports, listens := []any{}, []string{}
	for _, s := range m.Config.Services {
		ports = append(ports, map[string]any{"port": s.InternalPort, "answers": !deaf})
		if deaf {
			listens = append(listens, fmt.Sprintf("127.0.0.1:%d", s.InternalPort))
		}
	}
	answer(w, 200, map[string]any{"ports": ports, "listens": listens})
}

type launch struct {
	Name           string          `json:"name"`
	Region         string          `json:"region"`
	Config         *machine.Config `json:"config"`
	SkipLaunch     bool            `json:"skip_launch"`
	CurrentVersion string          `json:"current_version"`
}

// decode reads a launch and holds its config against the platform's own rules.
func decode(w http.ResponseWriter, r *http.Request) *launch {
	in := new(launch)
	if err := json.NewDecoder(r.Body).Decode(in); err != nil || in.Config == nil {
		refuse(w, 400, "the body is not a launch", "")
		return nil
	}
	if err := in.Config.Validate(); err != nil {
		refuse(w, 400, err.Error(), "")
		return nil
	}
	if in.Region != "" && in.Region != "local" {
		refuse(w, 422, fmt.Sprintf("there is no region %q", in.Region), "")
		return nil
	}
	return in
}

func (p *Platform) createMachine(w http.ResponseWriter, r *http.Request) {
	a := p.find(w, r)
	if a == nil {
		return
	}
	in := decode(w, r)
	if in == nil {
		return
	}
	p.next++
	m := &fakeMachine{
		ID: fmt.Sprintf("%014x", p.next), Name: in.Name, State: machine.Created, Region: "local",
		InstanceID: ulid.Make().String(), PrivateIP: fmt.Sprintf("fdaa::%x", p.next),
		CreatedAt: "2026-01-02T03:04:05Z", UpdatedAt: "2026-01-02T03:04:05Z", Config: in.Config,
	}
	if m.Name == "" {
		m.Name = "machine-" + strconv.Itoa(p.next)
	}
	a.machines = append(a.machines, m)
	m.event("launch", machine.Created, nil)
	answer(w, 200, m)
	if !in.SkipLaunch {
		p.behave(a, m, true)
	}
}

// changing guards a handler by the Machine's lease.
func (p *Platform) changing(h func(http.ResponseWriter, *http.Request, *app, *fakeMachine)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		a, m := p.findMachine(w, r)
		if m == nil {
			return
		}
		if m.leased() && r.Header.Get("fly-machine-lease-nonce") != m.nonce {
			refuse(w, 409, fmt.Sprintf("machine %s is leased by %s until %s", m.ID, m.owner, m.until.Format(time.RFC3339)), leased)
			return
		}
		h(w, r, a, m)
	}
}

func (p *Platform) updateMachine(w http.ResponseWriter, r *http.Request, a *app, m *fakeMachine) {
	in := decode(w, r)
	if in == nil {
		return
	}
	if in.CurrentVersion != "" && in.CurrentVersion != m.InstanceID {
		refuse(w, 412, "the machine has another version by now", "")
		return
	}
	m.Config, m.InstanceID, m.State = in.Config, ulid.Make().String(), machine.Updating
	if in.SkipLaunch {
		m.State = machine.Stopped
	}
	m.event("update", m.State, nil)
	answer(w, 200, m)
	if !in.SkipLaunch {
		p.behave(a, m, false)
	}
}

func (p *Platform) destroyMachine(w http.ResponseWriter, r *http.Request, _ *app, m *fakeMachine) {
	if m.State == machine.Started && r.URL.Query().Get("force") != "true" {
		refuse(w, 409, "machine "+m.ID+" is started; stop it first or use force", "")
		return
	}
	m.State = machine.Destroyed
	m.event("destroy", m.State, nil)
	answer(w, 200, map[string]bool{"ok": true})
}

func (p *Platform) startMachine(w http.ResponseWriter, _ *http.Request, a *app, m *fakeMachine) {
	before := m.State
	m.State = machine.Starting
	m.event("launch", m.State, nil)
	p.behave(a, m, false)
	answer(w, 200, map[string]string{"previous_state": string(before)})
}

func (p *Platform) stopMachine(w http.ResponseWriter, _ *http.Request, _ *app, m *fakeMachine) {
	m.State = machine.Stopped
	m.event("exit", m.State, &machine.EventRequest{ExitEvent: &machine.ExitEvent{RequestedStop: true}})
	answer(w, 200, map[string]bool{"ok": true})
}

// exec reads all input before it answers.
func (p *Platform) exec(w http.ResponseWriter, r *http.Request) {
	_, m := p.findMachine(w, r)
	if m == nil {
		return
	}
	var in struct{ Command []string }
	var stdin []byte
	frames := execstream.NewReader(r.Body)
	for t := execstream.Type(0); t != execstream.StdinEnd; {
		var b []byte
		var err error
		if t, b, err = frames.Next(); err != nil {
			refuse(w, 400, err.Error(), "")
			return
		}
		switch t {
		case execstream.Begin:
			json.Unmarshal(b, &in)
		case execstream.Stdin:
			stdin = append(stdin, b...)
		}
	}
	if m.State != machine.Started {
		refuse(w, 412, "machine "+m.ID+" is "+string(m.State)+", and a command runs only in a started one", "")
		return
	}
	stdout, stderr, code, signal := strings.Join(in.Command, " ")+"\n"+string(stdin), "", 0, 0
	switch in.Command[0] {
	case "false":
		stdout, stderr, code = "", "it is false\n", 42
	case "suicide":
		stdout, code, signal = "", -1, 9
	}
	w.Header().Set("Content-Type", execstream.MediaType)
	execstream.Write(w, execstream.Stdout, []byte(stdout))
	execstream.Write(w, execstream.Stderr, []byte(stderr))
	execstream.Write(w, execstream.Exit, fmt.Appendf(nil, `{"exit_code":%d,"exit_signal":%d}`, code, signal))
}

func (p *Platform) wait(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	secs, _ := strconv.Atoi(q.Get("timeout"))
	want := machine.State(q.Get("state"))
	for end := time.Now().Add(time.Duration(secs) * time.Second); ; time.Sleep(5 * time.Millisecond) {
		p.mu.Lock()
		_, m := p.findMachine(w, r)
		if m == nil {
			p.mu.Unlock()
			return
		}
		state, id := m.State, m.InstanceID
		var why string
		if len(m.Events) > 0 && m.Events[0].Request != nil {
			why = m.Events[0].Request.Error
		}
		p.mu.Unlock()
		switch {
		case state == want:
			answer(w, 200, map[string]any{"ok": true, "state": state, "version": id})
			return
		case want == machine.Started && (state == machine.Failed || state == machine.Destroyed):
			refuse(w, 422, why, "")
			return
		case time.Now().After(end):
			refuse(w, 408, fmt.Sprintf("machine failed to reach desired state, %s, currently %s", want, state), "")
			return
		}
	}
}

func (p *Platform) lease(w http.ResponseWriter, r *http.Request) {
	_, m := p.findMachine(w, r)
	if m == nil {
		return
	}
	ttl, err := strconv.Atoi(r.URL.Query().Get("ttl"))
	if err != nil || ttl < 1 {
		refuse(w, 400, "ttl is missing", "")
		return
	}
	if m.leased() && r.Header.Get("fly-machine-lease-nonce") != m.nonce {
		refuse(w, 409, fmt.Sprintf("machine %s is leased by %s until %s", m.ID, m.owner, m.until.Format(time.RFC3339)), leased)
		return
	}
	if !m.leased() {
		m.nonce, m.owner = ulid.Make().String(), "admin"
	}
	m.until = time.Now().Add(time.Duration(ttl) * time.Second)
	data := map[string]any{"nonce": m.nonce, "expires_at": m.until.Unix(), "owner": m.owner}
	answer(w, 201, map[string]any{"status": "success", "data": data})
}

func (p *Platform) release(w http.ResponseWriter, r *http.Request) {
	_, m := p.findMachine(w, r)
	if m == nil {
		return
	}
	if !m.leased() || r.Header.Get("fly-machine-lease-nonce") != m.nonce {
		refuse(w, 404, "lease not found", "")
		return
	}
	m.nonce = ""
	answer(w, 200, map[string]any{"status": "success", "data": map[string]bool{"ok": true}})
}

// logs answers NDJSON, and goes on with follow.
func (p *Platform) logs(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	tail, _ := strconv.Atoi(q.Get("tail"))
	p.mu.Lock()
	a := p.find(w, r)
	if a == nil {
		p.mu.Unlock()
		return
	}
	sent := max(len(a.logs)-tail, 0)
	p.mu.Unlock()
	w.Header().Set("Content-Type", "application/x-ndjson")
	for {
		p.mu.Lock()
		more, watch, over := a.logs[sent:], a.watch, false
		for _, m := range a.machines {
			over = over || m.ID == r.PathValue("id") && m.State == machine.Destroyed
		}
		p.mu.Unlock()
		for _, l := range more {
			if id := r.PathValue("id"); id == "" || id == l.Machine {
				json.NewEncoder(w).Encode(l)
			}
			sent++
		}
		if q.Get("follow") != "true" || over {
			return
		}
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-watch:
		case <-time.After(20 * time.Millisecond): // it may have been destroyed
		}
	}
}
