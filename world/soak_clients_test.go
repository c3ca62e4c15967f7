package world_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"bulkhead/world"
	"bulkhead/world/history"
)

// soak is what the clients of a random run share.
type soak struct {
	w        *world.World // to break; what the clients need of it is below
	api      string
	token    string
	rec      *history.Recorder
	http     *http.Client
	image    string
	machines []string // of app reg: their configs are registers
	plain    []string // of app reg: their metadata are registers
	leased   string   // of app reg: its lease is a register
	apps     []string // names that come and go

	mu       sync.Mutex
	problems []string
	wanted   map[string]string // churn Machine's id → the last state asked for and acknowledged; "" when unsure
}

// problem notes an answer that should not have been given.
func (s *soak) problem(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.problems) < 20 {
		s.problems = append(s.problems, fmt.Sprintf(format, args...))
	}
}

// want notes what a client of the churn asked for.
func (s *soak) want(id, state string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wanted[id] = state; state == "destroyed" {
		delete(s.wanted, id)
	}
}

// call makes one call; status 0 means that there was no answer.
func (s *soak) call(ctx context.Context, method, path string, in, out any, header ...string) int {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			panic(err)
		}
		body = bytes.NewReader(b)
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.api+"/v1"+path, body)
	if err != nil {
		panic(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.token)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 || out == nil {
		if err != nil {
			return 0
		}
		return resp.StatusCode
	}
	if err := json.Unmarshal(b, out); err != nil {
		s.problem("%s %s: %v: %.200s", method, path, err, b)
		return 0
	}
	return resp.StatusCode
}

// outcome says what a status means: refused are those that say "the condition does
// not hold". Everything else that is neither success nor a failure of the platform
// is a problem.
func (s *soak) outcome(what string, status int, refused ...int) history.Outcome {
	switch {
	case status >= 200 && status < 300:
		return history.Done
	case status == 0 || status >= 500 || status == http.StatusRequestTimeout:
		return history.Unknown
	}
	for _, r := range refused {
		if status == r {
			return history.Refused
		}
	}
	s.problem("%s was answered with %d", what, status)
	return history.Unknown
}

// soaker is one client.
type soaker struct {
	*soak
	id   int
	rng  *rand.Rand
	n    int    // operations that need a new name
	mine string // id of its Machine of app churn
	name string // its name
}

// run makes calls until ctx ends; the one in progress is finished.
func (c *soaker) run(ctx context.Context) {
	for ctx.Err() == nil {
		c.step(context.WithoutCancel(ctx))
		rest(ctx, c.rng.IntN(30))
	}
}

func (c *soaker) step(ctx context.Context) {
	switch c.rng.IntN(10) {
	case 0, 1, 2:
		c.metadata(ctx)
	case 3, 4:
		c.config(ctx)
	case 5:
		c.lease(ctx)
	case 6:
		c.app(ctx)
	default:
		c.churn(ctx)
	}
}

func (c *soaker) do(op history.Op, f func(op *history.Op)) history.Op {
	op.Client = c.id
	return c.rec.Do(op, f)
}

// value is one that nobody wrote before.
func (c *soaker) value() string { c.n++; return fmt.Sprintf("c%d-%d", c.id, c.n) }

// metadata puts, removes or reads one of a Machine's keys.
func (c *soaker) metadata(ctx context.Context) {
	id, k := c.plain[c.rng.IntN(len(c.plain))], []string{"a", "b"}[c.rng.IntN(2)]
	path := "/apps/reg/machines/" + id + "/metadata/" + k
	op := history.Op{Key: "metadata " + id + " " + k}
	switch c.rng.IntN(5) {
	case 0, 1:
		op.Kind, op.New = history.Put, c.value()
		c.do(op, func(o *history.Op) {
			o.Outcome = c.outcome("put metadata", c.call(ctx, "POST", path, map[string]string{"value": o.New}, nil))
		})
	case 2:
		op.Kind = history.Put // of nothing
		c.do(op, func(o *history.Op) {
			o.Outcome = c.outcome("delete metadata", c.call(ctx, "DELETE", path, nil, nil))
		})
	default:
		c.readMetadata(ctx, op, path)
	}
}

