package handover

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain makes this program also the one that takes sockets, and the one that
// replaces itself with them.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "take" {
		in := Take()
		l := in.Listener("web", os.Args[2])
		fmt.Printf("exec %v, found %v, unused %v, env %q\n", in.Exec, l != nil, in.Close(), os.Getenv(Env)+os.Getenv("LISTEN_FDS"))
		os.Exit(0)
	}
	if len(os.Args) == 3 && os.Args[1] == "exec" {
		l, err := net.Listen("tcp", os.Args[2])
		if err != nil {
			panic(err)
		}
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			panic(err)
		}
		if err := Exec("/nonexistent", nil, nil, map[string]*os.File{"web": f}); !errors.Is(err, os.ErrNotExist) {
			panic(err)
		}
		// The first try left nothing open and nothing changed.
		panic(Exec("/proc/self/exe", []string{os.Args[0], "take", l.Addr().String()}, os.Environ(), map[string]*os.File{"web": f}))
	}
	os.Exit(m.Run())
}

// TestExec replaces a program; the next one has the socket, and nothing else.
func TestExec(t *testing.T) {
	out, err := exec.Command("/proc/self/exe", "exec", "127.0.0.1:0").CombinedOutput()
	if want := "exec true, found true, unused [], env \"\"\n"; err != nil || string(out) != want {
		t.Errorf("%q, %v; want %q", out, err, want)
	}
}

// TestStore plays the service manager: it gets the sockets, and gives them to another
// process as systemd does.
func TestStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	manager.SetReadDeadline(time.Now().Add(20 * time.Second))
	l, f := listen(t, "tcp", "127.0.0.1:0")
	addr := l.Addr().String()
	if err := Store(path, "web", f); err != nil {
		t.Fatal(err)
	}
	if err := Forget(path, "old"); err != nil {
		t.Fatal(err)
	}
	l.Close()
	f.Close()

	stored, message := receive(t, manager)
	if message != "FDSTORE=1\nFDNAME=web" || stored == nil {
		t.Fatalf("stored: %q", message)
	}
	if none, message := receive(t, manager); message != "FDSTOREREMOVE=1\nFDNAME=old" || none != nil {
		t.Errorf("removed: %q", message)
	}
	// The owner is gone, and a client can connect all the same.
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	for _, w := range []struct{ names, addr, want string }{
		{"web", addr, "exec false, found true, unused [], env \"\"\n"},
		{"web", "127.0.0.1:1", "exec false, found false, unused [web], env \"\"\n"},
		{"other", addr, "exec false, found false, unused [other], env \"\"\n"},
	} {
		cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, self(t), "take", w.addr)
		cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "LISTEN_FDNAMES="+w.names)
		cmd.ExtraFiles = []*os.File{stored}
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != w.want {
			t.Errorf("%s at %s: %q, %v; want %q", w.names, w.addr, out, err, w.want)
		}
	}
}

// TestListensAt shows what is not taken for the wanted socket.
func TestListensAt(t *testing.T) {
	_, every := listen(t, "tcp", ":0")
	l4, one := listen(t, "tcp4", "127.0.0.1:0")
	l6, six := listen(t, "tcp6", "[::1]:0")
	_, six6 := listen(t, "tcp6", "[::]:0") // Go makes it IPv6 only
	_, local := listen(t, "unix", filepath.Join(t.TempDir(), "s"))
	c, err := net.Dial("tcp", l4.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	client, err := c.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	packets, err := udp.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	for _, w := range []struct {
		f          *os.File
		addr, want string
	}{
		{every, ":0", ""}, {every, "0.0.0.0:0", ""}, {every, "[::]:0", ""},
		{every, "127.0.0.1:0", "listens at"}, {every, ":1", "listens at"},
		{one, l4.Addr().String(), ""}, {one, "127.0.0.1:0", ""},
		{one, "127.0.0.1:1", "listens at"}, {one, "127.0.0.2:0", "listens at"}, {one, ":0", "listens at"},
		{six, l6.Addr().String(), ""}, {six6, "[::]:0", "IPv6 only"},
		{client, ":0", "not listening"}, {packets, ":0", "not a stream"}, {local, ":0", "not TCP"},
	} {
		err := listensAt(w.f, w.addr)
		if w.want == "" && err != nil || w.want != "" && (err == nil || !strings.Contains(err.Error(), w.want)) {
			t.Errorf("at %s: %v, want %q", w.addr, err, w.want)
		}
	}
}

// self is this program's own path: /proc/self/exe would be the shell's.
func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func listen(t *testing.T, network, addr string) (net.Listener, *os.File) {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); f.Close() })
	return l, f
}

// receive returns one message and the descriptor that came with it.
func receive(t *testing.T, c *net.UnixConn) (*os.File, string) {
	t.Helper()
	b, oob := make([]byte, 256), make([]byte, unix.CmsgSpace(4))
	n, k, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		t.Fatal(err)
	}
	message := string(bytes.TrimSpace(b[:n]))
	if k == 0 {
		return nil, message
	}
	cms, err := unix.ParseSocketControlMessage(oob[:k])
	if err != nil || len(cms) != 1 {
		t.Fatalf("%d control messages, %v", len(cms), err)
	}
	fds, err := unix.ParseUnixRights(&cms[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("%d descriptors, %v", len(fds), err)
	}
	f := os.NewFile(uintptr(fds[0]), "stored")
	t.Cleanup(func() { f.Close() })
	return f, message
}
