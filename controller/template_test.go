package controller_test

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"bulkhead/controller"
)

// template is an installation as it is after its first user came: a controller has made its
// directory in the ordinary way, and has ended. Tests begin with a copy of it, so that the
// keys of the authority and of the issuer are made once.
var template struct {
	once  sync.Once
	dir   string // "" when it could not be made
	token string // of the user "admin"
}

// fromTemplate fills the directory of e with a copy of the template, and returns the token of
// the user "admin".
func (e *env) fromTemplate() (token string) {
	e.t.Helper()
	template.once.Do(func() {
		dir, err := os.MkdirTemp("", "bh")
		if err != nil {
			e.t.Fatal(err)
		}
		defer controller.Ahead(0)() // whatever the clock of the test that is the first
		first := newInstallation(e.t, dir)
		first.startController()
		first.login()
		template.token = first.claim(first.mint(""), "admin")
		first.awaitIssuer()
		first.stop()
		template.dir = dir
	})
	if template.dir == "" {
		e.t.Fatal("there is no template: the first test could not make it")
	}
	if err := copyInstallation(e.dir, template.dir); err != nil {
		e.t.Fatal(err)
	}
	return template.token
}

// removeTemplate is for the end of all tests.
func removeTemplate() { os.RemoveAll(template.dir) }

// copyInstallation copies files and directories; sockets, and the space that the store has
// reserved for what it will write, are made by whoever opens the copy.
func copyInstallation(to, from string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		dst := filepath.Join(to, strings.TrimPrefix(path, from))
		switch {
		case d.IsDir():
			return os.MkdirAll(dst, 0o700)
		case !d.Type().IsRegular() || strings.HasSuffix(path, ".tmp"):
			return nil
		}
		return copySparse(dst, path)
	})
}

// copySparse copies a file, and leaves holes where it has zeros: the store's log is 64 MiB of
// them.
func copySparse(to, from string) (err error) {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	st, err := r.Stat()
	if err != nil {
		return err
	}
	w, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, st.Mode().Perm())
	if err != nil {
		return err
	}
	defer func() {
		if cerr := w.Close(); err == nil {
			err = cerr
		}
	}()
	if err := w.Truncate(st.Size()); err != nil {
		return err
	}
	buf, zero := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); ; {
		n, err := r.Read(buf)
		if n > 0 && !bytes.Equal(buf[:n], zero[:n]) {
			if _, err := w.WriteAt(buf[:n], at); err != nil {
				return err
			}
		}
		if at += int64(n); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// TestTemplate: a copy of the template is an installation as a first start makes it.
func TestTemplate(t *testing.T) {
	dir, err := os.MkdirTemp("", "bh")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	first := newInstallation(t, dir)
	first.startController()
	first.login()
	first.token = first.claim(first.mint(""), "admin")
	first.awaitIssuer()
	made := first.state()
	first.stop()
	if e := newEnvWithoutWorker(t); e.state() != made {
		t.Errorf("a first start makes\n%s\nand the copy has\n%s", made, e.state())
	}
}