func (c *soaker) readMetadata(ctx context.Context, op history.Op, path string) {
	op.Kind = history.Read
	c.do(op, func(o *history.Op) {
		var out struct {
			Value string `json:"value"`
		}
		o.Outcome = c.outcome("read metadata", c.call(ctx, "GET", path, nil, &out), http.StatusNotFound)
		o.Got = out.Value
		if o.Outcome == history.Refused { // there is nothing
			o.Outcome = history.Done
		}
	})
}

// versioned is what config reads of a Machine.
type versioned struct {
	InstanceID string `json:"instance_id"`
	Config     struct {
		Env map[string]string `json:"env"`
	} `json:"config"`
}

func (v versioned) value() string { return v.InstanceID + "|" + v.Config.Env["V"] }

// config reads a Machine's config, and sometimes swaps it for another version.
func (c *soaker) config(ctx context.Context) {
	id := c.machines[c.rng.IntN(len(c.machines))]
	read, was := c.readConfig(ctx, id)
	if read.Outcome != history.Done || c.rng.IntN(2) == 0 {
		return
	}
	v := c.value()
	c.do(history.Op{Key: "config " + id, Kind: history.Swap, Old: was.value(), New: "?|" + v}, func(o *history.Op) {
		in := map[string]any{"current_version": was.InstanceID, "config": soakConfig(c.image, v)}
		var now versioned
		o.Outcome = c.outcome("update", c.call(ctx, "POST", "/apps/reg/machines/"+id, in, &now), http.StatusPreconditionFailed)
		if o.Outcome == history.Done {
			o.New = now.value()
		}
	})
}

func (c *soaker) readConfig(ctx context.Context, id string) (op history.Op, v versioned) {
	op = c.do(history.Op{Key: "config " + id, Kind: history.Read}, func(o *history.Op) {
		o.Outcome = c.outcome("read a machine", c.call(ctx, "GET", "/apps/reg/machines/"+id, nil, &v))
		o.Got = v.value()
	})
	return op, v
}

// lease takes, shows or gives back the one lease, which is known by its description.
func (c *soaker) lease(ctx context.Context) {
	path := "/apps/reg/machines/" + c.leased + "/lease"
	var held struct {
		Nonce       string `json:"nonce"`
		Description string `json:"description"`
	}
	read := c.do(history.Op{Key: "lease", Kind: history.Read}, func(o *history.Op) {
		o.Outcome = c.outcome("show the lease", c.call(ctx, "GET", path, nil, &held), http.StatusNotFound)
		if o.Outcome == history.Refused {
			o.Outcome = history.Done
		}
		o.Got = held.Description
	})
	switch {
	case read.Outcome != history.Done:
	case held.Nonce != "":
		c.do(history.Op{Key: "lease", Kind: history.Remove, Old: held.Description}, func(o *history.Op) {
			status := c.call(ctx, "DELETE", path, nil, nil, "fly-machine-lease-nonce", held.Nonce)
			o.Outcome = c.outcome("release the lease", status, http.StatusNotFound, http.StatusConflict)
		})
	default:
		c.do(history.Op{Key: "lease", Kind: history.Add, New: c.value()}, func(o *history.Op) {
			status := c.call(ctx, "POST", path, map[string]any{"ttl": 86400, "description": o.New}, nil)
			o.Outcome = c.outcome("take the lease", status, http.StatusConflict)
		})
	}
}

// app makes, removes or looks for an app without Machines.
func (c *soaker) app(ctx context.Context) {
	name := c.apps[c.rng.IntN(len(c.apps))]
	op := history.Op{Key: "app " + name}
	switch c.rng.IntN(3) {
	case 0:
		op.Kind, op.New = history.Add, "there"
		c.do(op, func(o *history.Op) {
			o.Outcome = c.outcome("create an app", c.call(ctx, "POST", "/apps", map[string]string{"name": name, "org_slug": "personal"}, nil), http.StatusUnprocessableEntity)
		})
	case 1:
		op.Kind = history.Remove
		c.do(op, func(o *history.Op) {
			o.Outcome = c.outcome("delete an app", c.call(ctx, "DELETE", "/apps/"+name, nil, nil), http.StatusNotFound)
			if o.Outcome == history.Done && !c.gone(ctx, name) {
				o.Outcome = history.Unknown // it is accepted, and under way
			}
		})
	default:
		c.readApp(ctx, name)
	}
}

