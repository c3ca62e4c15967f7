package wire_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"bulkhead/sandbox"
	"bulkhead/warden/client"
	"bulkhead/warden/wire"
)

// pair returns two connected sockets: one as the worker and the warden use it, one
// as the shim does.
func pair(t *testing.T) (client.Conn, wire.FD) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "pair")
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); syscall.Close(fds[1]) })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return client.Conn{UnixConn: c.(*net.UnixConn)}, wire.FD(fds[1])
}

func TestFrames(t *testing.T) {
	if wire.MaxMessage != sandbox.MaxMessage {
		t.Errorf("limits differ: %d and %d", wire.MaxMessage, sandbox.MaxMessage)
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	file.WriteString("content")
	for _, body := range []string{"", "x", strings.Repeat("y", 3<<20)} {
		c, fd := pair(t)
		for _, way := range []struct{ from, to wire.Conn }{{c, fd}, {fd, c}} {
			sent := make(chan error, 1)
			go func() { sent <- wire.Send(way.from, []byte(body), file, file) }()
			got, files, err := wire.Receive(way.to)
			if err != nil || string(got) != body || len(files) != 2 {
				t.Fatalf("%T: %d bytes, %d files, %v", way.to, len(got), len(files), err)
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
			for _, f := range files {
				b := make([]byte, 7)
				if _, err := f.ReadAt(b, 0); err != nil || string(b) != "content" {
					t.Errorf("file holds %q, %v", b, err)
				}
				f.Close()
			}
		}
	}
}

func TestBadFrames(t *testing.T) {
	for name, raw := range map[string]string{
		"ends in the length": "\x00\x00",
		"ends in the body":   "\x00\x00\x00\x05abc",
		"too long":           "\x01\x00\x00\x01",
		"claims much":        "\x01\x00\x00\x00a",
	} {
		c, fd := pair(t)
		c.Write([]byte(raw))
		c.CloseWrite()
		if body, _, err := wire.Receive(fd); err == nil || err == io.EOF {
			t.Errorf("%s: %q, %v", name, body, err)
		}
	}
	c, fd := pair(t)
	c.CloseWrite()
	if _, _, err := wire.Receive(fd); err != io.EOF {
		t.Errorf("a clean end gives %v", err)
	}
	// Too many files, sent by hand: none stays open.
	c, fd = pair(t)
	before := openFiles(t)
	oob := syscall.UnixRights(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	if err := fd.WriteRights([]byte{0, 0, 0, 0}, oob); err != nil {
		t.Fatal(err)
	}
	if _, _, err := wire.Receive(c); err == nil {
		t.Error("ten files were taken")
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d files are open, were %d", after, before)
	}
	if err := wire.Send(fd, make([]byte, wire.MaxMessage+1)); err == nil {
		t.Error("a message over the limit was sent")
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestShimMessages(t *testing.T) {
	config := wire.ShimConfig{ID: "i", Program: "p", Init: "n", Bundle: "b", Image: "f", Cgroups: 5, Flags: []string{"--x=y z", ""}}
	if got, err := wire.ParseShimConfig(config.Args()); err != nil || strings.Join(got.Args(), "|") != strings.Join(config.Args(), "|") {
		t.Errorf("config became %+v, %v", got, err)
	}
	for _, r := range []wire.Report{{OK: true}, {Log: "1 2\n3"}} {
		if got, err := wire.ParseReport(r.Marshal()); err != nil || got != r {
			t.Errorf("report became %+v, %v", got, err)
		}
	}
	for _, r := range []wire.ShimReply{{Status: 1 << 31, Known: true, Code: 3, Log: "a\nb"}, {Code: -1}} {
		if got, err := wire.ParseShimReply(r.Marshal()); err != nil || got != r {
			t.Errorf("reply became %+v, %v", got, err)
		}
	}
	e := wire.Exit{Code: 137, Signal: 9, OOM: true, At: time.Unix(0, 1234567890123456789)}
	if got, err := wire.ParseExit(e.Marshal()); err != nil || !got.At.Equal(e.At) || got.Code != e.Code || got.Signal != e.Signal || !got.OOM {
		t.Errorf("exit became %+v, %v", got, err)
	}
	args := []string{"a", "", "b c"}
	if got := wire.ParseShimRequest(wire.ShimRequest{Args: args}.Marshal()); strings.Join(got.Args, "|") != strings.Join(args, "|") {
		t.Errorf("request became %q", got.Args)
	}
	for _, bad := range []string{"", "\n", "x y z\n", "1 2"} {
		if r, err := wire.ParseReport([]byte(bad)); err == nil {
			t.Errorf("%q is the report %+v", bad, r)
		}
		if r, err := wire.ParseShimReply([]byte(bad)); err == nil {
			t.Errorf("%q is the reply %+v", bad, r)
		}
		if r, err := wire.ParseExit([]byte(bad)); err == nil {
			t.Errorf("%q is the exit %+v", bad, r)
		}
	}
}

func TestProcesses(t *testing.T) {
	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	id, err := wire.Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wire.OpenProcess(wire.Process{PID: id.PID, Start: id.Start + 1}); err == nil {
		t.Error("another process with the same pid was opened")
	}
	f, err := wire.OpenProcess(id)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 2 {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		if err := wire.WaitProcess(ctx, f); err != context.DeadlineExceeded {
			t.Errorf("waiting for what runs gives %v", err)
		}
		cancel()
	}
	stdin.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for range 2 {
		if err := wire.WaitProcess(ctx, f); err != nil {
			t.Errorf("waiting for what has ended gives %v", err)
		}
	}
	cmd.Wait()
	if _, err := wire.OpenProcess(id); err == nil {
		t.Error("a process that is no more was opened")
	}
	if _, err := wire.Identify(1 << 30); err == nil {
		t.Error("there is a process 2^30")
	}
}

// FuzzReceive reads whatever comes; it must neither panic nor take more than a frame.
func FuzzReceive(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		body, _, err := wire.Receive(reader{bytes.NewReader(raw)})
		if err == nil && len(body) != len(raw)-4 && len(body) > len(raw) {
			t.Errorf("%d bytes of %d", len(body), len(raw))
		}
	})
}

// reader is a wire.Conn without files.
type reader struct{ *bytes.Reader }

func (reader) Write(b []byte) (int, error)     { return len(b), nil }
func (reader) WriteRights(b, oob []byte) error { return nil }
func (r reader) ReadRights(b, oob []byte) (n, oobn int, truncated bool, err error) {
	n, err = r.Read(b)
	if err == io.EOF {
		err = nil
	}
	return n, 0, false, err
}
