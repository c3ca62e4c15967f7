package controller_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead/api/internalpb"
	"bulkhead/audit"
	"bulkhead/controller"
	"bulkhead/fault"
	"bulkhead/role"
	"bulkhead/secret"
)

// fetch asks for a Machine's secrets as the worker of a node does.
func fetch(t *testing.T, c internalpb.ControllerClient, n, id, instance string) (map[string]string, uint64, error) {
	t.Helper()
	r, err := secret.NewRecipient()
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.FetchSecrets(bounded(t), &internalpb.FetchSecretsRequest{MachineId: id, InstanceId: instance, PublicKey: r.Public()})
	if err != nil || len(resp.Sealed) == 0 {
		return nil, resp.GetVersion(), err
	}
	b, err := r.Open(resp.Sealed, "machine secrets", cluster, n, id, instance)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	return out, resp.Version, json.Unmarshal(b, &out)
}

// TestSecrets: set, listed by digest, used by the worker that runs the Machine, unset;
// never shown, and not in the store as they are.
func TestSecrets(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	const value = "hunter2-planted-value"
	var set controller.AppSecrets
	e.want(200, "POST", "/v1/apps/web/secrets", config{"values": config{"A": value, "B": "two", "GONE": "x"}}, &set)
	if set.Version != 1 || len(set.Secrets) != 3 || len(set.Secrets[0].Digest) != 16 {
		t.Fatalf("%+v", set)
	}
	e.want(200, "POST", "/v1/apps/web/secrets", config{"values": config{"B": "two"}}, &set)
	if set.Version != 1 {
		t.Errorf("the value that is there already is a change: version %d", set.Version)
	}
	e.want(200, "POST", "/v1/apps/web/secrets", config{"values": config{"GONE": nil}}, &set)
	var one controller.AppSecretSet
	e.want(201, "POST", "/v1/apps/web/secrets/C", config{"value": "three"}, &one)
	if one.Version != 3 || one.Name != "C" {
		t.Errorf("%+v", one)
	}
	a := e.get("/v1/apps/web/secrets?min_version=3", &set)
	if len(set.Secrets) != 3 || set.Secrets[0].Status != "staged" || strings.Contains(string(a.body), value) || strings.Contains(string(a.body), `"value"`) {
		t.Errorf("%s", a.body)
	}
	e.want(200, "DELETE", "/v1/apps/web/secrets/C", nil, nil)
	e.refused(404, "no secret", "GET", "/v1/apps/web/secrets/C", nil)
	e.refused(404, "no secret", "DELETE", "/v1/apps/web/secrets/C", nil)
	refusedSecrets(t, e)

	m := e.launch("web", image())
	conn := internalpb.NewControllerClient(e.dial(role.Worker, node))
	env, version, err := fetch(t, conn, string(node), m.ID, m.InstanceID)
	if err != nil || version != 4 || len(env) != 2 || env["A"] != value || env["B"] != "two" {
		t.Fatalf("%v version %d: %v", env, version, err)
	}
	// What is not this worker's, or is not to run, is denied; the control is the fetch above.
	if _, _, err := fetch(t, internalpb.NewControllerClient(e.dial(role.Worker, "n9")), "n9", m.ID, m.InstanceID); !fault.Is(err, fault.Denied) {
		t.Errorf("another node's worker: %v", err)
	}
	if _, _, err := fetch(t, conn, string(node), "00000000000000", m.InstanceID); !fault.Is(err, fault.Denied) {
		t.Errorf("no machine: %v", err)
	}
	if _, _, err := fetch(t, internalpb.NewControllerClient(e.dial(role.Edge, node)), string(node), m.ID, m.InstanceID); !fault.Is(err, fault.Denied) {
		t.Errorf("an edge: %v", err)
	}
	rec := e.find("", "a worker that asks for another's", func(r audit.Record) bool { return r.Name == "worker of node n9" })
	if rec.Action != "secrets opened" || rec.Result != audit.Refused || rec.Target != "machine="+m.ID {
		t.Errorf("%+v", rec)
	}
	e.want(200, "POST", "/v1/apps/web/machines/"+m.ID+"/stop", nil, nil)
	e.wait("web", m.ID, "stopped")
	if _, _, err := fetch(t, conn, string(node), m.ID, m.InstanceID); !fault.Is(err, fault.Denied) {
		t.Errorf("a stopped machine: %v", err)
	}
	skip := e.create("web", config{"config": image(), "skip_secrets": true, "min_secrets_version": 4})
	e.wait("web", skip.ID, "started")
	if env, _, err := fetch(t, conn, string(node), skip.ID, skip.InstanceID); err != nil || env != nil {
		t.Errorf("skip_secrets: %v, %v", env, err)
	}
	e.refused(412, "version 5, which is the oldest", "POST", "/v1/apps/web/machines", config{"config": image(), "min_secrets_version": 5})
	e.refused(412, "version 5", "GET", "/v1/apps/web/secrets?version=5", nil)

	// The app's end is the end of its key.
	e.want(202, "DELETE", "/v1/apps/web", nil, nil)
	e.awaitNoApp("web")
	e.app("web")
	e.get("/v1/apps/web/secrets", &set)
	if len(set.Secrets) != 0 || set.Version != 0 {
		t.Errorf("a new app of the name has the old one's secrets: %+v", set)
	}
	found := grepFiles(t, e.dir, value)
	if len(found) > 0 {
		t.Errorf("the value is in %v", found)
	}
	if err := os.WriteFile(filepath.Join(e.dir, "planted"), []byte(hex.EncodeToString([]byte(value))), 0o600); err != nil {
		t.Fatal(err)
	}
	if len(grepFiles(t, e.dir, value)) != 1 {
		t.Error("control: a planted file is not found")
	}
	for _, enc := range encodings(value) {
		if strings.Contains(e.logs.String(), enc) {
			t.Error("the value is in the log")
		}
	}
}

