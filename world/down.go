package world

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// StartOwn is Start with programs of the platform's own, so that Down can take one
// away.
func StartOwn(t testing.TB, flags ...string) *World {
	t.Helper()
	from, to := filepath.Join(Root(), "build", "bin"), t.TempDir()
	if err := os.Chmod(to, 0o755); err != nil {
		t.Fatal(err)
	}
	programs, err := filepath.Glob(filepath.Join(from, "bulkhead*"))
	if err != nil || len(programs) == 0 {
		t.Fatalf("no programs in %s (%v): run \"make build\"", from, err)
	}
	for _, p := range programs {
		if err := linkOrCopy(p, filepath.Join(to, filepath.Base(p))); err != nil {
			t.Fatal(err)
		}
	}
	return StartFrom(t, to, nil, flags...)
}

func linkOrCopy(from, to string) error {
	if os.Link(from, to) == nil {
		return nil
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(dst, src); err != nil {
		dst.Close()
		return err
	}
	return dst.Close()
}

// Down kills a role and keeps it from coming back: its program is gone. The platform
// must be one of StartOwn.
func (w *World) Down(role string) {
	w.T.Helper()
	program := filepath.Join(w.Bin, "bulkhead-"+role)
	pid := w.Role(role) // which goes by its program's name
	if pid == 0 {
		w.T.Fatalf("no process of role %s", role)
	}
	if err := os.Rename(program, program+".away"); err != nil {
		w.T.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		w.T.Fatalf("kill role %s: %v", role, err)
	}
	w.Eventually(10*time.Second, func() string {
		if pid := w.Role(role); pid != 0 {
			return fmt.Sprintf("role %s is process %d", role, pid)
		}
		return ""
	})
}

// Back lets a role that is Down come back, and waits until it runs.
func (w *World) Back(role string) {
	w.T.Helper()
	program := filepath.Join(w.Bin, "bulkhead-"+role)
	if err := os.Rename(program+".away", program); err != nil {
		w.T.Fatal(err)
	}
	w.Eventually(40*time.Second, func() string {
		if w.Role(role) == 0 {
			return "role " + role + " has not come back"
		}
		return ""
	})
}
