package role

import (
	"bytes"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"bulkhead/notice"
)

// TestListenerWithoutDescriptors takes the last file descriptor away: the server
// stays, the caller waits, one line says why, and it is served when there is one.
func TestListenerWithoutDescriptors(t *testing.T) {
	ul, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	l := &listener{Listener: ul, name: "api", board: notice.New(slog.New(slog.NewTextHandler(&out, nil)))}
	client, err := net.Dial("unix", ul.Addr().String()) // it lies in the queue from here on
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	free, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	next := uint64(free.Fd())
	free.Close()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: next, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	back := func() { syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was) }
	defer back()
	accepted := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			c.Close()
		}
		accepted <- err
	}()
	select {
	case err := <-accepted:
		t.Fatalf("it was accepted, or given up: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	back()
	select {
	case err := <-accepted:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it goes on waiting")
	}
	if log := out.String(); strings.Count(log, "EMFILE") != 2 || strings.Count(log, "\n") != 2 || !strings.Contains(log, `msg="over: connections wait`) {
		t.Errorf("log:\n%s", log)
	}
	ul.Close()
	if _, err := l.Accept(); err == nil {
		t.Error("a closed socket accepts")
	}
}
