package worker

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	"bulkhead/api/internalpb"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/sandbox"
)

// filesConfig has one file of each kind.
const filesConfig = `{"image":"web","files":[
	{"guest_path":"/etc/plain","raw_value":"cGxhaW4="},
	{"guest_path":"/etc/tls/key.pem","secret_name":"KEY","mode":256},
	{"guest_path":"/srv/copy","secret_name":"KEY"}]}`

// TestSecretFilesReachTheSandbox: contents travel with what is secret; the archive, which
// the warden writes down, has empty files with their mode. A change comes with the next
// start, and what is wrong with a secret keeps the start from happening, by name.
func TestSecretFilesReachTheSandbox(t *testing.T) {
	n, s := secretive(t)
	content := append([]byte{0, 0xff}, "planted-file-content"...)
	wrapped := base64.StdEncoding.EncodeToString(content)
	wrapped = wrapped[:8] + "\n" + wrapped[8:] + "\n" // as base64(1) does
	s.set(func() { s.values = map[string]string{"KEY": wrapped} })
	a := n.assign(n.asg(secretID, filesConfig, func(a *internalpb.Assignment) { a.SecretsVersion = 3 }))
	n.state(a, machine.Started)
	spec, _ := n.host.Spec(secretID)
	if len(spec.SecretFiles) != 2 || spec.SecretFiles[0].Path != "/etc/tls/key.pem" || !bytes.Equal(spec.SecretFiles[1].Content, content) {
		t.Fatalf("the sandbox is given %d files", len(spec.SecretFiles))
	}
	modes := map[string]int64{}
	for r := tar.NewReader(bytes.NewReader(spec.Upper)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg && h.Size == 0 {
			modes[h.Name] = h.Mode
		}
	}
	if len(modes) != 2 || modes["./etc/tls/key.pem"] != 0o400 || modes["./srv/copy"] != 0o644 {
		t.Errorf("empty files of the archive: %v", modes)
	}
	core := []byte("planted-file-content")
	if bytes.Contains(spec.Upper, core) || bytes.Contains(spec.Upper, []byte(wrapped[8:24])) {
		t.Error("the archive, which the warden writes into a file, holds the content")
	}
	if b, err := json.Marshal(spec); err != nil || bytes.Contains(b, core) || bytes.Contains(b, []byte("SecretFiles")) {
		t.Errorf("the message to the warden holds the content, or cannot be made: %v", err)
	}
	for name, b := range filesBelow(t, n.dir) {
		if bytes.Contains(b, core) || bytes.Contains(b, []byte(wrapped[:8])) {
			t.Errorf("%s holds the content", name)
		}
	}

	// Another value, and variables kept from the process: files have nothing to do with that.
	s.set(func() { s.version, s.values["KEY"] = 4, base64.StdEncoding.EncodeToString([]byte("new")) })
	b := n.assign(n.next(a, func(a *internalpb.Assignment) {
		a.RestartNonce, a.InstanceId = 1, string(key.NewInstanceID())
		a.Config = []byte(strings.Replace(filesConfig, `"image"`, `"processes":[{"ignore_app_secrets":true}],"image"`, 1))
	}))
	n.until(secretID, "the new version", func(r *record) bool { return r.State == machine.Started && r.Secrets == 4 && r.HasSecrets })
	if spec, _ := n.host.Spec(secretID); len(spec.Secrets) != 0 || string(spec.SecretFiles[0].Content) != "new" {
		t.Errorf("given %q and %d files", spec.Secrets, len(spec.SecretFiles))
	}
	c := n.assign(n.next(b, desired(machine.WantStopped)))
	n.state(c, machine.Stopped)
	n.until(secretID, "the sandbox's removal", func(r *record) bool { return r.Sandbox == "" })
	if _, ok := n.w.vault.get(secretID); ok {
		t.Error("the secrets of a stopped machine are kept")
	}
}

// TestSecretFilesRefused: the error names the field and the secret, and holds nothing of
// its value.
func TestSecretFilesRefused(t *testing.T) {
	file := func(name string) machine.File { return machine.File{GuestPath: "/f", SecretName: &name} }
	values := map[string]string{
		"GOOD": "cGxhaW4=", "EMPTY": "", "TEXT": "planted: not base64", "SHORT": "cGxhaW4", "URL": "_-__",
		"LARGE": base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("x"), 48<<10)),
	}
	b, _ := json.Marshal(values)
	h := opened{values: b}
	many := make([]machine.File, sandbox.MaxStrings/(64<<10)+1)
	for i := range many {
		many[i] = file("LARGE")
	}
	for _, c := range []struct {
		name, want string
		files      []machine.File
		env        []string
	}{
		{"good", "", []machine.File{file("GOOD"), file("EMPTY"), file("LARGE")}, []string{"A=b"}},
		{"missing", `config.files[2].secret_name: the machine is started with no secret "NONE"`, []machine.File{file("GOOD"), {GuestPath: "/r", RawValue: new(string)}, file("NONE")}, nil},
		{"text", "config.files[0].secret_name: the value of secret TEXT is not base64", []machine.File{file("TEXT")}, nil},
		{"no padding", "secret SHORT is not base64", []machine.File{file("SHORT")}, nil},
		{"another alphabet", "secret URL is not base64", []machine.File{file("URL")}, nil},
		{"one too many", fmt.Sprintf("config.files[%d].secret_name: the secrets of variables and files take more than", len(many)-2), many, nil},
		{"no room beside variables", "config.files[0].secret_name: the secrets of variables and files", many[:1], []string{"A=" + strings.Repeat("x", sandbox.MaxStrings-(64<<10))}},
	} {
		got, err := h.files(&machine.Config{Files: c.files}, c.env)
		switch {
		case c.want == "" && (err != nil || len(got) != len(c.files)):
			t.Errorf("%s: %d files, %v", c.name, len(got), err)
		case c.want != "" && (!fault.Is(err, fault.Unprocessable) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "planted")):
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	if _, err := (opened{}).files(&machine.Config{Files: []machine.File{file("GOOD")}}, nil); !fault.Is(err, fault.Unprocessable) {
		t.Errorf("a machine that gets no secrets: %v", err)
	}
}