// TestFilesOfSecrets: a config may name secrets that are there; answers hold the name and
// never a value, and an update is held to the same.
func TestFilesOfSecrets(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	const value = "cGxhbnRlZC1maWxl" // base64
	with := func(names ...string) config {
		files := []config{{"guest_path": "/plain", "raw_value": "aGk="}}
		for i, n := range names {
			files = append(files, config{"guest_path": fmt.Sprintf("/run/s%d", i), "secret_name": n, "mode": 256})
		}
		c := image()
		c["files"] = files
		return c
	}
	const at = "/v1/apps/web/machines"
	e.refused(400, `config.files[1].secret_name is \"KEY\", and the app has no secret of that name`, "POST", at, config{"config": with("KEY")})
	e.want(200, "POST", "/v1/apps/web/secrets", config{"values": config{"KEY": value}}, nil)
	m := e.create("web", config{"config": with("KEY")})
	a := e.get(at+"/"+m.ID, nil)
	if !strings.Contains(string(a.body), `"secret_name":"KEY"`) || strings.Contains(string(a.body), value) {
		t.Errorf("answered: %s", a.body)
	}
	e.refused(400, `config.files[2].secret_name is \"NONE\"`, "POST", at+"/"+m.ID, config{"config": with("KEY", "NONE")})
	e.refused(400, "skip_secrets", "POST", at, config{"config": with("KEY"), "skip_secrets": true})
	e.refused(412, "the oldest", "POST", at, config{"config": with("KEY"), "min_secrets_version": 9})
	e.want(200, "POST", at+"/"+m.ID, config{"config": with("KEY", "KEY"), "min_secrets_version": 1}, nil)
}

// TestSecretsAreFetchedSoOften: a worker that asks again and again for one Machine's secrets,
// each time with a record, is held up, and the next Machine is not.
func TestSecretsAreFetchedSoOften(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	e.want(200, "POST", "/v1/apps/web/secrets", config{"values": config{"A": "v"}}, nil)
	greedy, other := e.launch("web", image()), e.launch("web", image())
	conn := internalpb.NewControllerClient(e.dial(role.Worker, node))
	given := 0
	for range 300 {
		_, _, err := fetch(t, conn, string(node), greedy.ID, greedy.InstanceID)
		if fault.Is(err, fault.TooMany) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		given++
	}
	if given < 20 || given == 300 {
		t.Errorf("given %d times", given)
	}
	if env, _, err := fetch(t, conn, string(node), other.ID, other.InstanceID); err != nil || env["A"] != "v" {
		t.Errorf("another machine: %v, %v", env, err)
	}
}

func refusedSecrets(t *testing.T, e *env) {
	t.Helper()
	const at = "/v1/apps/web/secrets"
	n := 0
	for _, c := range []struct {
		code           int
		sentence, path string
		body           any
	}{
		{400, "does not begin with a digit", at, config{"values": config{"1A": "v"}}},
		{400, "environment variable", at, config{"values": config{"A-B": "v"}}},
		{400, "the platform's own", at, config{"values": config{"FLY_APP_NAME": "v"}}},
		{400, "the platform's own", at, config{"values": config{"BULKHEAD_X": "v"}}},
		{400, "zero byte", at, config{"values": config{"A": "a\x00b"}}},
		{400, "at most 65536", at, config{"values": config{"A": strings.Repeat("x", 65537)}}},
		{400, "values is missing", at, config{}},
		{400, "value is missing", at + "/A", config{}},
		{404, "not found", "/v1/apps/none/secrets", config{"values": config{"A": "v"}}},
		{422, "at most 500 of 256 KiB", at, config{"values": config{"P": strings.Repeat("x", 65536), "Q": strings.Repeat("x", 65536), "R": strings.Repeat("x", 65536), "S": strings.Repeat("x", 65536)}}},
	} {
		e.refused(c.code, c.sentence, "POST", c.path, c.body)
		n++
	}
	for _, path := range []string{at + "?show_secrets=true", at + "/A?show_secrets=1", at + "?show_secrets"} {
		e.refused(403, "never shown", "GET", path, nil)
		n++
	}
	t.Logf("%d requests refused", n)
}

