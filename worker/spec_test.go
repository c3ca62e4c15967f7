package worker

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"bulkhead/fault"
	"bulkhead/image"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/sandbox"
)

func TestCommand(t *testing.T) {
	img := image.Config{Entrypoint: []string{"/entry"}, Cmd: []string{"serve"}}
	l := func(s ...string) []string { return s }
	for _, c := range []struct {
		init *machine.Init
		p    machine.Process
		want string
	}{
		{nil, machine.Process{}, "[/entry serve]"},
		{&machine.Init{Cmd: l("other")}, machine.Process{}, "[/entry other]"},
		{&machine.Init{Entrypoint: l("/e2")}, machine.Process{}, "[/e2]"},
		{&machine.Init{Entrypoint: l("/e2"), Cmd: l("c2")}, machine.Process{}, "[/e2 c2]"},
		{&machine.Init{Exec: l("/x", "y"), Cmd: l("c2")}, machine.Process{}, "[/x y]"},
		{&machine.Init{Cmd: l("c2")}, machine.Process{Cmd: l("c3")}, "[/entry c3]"},
		{&machine.Init{Exec: l("/x")}, machine.Process{Exec: l("/p")}, "[/p]"},
	} {
		if got := fmt.Sprint(command(c.init, c.p, img)); got != c.want {
			t.Errorf("%+v %+v: %s, want %s", c.init, c.p, got, c.want)
		}
	}
	if got := command(nil, machine.Process{}, image.Config{}); len(got) != 0 {
		t.Errorf("an image without a command gave %q", got)
	}
	if fmt.Sprint(img.Entrypoint, img.Cmd) != "[/entry] [serve]" {
		t.Error("the image's config was changed")
	}
}

func TestSpec(t *testing.T) {
	n := newNode(t)
	n.boot()
	id := key.NewMachineID()
	cfg := `{"image":"app","env":{"FROM_IMAGE":"config","FLY_REGION":"mine","C":"1"},"guest":{"memory_mb":512},
	  "metadata":{"fly_process_group":"web"},"processes":[{"user":"1000:50","env":{"C":"2"}}],
	  "dns":{"hostname":"db-1","hostname_fqdn":"db-1.example.com","searches":["example.com"],"options":[{"name":"ndots","value":"2"}]},
	  "files":[{"guest_path":"/etc/app/conf","raw_value":"aGk=","mode":384},{"guest_path":"/etc/hostname","raw_value":"bXkK"}]}`
	a := &actor{w: n.w, id: id, rec: &record{Slot: 9, Machine: id}, asg: n.asg(id, cfg)}
	s, err := a.spec(&image.Image{Digest: digestA, Config: image.Config{Cmd: []string{"sleep"}, Env: []string{"FROM_IMAGE=1", "PATH=/image"}, WorkingDir: "srv/../app"}})
	if err != nil {
		t.Fatal(err)
	}
	if s.Machine != id || s.Slot != 9 || s.Image != digestA || s.Cwd != "/app" || s.UID != 1000 || s.GID != 50 || s.Hostname != "db-1" || string(s.Instance) != a.asg.InstanceId || len(s.Grant) == 0 {
		t.Errorf("%+v", s)
	}
	env := strings.Join(s.Env, "\n") + "\n"
	for _, want := range []string{
		"FROM_IMAGE=config", "PATH=/image", "FLY_REGION=mine", "C=2", "HOME=/", "FLY_APP_NAME=web", "FLY_MACHINE_ID=" + string(id), "FLY_ALLOC_ID=" + string(id),
		"FLY_IMAGE_REF=app@" + string(digestA), "FLY_MACHINE_VERSION=" + a.asg.InstanceId, "FLY_PRIVATE_IP=fdaa:0:5:0:7:0:9:2", "FLY_VM_MEMORY_MB=512",
		"FLY_PROCESS_GROUP=web", "PRIMARY_REGION=local", "BULKHEAD_MACHINE_ID=" + string(id), "BULKHEAD_PRIVATE_IP=fdaa:0:5:0:7:0:9:2",
	} {
		if !strings.Contains(env, want+"\n") {
			t.Errorf("%q is not in the environment:\n%s", want, env)
		}
	}
	files, order := untar(t, s.Upper)
	for _, want := range []struct{ name, content string }{
		{"./etc/hostname", "my\n"},
		{"./etc/app/conf", "hi"},
		{"./etc/resolv.conf", "nameserver 9.9.9.9\nsearch example.com\noptions ndots:2\n"},
	} {
		if files[want.name] != want.content {
			t.Errorf("%s is %q, want %q", want.name, files[want.name], want.content)
		}
	}
	if !strings.Contains(files["./etc/hosts"], "fdaa:0:5:0:7:0:9:2\tfly-local-6pn db-1.example.com db-1\n") || !strings.HasPrefix(files["./etc/hosts"], "127.0.0.1\tlocalhost") {
		t.Errorf("/etc/hosts:\n%s", files["./etc/hosts"])
	}
	if !slices.IsSorted(order) {
		t.Errorf("order: %q", order)
	}
}

// untar reads an upper archive.
func untar(t *testing.T, b []byte) (files map[string]string, order []string) {
	files = map[string]string{}
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return files, order
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 {
			t.Fatalf("entry %q belongs to %d:%d", h.Name, h.Uid, h.Gid)
		}
		order = append(order, h.Name)
		c, _ := io.ReadAll(r)
		if h.Typeflag == tar.TypeReg {
			files[h.Name] = string(c)
		}
	}
}

func TestUpper(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		files := map[string]file{}
		for range rapid.IntRange(0, 8).Draw(t, "n") {
			parts := rapid.SliceOfN(rapid.StringMatching(`[a-z.-]{1,3}`), 1, 4).Draw(t, "path")
			p := path.Clean("/" + strings.Join(parts, "/"))
			if p != "/" {
				files[p] = file{[]byte(p), 0o644}
			}
		}
		b, err := upper(files)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("%v", err)
			}
			return
		}
		again, _ := upper(files)
		if !bytes.Equal(b, again) {
			t.Fatalf("two archives of the same files differ")
		}
		got := map[string]string{}
		r := tar.NewReader(bytes.NewReader(b))
		for {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%v", err)
			}
			name := path.Clean(strings.TrimPrefix(h.Name, "."))
			if !strings.HasPrefix(h.Name, "./") || h.Typeflag != tar.TypeReg {
				t.Fatalf("%q of type %q is no file below the root", h.Name, h.Typeflag)
			}
			c, _ := io.ReadAll(r)
			got[name] = string(c)
		}
		if len(got) != len(files) {
			t.Fatalf("%d files of %d", len(got), len(files))
		}
		for p := range files {
			if got[p] != p {
				t.Fatalf("%s holds %q", p, got[p])
			}
		}
	})
}

func TestUpperIsBounded(t *testing.T) {
	_, err := upper(map[string]file{"/big": {make([]byte, sandbox.MaxUpper), 0o644}})
	if !fault.Is(err, fault.Unprocessable) {
		t.Fatal(err)
	}
	raw := base64.StdEncoding.EncodeToString([]byte("x"))
	for _, p := range []string{"etc/x", "/../x", "/", "/a//b"} {
		cfg := &machine.Config{Files: []machine.File{{GuestPath: p, RawValue: &raw}}}
		if _, err := machineFiles(cfg, "0123456789abcd", "", nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", p, err)
		}
	}
}
