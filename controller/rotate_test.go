package controller_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"bulkhead/api/internalpb"
	"bulkhead/controller"
	"bulkhead/internal/await"
	"bulkhead/role"
	"bulkhead/secret"
	"bulkhead/store"
)

func keyFile(t *testing.T, e *env) []secret.Key {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(e.cfg.Role.DataDir, "cluster.key"))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := secret.ParseKeys(b, "")
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// TestRotateKey: while secrets are set the cluster key is replaced; everything opens with
// the new key alone, and what was kept of the store before opens with it no more, also
// what an app had that is deleted.
func TestRotateKey(t *testing.T) {
	e := newEnv(t)
	for _, app := range []string{"web", "gone"} {
		e.app(app)
		e.want(200, "POST", "/v1/apps/"+app+"/secrets", config{"values": config{"A": "first"}}, nil)
	}
	old := keyFile(t, e)
	stolen, err := e.ctl.Raw(context.Background(), "/secret/gone")
	if err != nil {
		t.Fatal(err)
	}
	e.want(202, "DELETE", "/v1/apps/gone", nil, nil)
	e.awaitNoApp("gone")
	stop, done, sets := make(chan struct{}), make(chan struct{}), atomic.Int64{}
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if a := e.do("POST", "/v1/apps/web/secrets/B", config{"value": strings.Repeat("x", i%50)}); a.code != 201 {
				t.Errorf("a secret set meanwhile: %d %s", a.code, a.body)
				return
			}
			sets.Add(1)
		}
	}()
	for range 5 {
		code, b := e.admin("POST", "/secrets/rotate-key")
		var r controller.KeyRotation
		if err := json.Unmarshal(b, &r); code != 200 || err != nil || r.Key == "" || r.Old == "" {
			t.Fatalf("%d %s", code, b)
		}
	}
	close(stop)
	<-done
	now := keyFile(t, e)
	if len(now) != 1 || now[0].ID == old[0].ID || sets.Load() == 0 {
		t.Errorf("%d keys after the rotation, %d sets", len(now), sets.Load())
	}
	e.stop()
	e.startController() // the new key alone
	e.waitNode(true)
	m := e.launch("web", image())
	got, _, err := fetch(t, internalpb.NewControllerClient(e.dial(role.Worker, node)), string(node), m.ID, m.InstanceID)
	if err != nil || got["A"] != "first" {
		t.Fatalf("%v, %v", got, err)
	}
	// A copy of the store from before, with the key of now.
	ring := secret.NewRing(cluster, "", now)
	if _, err := unwrapApp(t, ring, stolen); err == nil {
		t.Error("what was deleted before the rotation opens after it")
	}
	if raw, err := unwrapApp(t, secret.NewRing(cluster, "", old), stolen); err != nil || len(raw) != secret.KeySize {
		t.Errorf("control: it does not open with the old key either: %v", err)
	}
}

func unwrapApp(t *testing.T, r *secret.Ring, record []byte) ([]byte, error) {
	t.Helper()
	var s struct {
		AppID string `json:"app_id"`
		Key   []byte
	}
	if err := json.Unmarshal(record, &s); err != nil || len(s.Key) == 0 {
		t.Fatalf("%s: %v", record, err)
	}
	return r.Unwrap("app "+s.AppID, s.Key)
}

// TestRotationIsCutShort stops a rotation at each of its writes, before and after it; the
// next start finishes it, and nothing is lost at any time.
func TestRotationIsCutShort(t *testing.T) {
	t.Parallel() // it mostly waits for the store to start
	e := newEnv(t)
	for _, app := range []string{"a1", "a2", "a3"} {
		e.app(app)
		e.want(200, "POST", "/v1/apps/"+app+"/secrets", config{"values": config{"A": app}}, nil)
	}
	cut := errors.New("the power goes")
	cases, before := 0, keyFile(t, e)[0].ID
	for at := range 12 {
		n, stopped := 0, false
		e.opened = func(c *controller.Controller) {
			c.AroundTxn(func(ops []store.Op, txn func() error) error {
				if !rewraps(ops) {
					return txn()
				}
				if n++; stopped || n > (at/2)+1 {
					stopped = true
					return cut
				}
				if n == at/2+1 {
					stopped = true
					if at%2 == 0 {
						return cut
					}
					return errors.Join(txn(), cut)
				}
				return txn()
			})
		}
		e.stop()
		e.startController()
		code, b := e.admin("POST", "/secrets/rotate-key")
		if (code == 200) == stopped {
			t.Fatalf("cut at %d: %d %s, stopped %v", at, code, b, stopped)
		}
		if stopped && len(keyFile(t, e)) != 2 {
			t.Errorf("cut at %d: the old key was removed too early", at)
		}
		e.opened = nil
		e.stop()
		e.startController()
		await.True(e.t, "the rotation is finished", func() bool { return len(keyFile(t, e)) == 1 })
		if now := keyFile(t, e)[0].ID; now == before {
			t.Errorf("cut at %d: the key is the old one", at)
		} else {
			before = now
		}
		for _, app := range []string{"a1", "a2", "a3"} {
			e.want(201, "POST", "/v1/apps/"+app+"/secretkeys/k/generate", config{"type": "hs256"}, nil)
		}
		cases++
		if !stopped {
			break
		}
	}
	if cases < 8 {
		t.Errorf("only %d places were tried", cases)
	}
	t.Logf("%d places", cases)
}

// rewraps reports whether a transaction writes an app's secrets.
func rewraps(ops []store.Op) bool {
	for _, o := range ops {
		if strings.HasPrefix(o.Key, "/secret/") || bytes.Contains(o.Value, []byte(`"check"`)) {
			return true
		}
	}
	return false
}

// operatorsKey is a credential whose content the operator changes.
type operatorsKey struct{ atomic.Pointer[bytes.Reader] }

func (k *operatorsKey) ReadAt(b []byte, at int64) (int, error) { return k.Load().ReadAt(b, at) }

func (k *operatorsKey) set(keys ...secret.Key) { k.Store(bytes.NewReader(secret.FormatKeys(keys))) }

// TestRotateOperatorsKey: an operator who puts a new key in the place of the old one instead
// of before it is told so, and nothing is lost; before it, the rotation is done.
func TestRotateOperatorsKey(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	old, k := keyFile(t, e)[0], &operatorsKey{}
	k.set(old)
	e.stop()
	e.cfg.Role.ClusterCredential, e.cfg.ClusterKey = "k", k
	e.startController()
	e.login()
	next := secret.NewKey()
	for _, bad := range [][]secret.Key{{old}, {next}} {
		k.set(bad...)
		if code, b := e.admin("POST", "/secrets/rotate-key"); code != 412 {
			t.Errorf("rotated with %d keys: %d %s", len(bad), code, b)
		}
		e.want(200, "POST", "/v1/apps/web/secrets", config{"values": config{"A": bad[0].ID}}, nil)
	}
	k.set(next, old)
	if code, b := e.admin("POST", "/secrets/rotate-key"); code != 200 || !strings.Contains(string(b), "remove it from") {
		t.Errorf("rotated: %d %s", code, b)
	}
	k.set(next)
	e.stop()
	e.startController()
	e.login()
	e.want(200, "POST", "/v1/apps/web/secrets", config{"values": config{"B": "x"}}, nil)
}
