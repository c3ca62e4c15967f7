package etcd_test

import (
	"context"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead/fault"
	"bulkhead/store"
	"bulkhead/store/etcd"
	"bulkhead/store/storetest"
)

func open(dir string) (*etcd.Store, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return etcd.Open(ctx, etcd.Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
}

// shortDir is a directory whose sockets' paths are short enough.
func shortDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "bh")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestConformance(t *testing.T) {
	dirs := map[store.Store]string{}
	storetest.Run(t, storetest.Harness{
		Open: func() (store.Store, error) {
			dir := shortDir(t)
			s, err := open(dir)
			if err != nil {
				return nil, err
			}
			dirs[s] = dir
			return s, nil
		},
		Reopen: func(s store.Store) (store.Store, error) {
			if err := s.Close(); err != nil {
				return nil, err
			}
			return open(dirs[s])
		},
		Compact: func(s store.Store) error { return s.(*etcd.Store).Compact(context.Background()) },
	})
}

func TestSecondProcessOnOneDirectoryIsRefused(t *testing.T) {
	dir := shortDir(t)
	s, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := open(dir); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("second open: %v", err)
	}
}

func TestLongSocketPathIsRefused(t *testing.T) {
	dir := filepath.Join(shortDir(t), strings.Repeat("x", 100))
	if _, err := open(dir); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "107 bytes") {
		t.Fatalf("open with a long path: %v", err)
	}
}

// TestKillLosesNothingAcknowledged kills a writing process and counts what it had
// been told was written.
func TestKillLosesNothingAcknowledged(t *testing.T) {
	if d := os.Getenv("STORE_WRITER"); d != "" {
		writeUntilKilled(d)
	}
	dir := shortDir(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestKillLosesNothingAcknowledged$")
	cmd.Env = append(os.Environ(), "STORE_WRITER="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	acked := 0
	buf := make([]byte, 1)
	for acked < 300 {
		if _, err := out.Read(buf); err != nil {
			t.Fatalf("the writer ended after %d: %v", acked, err)
		}
		acked++
	}
	cmd.Process.Kill()
	for {
		n, err := out.Read(make([]byte, 1024))
		acked += n
		if err != nil {
			break
		}
	}
	cmd.Wait()
	s, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	kvs, _, err := s.List(context.Background(), "/k/")
	if err != nil || len(kvs) < acked {
		t.Fatalf("%d writes were acknowledged, %d are there: %v", acked, len(kvs), err)
	}
	t.Logf("%d acknowledged, %d there", acked, len(kvs))
}

func writeUntilKilled(dir string) {
	s, err := open(dir)
	if err != nil {
		os.Exit(1)
	}
	for i := 0; ; i++ {
		key := "/k/" + strings.Repeat("k", i/200) + string(rune('a'+i%200))
		if _, err := s.Txn(context.Background(), nil, []store.Op{store.Put(key, make([]byte, 300))}); err != nil {
			os.Exit(1)
		}
		os.Stdout.Write([]byte{'.'})
	}
}

// TestNoTCPPort looks at every listening TCP socket of this process.
func TestNoTCPPort(t *testing.T) {
	s, err := open(shortDir(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got := listening(t); len(got) != 0 {
		t.Fatalf("the store listens on %v", got)
	}
	// Control: the test sees a port when there is one.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if len(listening(t)) == 0 {
		t.Fatal("the test does not see a listening port")
	}
}

// listening returns the inodes of this process's listening TCP sockets.
func listening(t *testing.T) []string {
	t.Helper()
	mine := map[string]bool{}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if l, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(l, "socket:[") {
			mine[strings.Trim(l[len("socket:"):], "[]")] = true
		}
	}
	var out []string
	for _, table := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		b, err := os.ReadFile(table)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(string(b), "\n")[1:] {
			f := strings.Fields(line)
			if len(f) > 9 && f[3] == "0A" && mine[f[9]] {
				out = append(out, f[1])
			}
		}
	}
	return out
}