// encodings are the forms in which a value could have leaked.
func encodings(v string) []string {
	j, _ := json.Marshal(v)
	return []string{v, string(j[1 : len(j)-1]), hex.EncodeToString([]byte(v)), base64.RawStdEncoding.EncodeToString([]byte(v))[:len(v)], base64.RawURLEncoding.EncodeToString([]byte(v))[:len(v)]}
}

// grepFiles lists the files below dir that hold a value in any form.
func grepFiles(t *testing.T, dir, value string) (out []string) {
	t.Helper()
	files := 0
	filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err != nil || !fi.Mode().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		files++
		for _, enc := range encodings(value) {
			if bytes.Contains(b, []byte(enc)) {
				out = append(out, path)
				break
			}
		}
		return nil
	})
	if files < 5 {
		t.Fatalf("only %d files were read in %s", files, dir)
	}
	return out
}

// TestSecretKeys: every type is generated, set and used over the API, bytes in base64
// and as integers, and refused with 400.
func TestSecretKeys(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	const at = "/v1/apps/web/secretkeys"
	uses := 0
	for _, typ := range secret.Types() {
		key := at + "/" + typ + ".key"
		var made controller.SecretKeySet
		a := e.want(201, "POST", key+"/generate", config{"type": typ}, &made)
		if made.Type != typ || made.Version == 0 || strings.Contains(string(a.body), "value") {
			t.Errorf("%s", a.body)
		}
		ints := []int{104, 105}
		if enc := e.do("POST", key+"/encrypt", config{"plaintext": "aGk="}); enc.code == 200 {
			var c struct{ Ciphertext []byte }
			json.Unmarshal(enc.body, &c)
			var p struct{ Plaintext []byte }
			e.want(200, "POST", key+"/decrypt", config{"ciphertext": c.Ciphertext}, &p)
			if string(p.Plaintext) != "hi" {
				t.Errorf("%s decrypts to %q", typ, p.Plaintext)
			}
			c.Ciphertext[len(c.Ciphertext)-1] ^= 1
			e.refused(400, "was changed", "POST", key+"/decrypt", config{"ciphertext": c.Ciphertext})
			e.refused(400, "cannot sign", "POST", key+"/sign", config{"plaintext": ints})
			uses++
		} else {
			var s struct{ Signature []byte }
			e.want(200, "POST", key+"/sign", config{"plaintext": ints}, &s)
			e.want(204, "POST", key+"/verify?min_version=1", config{"plaintext": "aGk=", "signature": s.Signature}, nil)
			e.refused(400, "signature is not of this key", "POST", key+"/verify", config{"plaintext": "aGs=", "signature": s.Signature})
			uses++
		}
		e.refused(400, "no size of this type", "POST", key, config{"type": typ, "value": "eA=="})
	}
	if uses != 9 {
		t.Errorf("%d of 9 types were used", uses)
	}
	var list struct {
		Keys []controller.SecretKey `json:"secret_keys"`
	}
	e.get(at+"?types=es256,nacl_sign", &list)
	if len(list.Keys) != 2 || len(list.Keys[0].PublicKey) != 65 || len(list.Keys[1].PublicKey) != 32 {
		t.Errorf("%+v", list)
	}
	e.refused(400, "none of a secret key", "POST", at+"/k/generate", config{"type": "rsa"})
	e.refused(400, "none of a secret key", "GET", at+"?types=rsa", nil)
	e.refused(400, "secret key name", "POST", at+"/a%20b/generate", config{"type": "hs256"})
	e.refused(400, "base64", "POST", at+"/es256.key/sign", config{"plaintext": "%%%"})
	e.refused(400, "0 to 255", "POST", at+"/es256.key/sign", config{"plaintext": []int{256}})
	e.refused(400, "takes none", "POST", at+"/nacl_box.key/encrypt", config{"plaintext": "aGk=", "associated_data": "aGk="})
	e.refused(404, "no secret key", "POST", at+"/none/sign", config{"plaintext": "aGk="})
	e.want(200, "DELETE", at+"/hs256.key", nil, nil)
	e.refused(404, "no secret key", "GET", at+"/hs256.key", nil)
}

// TestClusterKeyIsNotReplaced: a controller whose cluster key is lost does not start,
// says so, and starts again when it is back.
func TestClusterKeyIsNotReplaced(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	e.want(200, "POST", "/v1/apps/web/secrets", config{"values": config{"A": "v"}}, nil)
	e.stop()
	path := filepath.Join(e.cfg.Role.DataDir, "cluster.key")
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	c := controller.New(e.cfg)
	if err := c.Open(context.Background()); err == nil || !strings.Contains(err.Error(), "the cluster key is lost") {
		t.Fatalf("it opened: %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("another key was made")
	}
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	e.startController()
	e.want(200, "POST", "/v1/apps/web/secrets", config{"values": config{"B": "w"}}, nil)
}
