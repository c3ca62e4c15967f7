package world_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// operation is something that a client, or a Machine, does.
type operation struct {
	name    string
	prepare func(*trial) error
	act     func(*trial) error  // until it is acknowledged
	settled func(*trial) string // what is not yet as it must be afterwards, or ""
}

// operations lists them all.
func operations() []operation {
	return append(append(lifeOperations(), roleOperations()...), objectOperations()...)
}

// post is an act: one call.
func post(suffix string) func(*trial) error {
	return func(t *trial) error { return t.do("POST", t.at(suffix), nil) }
}

// update is an act: a new version of the config.
func update(t *trial) error {
	t.version++
	return t.do("POST", t.at(""), map[string]any{"config": t.config()})
}

// updateOnly is update for a Machine that is to stay stopped.
func updateOnly(t *trial) error {
	t.version++
	return t.do("POST", t.at(""), map[string]any{"config": t.config(), "skip_launch": true})
}

// being is a settled: one of the states.
func being(states ...string) func(*trial) string {
	return func(t *trial) string { return t.is(states...) }
}

// anew is a settled: the Machine serves from another process than before.
func anew(t *trial) string {
	if why := t.answers(); why != "" {
		return why
	}
	if t.sandbox() == t.process {
		return "it is the same process as before"
	}
	return ""
}

// unharmed is a settled: the Machine serves from the same process as before.
func unharmed(t *trial) string {
	if now := t.sandbox(); now != t.process {
		return fmt.Sprintf("the sandbox was process %d and is %d", t.process, now)
	}
	return t.answers()
}

// exits is a prepare: a Machine with a restart policy, that runs.
func exits(policy map[string]any) func(*trial) error {
	return func(t *trial) error {
		c := t.config()
		c["restart"] = policy
		return t.runningAs(c)
	}
}

// exit is an act: the Machine's own process ends.
func exit(t *trial) error {
	t.w.Get(t.app, "/exit?code=3") // the answer is the connection's end
	return nil
}

// lifeOperations are those on one Machine.
func lifeOperations() []operation {
	unsealed := func(t *trial) error {
		files, _ := filepath.Glob(filepath.Join(t.w.DataDir, "images", "[0-9a-f]*"))
		for _, f := range files {
			os.Remove(f)
		}
		return t.newApp()
	}
	never := func(t *trial) error {
		c := t.config()
		c["init"] = map[string]any{"exec": []string{"/nonexistent"}}
		return t.create(c)
	}
	return []operation{
		{"create a machine", unsealed, func(t *trial) error { return t.create(t.config()) }, (*trial).answers},
		{"create one that cannot start", (*trial).newApp, never, being("destroyed")},
		{"create one, launch it later", (*trial).newApp, func(t *trial) error {
			return errors.Join(t.create(t.config(), "skip_launch", true), updateOnly(t), post("/start")(t))
		}, (*trial).answers},
		{"start", (*trial).stopped, post("/start"), (*trial).answers},
		{"stop", (*trial).running, post("/stop"), being("stopped")},
		{"restart", (*trial).running, post("/restart"), anew},
		{"update", (*trial).running, update, anew},
		{"update a stopped machine", (*trial).stopped, updateOnly, being("stopped")},
		{"destroy", (*trial).running, func(t *trial) error { return t.do("DELETE", t.at("?force=true"), nil, 404) }, being("destroyed")},
		{"exit, and be restarted", exits(map[string]any{"policy": "always"}), exit, anew},
		{"exit, and stay so", exits(map[string]any{"policy": "no"}), exit, being("stopped")},
		{"exit, and no more retries", exits(map[string]any{"policy": "on-failure", "max_retries": 1}), func(t *trial) error {
			// A start that a fault took away counts as an exit too: it ends whenever it runs.
			return t.until(func() string {
				if t.answers() == "" {
					exit(t)
				}
				return t.is("failed")
			})
		}, being("failed")},
		{"exit, and be destroyed", func(t *trial) error {
			c := t.config()
			c["restart"], c["auto_destroy"] = map[string]any{"policy": "no"}, true
			return t.runningAs(c)
		}, exit, being("destroyed")},
	}
}

// kill is an act: a role ends, and comes back by itself.
func kill(role string) func(*trial) error {
	return func(t *trial) error {
		pid := t.w.Role(role)
		if pid == 0 {
			return fmt.Errorf("there is no %s", role)
		}
		return errors.Join(syscall.Kill(pid, syscall.SIGKILL), t.until(func() string {
			if now := t.w.Role(role); now == 0 || now == pid {
				return "the " + role + " has not come back"
			}
			return ""
		}))
	}
}

