package warden

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/fault"
	"bulkhead/privnet"
	"bulkhead/sandbox"
	"bulkhead/warden/client"
	"bulkhead/warden/wire"
)

// TestWardenReadsNoTrapOfAMachine: nothing in a Machine's directory belongs to its
// user, who could else put anything there; and what the shim says of a command's pid
// is bounded in size and time, also when it goes on for ever.
func TestWardenReadsNoTrapOfAMachine(t *testing.T) {
	w := newWorld(t).start()
	spec := w.spec("sleep")
	w.begin(spec)
	seen := 0
	for _, dir := range []string{w.server.runDir(spec.Machine), w.server.diskDir(spec.Machine)} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			seen++
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			if st.Uid >= privnet.UIDBase || st.Mode&0o002 != 0 || st.Gid >= privnet.UIDBase && st.Mode&0o020 != 0 {
				t.Errorf("%s belongs to user %d, group %d, with mode %#o", path, st.Uid, st.Gid, st.Mode)
			}
			return nil
		})
		if err != nil || seen < 3 {
			t.Fatalf("%d files: %v", seen, err)
		}
	}

	pid, pidw, err := pidPipe()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(pidw.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	held := os.NewFile(uintptr(fd), "held")
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		for {
			if _, err := held.Write(make([]byte, 4096)); err != nil {
				return
			}
		}
	}()
	done := make(chan struct{})
	go func() { w.server.killExec(t.Context(), spec.Machine, pid); close(done) }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Error("the warden waits for a pipe that a Machine holds open")
	}
	pid.Close()
	pidw.Close()
	<-stop // the reader has gone
	held.Close()
}

// TestShimReplyIsBounded: who took a shim answers commands with as much as it likes;
// the warden takes no more of it than a shim has to say.
func TestShimReplyIsBounded(t *testing.T) {
	w := newWorld(t).start()
	spec := w.spec("sleep")
	w.begin(spec)
	path := filepath.Join(w.server.runDir(spec.Machine), controlFile)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for size, ok := range map[int]bool{wire.MaxLog: true, wire.MaxLog + 1024: false, wire.MaxMessage - 1024: false} {
		go func() {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			defer c.Close()
			if _, _, err := wire.Receive(client.Conn{UnixConn: c}); err == nil {
				wire.Send(client.Conn{UnixConn: c}, wire.ShimReply{Status: 1<<32 - 1, Code: -1 << 31, Log: strings.Repeat("x", size)}.Marshal())
			}
		}()
		r, err := w.server.ask(testContext(t), spec.Machine, []string{"kill"})
		if (err == nil) != ok || len(r.Log) > wire.MaxLog {
			t.Errorf("a reply of %d bytes: %d bytes were taken, %v", size, len(r.Log), err)
		}
	}
}

// TestCommandsAreBounded: no caller fills the host with processes that wait for
// commands; the Machine goes on, and so do commands in others.
func TestCommandsAreBounded(t *testing.T) {
	w := newWorld(t).start()
	spec, other := w.spec("sleep"), w.spec("sleep")
	w.begin(spec)
	w.begin(other)
	var wg sync.WaitGroup
	refused, ran := make(chan error, 3*maxCommands), make(chan struct{}, 3*maxCommands)
	for range 3 * maxCommands {
		wg.Go(func() {
			r, err := w.client.Exec(testContext(t), spec.Machine, sandbox.ExecSpec{Args: []string{appPath, "sleep"}, Cwd: "/", Timeout: 3 * time.Second})
			switch {
			case err != nil:
				refused <- err
			case r.Signal != 9:
				t.Errorf("a command that took too long ended with %+v", r)
			default:
				ran <- struct{}{}
			}
		})
	}
	if code, out := w.run(other.Machine, "print", "x"); code != 0 {
		t.Errorf("another Machine's command: %d %q", code, out)
	}
	wg.Wait()
	if len(ran) != maxCommands || len(refused) != 2*maxCommands {
		t.Errorf("%d commands ran and %d were refused, the bound is %d", len(ran), len(refused), maxCommands)
	}
	for range len(refused) {
		if err := <-refused; !fault.Is(err, fault.TooMany) {
			t.Errorf("refused with %v", err)
		}
	}
	if code, out := w.run(spec.Machine, "print", "x"); code != 0 || !strings.Contains(out, "x") {
		t.Errorf("afterwards: %d %q", code, out)
	}
}