func (c *soaker) readApp(ctx context.Context, name string) {
	c.do(history.Op{Key: "app " + name, Kind: history.Read}, func(o *history.Op) {
		o.Outcome = c.outcome("show an app", c.call(ctx, "GET", "/apps/"+name, nil, nil), http.StatusNotFound)
		switch o.Outcome {
		case history.Done:
			o.Got = "there"
		case history.Refused:
			o.Outcome = history.Done
		}
	})
}

// gone waits until an app's deletion is over.
func (c *soaker) gone(ctx context.Context, name string) bool {
	return within(3*time.Second, func() bool { return c.call(ctx, "GET", "/apps/"+name, nil, nil) == http.StatusNotFound })
}

// churn moves this client's own Machine through its life.
func (c *soaker) churn(ctx context.Context) {
	const machines = "/apps/churn/machines"
	if c.name == "" {
		c.name = c.value()
	}
	if c.mine == "" {
		c.create(ctx)
		return
	}
	path := machines + "/" + c.mine
	switch c.rng.IntN(5) {
	case 0, 1:
		c.ask(ctx, path+"/start", nil, "started")
	case 2, 3:
		c.ask(ctx, path+"/stop", map[string]any{"timeout": "1s"}, "stopped")
	default:
		c.want(c.mine, "")
		c.do(history.Op{Key: "machine " + c.name, Kind: history.Remove}, func(o *history.Op) {
			o.Outcome = c.outcome("destroy", c.call(ctx, "DELETE", path+"?force=true", nil, nil))
		})
		c.want(c.mine, "destroyed")
		c.mine, c.name = "", ""
	}
}

// create makes this client's Machine; when there was no answer it looks whether it
// was made, and else gives the name up.
func (c *soaker) create(ctx context.Context) {
	var m world.Machine
	op := c.do(history.Op{Key: "machine " + c.name, Kind: history.Add, New: "there"}, func(o *history.Op) {
		in := map[string]any{"name": c.name, "config": soakConfig(c.image, "")}
		o.Outcome = c.outcome("create", c.call(ctx, "POST", "/apps/churn/machines", in, &m))
	})
	if op.Outcome == history.Done {
		c.mine = m.ID
		c.want(m.ID, "started")
		return
	}
	c.name = ""
}

// ask asks for a state and notes it when that is acknowledged. A Machine in a state
// that forbids it says so with a conflict, and nothing changes.
func (c *soaker) ask(ctx context.Context, path string, in any, state string) {
	id, before := c.mine, c.wantedOf(c.mine)
	c.want(id, "")
	switch c.outcome("ask for "+state, c.call(ctx, "POST", path, in, nil), http.StatusConflict, http.StatusPreconditionFailed) {
	case history.Done:
		c.want(id, state)
	case history.Refused:
		c.want(id, before)
	}
}

func (s *soak) wantedOf(id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wanted[id]
}

// readAll reads every register once more, when all faults are over.
func (c *soaker) readAll(ctx context.Context) {
	for _, id := range c.machines {
		c.readConfig(ctx, id)
	}
	for _, id := range c.plain {
		for _, k := range []string{"a", "b"} {
			c.readMetadata(ctx, history.Op{Key: "metadata " + id + " " + k}, "/apps/reg/machines/"+id+"/metadata/"+k)
		}
	}
	for _, name := range c.apps {
		c.readApp(ctx, name)
	}
}

func soakConfig(image, v string) map[string]any {
	return map[string]any{
		"image": image, "env": map[string]string{"V": v},
		"guest":   map[string]any{"cpu_kind": "shared", "cpus": 1, "memory_mb": 256},
		"restart": map[string]any{"policy": "always"},
	}
}