// roleOperations are the recoveries: what a role that was killed does when it starts.
func roleOperations() []operation {
	damaged := func(t *trial) error {
		if err := t.stopped(); err != nil {
			return err
		}
		files, _ := filepath.Glob(filepath.Join(t.w.DataDir, "images", "*.erofs"))
		for _, f := range files {
			if err := os.Truncate(f, 1000); err != nil {
				return err
			}
		}
		return os.WriteFile(filepath.Join(t.w.DataDir, "images", ".tmp-left.erofs"), nil, 0o600)
	}
	return []operation{
		{"the worker is killed", (*trial).running, kill("worker"), unharmed},
		{"the warden is killed", (*trial).running, kill("warden"), unharmed},
		{"the controller is killed", (*trial).running, kill("controller"), unharmed},
		{"a sealed image is damaged", damaged, func(t *trial) error { return errors.Join(kill("worker")(t), post("/start")(t)) }, (*trial).answers},
	}
}

// objectOperations are those on other things than Machines.
func objectOperations() []operation {
	pushed := func(t *trial) (err error) {
		if t.img, err = random.Image(2048, 2); err != nil {
			return err
		}
		return t.push()
	}
	unpushed := func(ref name.Reference, o ...remote.Option) error {
		_, err := remote.Get(ref, o...)
		if err != nil && strings.Contains(err.Error(), "MANIFEST_UNKNOWN") {
			return nil // an earlier try had succeeded
		}
		return remote.Delete(ref, o...)
	}
	lease := func(t *trial) error {
		var nonce string
		err := t.until(func() string {
			var l struct {
				Data struct {
					Nonce string `json:"nonce"`
				} `json:"data"`
			}
			status, body, err := t.call("POST", t.at("/lease"), map[string]any{"ttl": 2}, &l)
			if nonce = l.Data.Nonce; nonce == "" { // held by ourselves, and we do not know the nonce: it ends soon
				return fmt.Sprint(status, string(body), err)
			}
			return ""
		})
		return errors.Join(err, t.do("DELETE", t.at("/lease")+"?nonce="+nonce, nil, 404, 409))
	}
	return []operation{
		{"push an image", (*trial).newApp, func(t *trial) error { return errors.Join(pushed(t), pushed(t)) }, (*trial).pulled},
		{"delete an image", func(t *trial) error { return errors.Join(t.newApp(), pushed(t)) },
			func(t *trial) error { return t.registry(unpushed) },
			func(t *trial) string {
				if why := t.pulled(); !strings.Contains(why, "MANIFEST_UNKNOWN") {
					return "the tag is still there: " + why
				}
				return ""
			}},
		{"create an app", func(*trial) error { return nil }, (*trial).newApp, func(t *trial) string {
			if status, body, err := t.call("GET", "/apps/"+t.app, nil, nil); status != 200 {
				return fmt.Sprintf("the app is not there: %d %s %v", status, body, err)
			}
			return ""
		}},
		{"take a lease and give it back", (*trial).stopped, lease, func(t *trial) string {
			if status, body, err := t.call("GET", t.at("/lease"), nil, nil); status != 404 {
				return fmt.Sprintf("the lease is not gone: %d %s %v", status, body, err)
			}
			return ""
		}},
		{"set metadata and delete one", (*trial).stopped, func(t *trial) error {
			return errors.Join(t.do("POST", t.at("/metadata/a"), map[string]any{"value": "1"}),
				t.do("POST", t.at("/metadata/b"), map[string]any{"value": "2"}), t.do("DELETE", t.at("/metadata/b"), nil))
		}, func(t *trial) string {
			var got map[string]string
			if _, body, err := t.call("GET", t.at("/metadata"), nil, &got); err != nil || got["a"] != "1" || got["b"] != "" {
				return fmt.Sprintf("the metadata are %s (%v)", body, err)
			}
			return ""
		}},
		{"cordon and uncordon", (*trial).running, func(t *trial) error { return errors.Join(post("/cordon")(t), post("/uncordon")(t)) }, unharmed},
		{"delete an app that runs", (*trial).running, func(t *trial) error { return t.do("DELETE", "/apps/"+t.app, nil, 404) }, func(t *trial) string {
			if status, body, err := t.call("GET", "/apps/"+t.app, nil, nil); status != 404 {
				return fmt.Sprintf("the app is not gone: %d %s %v", status, body, err)
			}
			return ""
		}},
	}
}
