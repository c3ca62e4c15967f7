package warden

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"bulkhead/grant"
	"bulkhead/image/erofs"
	"bulkhead/key"
	"bulkhead/privnet"
	"bulkhead/role"
	"bulkhead/sandbox"
	"bulkhead/warden/client"
)

// libDir holds the programs, built once; appPath is the test program in the image.
var libDir string

const appPath = "/bin/testapp"

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests make namespaces and cgroups; run them as root: sudo -E go test ./warden/...")
		os.Exit(1)
	}
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "bh")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	os.Chmod(dir, 0o755)
	libDir = dir
	for pkg, wd := range map[string]string{
		"./cmd/bulkhead-shim": "..", "./cmd/bulkhead-warden": "..", "./sandbox/sandboxtest/testapp": "..", ".": "../cmd/bulkhead-sandbox",
	} {
		name := filepath.Base(pkg)
		if pkg == "." {
			name = "bulkhead-sandbox"
		}
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, name), pkg)
		cmd.Dir, cmd.Env = wd, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", name, err, out)
			return 1
		}
	}
	if out, err := exec.Command("../scripts/build-init", filepath.Join(dir, "bulkhead-init")).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build bulkhead-init: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// world is one installation.
type world struct {
	t      testing.TB
	dir    string
	config Config
	key    ed25519.PrivateKey
	image  key.Digest
	client workerClient
	socket *net.UnixListener

	slot   atomic.Uint32
	server *Server
	stop   func()
}

var tags atomic.Uint32

// newWorld makes an installation without a warden in it, and takes it down at the end.
func newWorld(t testing.TB) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "bhw")
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(dir, 0o711)
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(testLog{t}, nil))
	w := &world{t: t, dir: dir, key: priv, config: Config{
		Node: "node-1", Host: 1, Tag: fmt.Sprintf("t%d", tags.Add(1)+uint32(os.Getpid()%90)*10),
		RunDir: filepath.Join(dir, "run"), MachineDir: filepath.Join(dir, "machines"), ImageDir: filepath.Join(dir, "images"), LibDir: libDir, DataDir: dir,
		WorkerUID: workerUID, GrantKey: pub, Log: log,
	}}
	for _, d := range []string{w.config.RunDir, w.config.ImageDir} {
		if err := os.Mkdir(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	w.image = writeImage(t, w.config.ImageDir)
	path := filepath.Join(dir, "warden.sock")
	if w.socket, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	w.client = workerClient{client.New(path)}
	t.Cleanup(func() {
		if w.stop != nil {
			w.stop()
		}
		w.socket.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := Teardown(ctx, w.config); err != nil {
			t.Errorf("teardown: %v", err)
		}
		os.RemoveAll(dir)
	})
	return w
}

// start runs a warden in this process until stop is called. The socket stays open,
// as bulkheadd keeps it.
func (w *world) start() *world {
	w.t.Helper()
	f, err := w.socket.File()
	if err != nil {
		w.t.Fatal(err)
	}
	l, err := net.FileListener(f)
	f.Close()
	if err != nil {
		w.t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	s := New(w.config)
	ctx, cancel := context.WithCancel(context.Background())
	if err := s.Open(ctx); err != nil {
		w.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { s.Serve(ctx, l); close(done) }()
	w.server = s
	w.stop = func() {
		cancel()
		<-done
		s.Close()
		w.stop = nil
	}
	return w
}

// startProcess runs the real program and returns it.
func (w *world) startProcess() *exec.Cmd {
	w.t.Helper()
	keyFile, configFile := filepath.Join(w.dir, "grant.pub"), filepath.Join(w.dir, "warden.json")
	if err := os.WriteFile(keyFile, w.config.GrantKey, 0o644); err != nil {
		w.t.Fatal(err)
	}
	b, err := json.Marshal(role.Config{
		Role: role.Warden, Node: w.config.Node, Host: w.config.Host, Tag: w.config.Tag, DataDir: w.config.DataDir, RunDir: w.config.RunDir, LibDir: libDir,
		UIDs: map[string]uint32{role.Worker: w.config.WorkerUID}, GrantKeyFile: keyFile, ImageDir: w.config.ImageDir, MachineDir: w.config.MachineDir,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(configFile, b, 0o600); err != nil {
		w.t.Fatal(err)
	}
	sock, err := w.socket.File()
	if err != nil {
		w.t.Fatal(err)
	}
	defer sock.Close()
	ready, readyW, err := os.Pipe()
	if err != nil {
		w.t.Fatal(err)
	}
	defer ready.Close()
	cmd := exec.Command(filepath.Join(libDir, "bulkhead-warden"), configFile)
	cmd.Env = append(os.Environ(), "LISTEN_FDS=2", "LISTEN_FDNAMES="+role.SocketWarden+":ready")
	cmd.ExtraFiles = []*os.File{sock, readyW}
	cmd.Stderr = testLog{w.t}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Start()
	readyW.Close()
	if err != nil {
		w.t.Fatal(err)
	}
	w.stop = func() {
		cmd.Process.Kill()
		cmd.Wait()
		w.stop = nil
	}
	ready.SetReadDeadline(time.Now().Add(30 * time.Second))
	if n, err := ready.Read(make([]byte, 16)); n == 0 {
		w.t.Fatalf("the warden did not become ready: %v", err)
	}
	return cmd
}

// spec returns a good spec in network 7.
func (w *world) spec(args ...string) sandbox.Spec { return w.specIn(7, args...) }

// specIn returns a good spec in a network.
func (w *world) specIn(n privnet.Network, args ...string) sandbox.Spec {
	s := sandbox.Spec{
		Machine: key.NewMachineID(), Instance: key.NewInstanceID(), Slot: privnet.Slot(w.slot.Add(1)), Image: w.image,
		Args: append([]string{appPath}, args...), Env: []string{"PATH=/bin"}, Cwd: "/", Hostname: "test",
	}
	return w.grant(s, grant.Grant{Network: n, CPUs: 1, MemoryMB: 128, MaxPIDs: 1024, DiskMB: 512})
}

// grant signs a grant for s.
func (w *world) grant(s sandbox.Spec, g grant.Grant) sandbox.Spec {
	g.Machine, g.Instance = s.Machine, s.Instance
	if g.Node == "" {
		g.Node = w.config.Node
	}
	if g.Generation == 0 {
		g.Generation = 1
	}
	if g.Ends == 0 {
		g.Ends = grant.End(g.Node, time.Now()).Unix()
	}
	var err error
	if s.Grant, s.GrantSignature, err = grant.Sign(w.key, g); err != nil {
		w.t.Fatal(err)
	}
	return s
}

// regrant signs a grant for s of a generation and an end; the zero time is none, as in
// grants of older versions.
func (w *world) regrant(s sandbox.Spec, generation int64, ends time.Time) sandbox.Spec {
	g := grant.Grant{
		Machine: s.Machine, Instance: s.Instance, Node: w.config.Node, Network: 7, Generation: generation,
		CPUs: 1, MemoryMB: 128, MaxPIDs: 1024, DiskMB: 512,
	}
	if !ends.IsZero() {
		g.Ends = ends.Unix()
	}
	var err error
	if s.Grant, s.GrantSignature, err = grant.Sign(w.key, g); err != nil {
		w.t.Fatal(err)
	}
	return s
}

// imageOut is an image being written; nothing in it is ever deleted.
type imageOut struct{ *os.File }

func (imageOut) Punch(off, size int64) error { return nil }

// writeImage makes a sealed image that holds the test program.
func writeImage(t testing.TB, dir string) key.Digest {
	t.Helper()
	app, err := os.Open(filepath.Join(libDir, "testapp"))
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	st, err := app.Stat()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte("the test image"))
	d := key.Digest("sha256:" + hex.EncodeToString(sum[:]))
	f, err := os.OpenFile(filepath.Join(dir, d.Hex()+".erofs"), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o444)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Chown(workerUID, workerUID); err != nil {
		t.Fatal(err)
	}
	w := erofs.NewWriter(imageOut{f})
	data, err := w.Append(app, uint64(st.Size()))
	if err != nil {
		t.Fatal(err)
	}
	text := func(s string) erofs.Extent {
		e, err := w.Append(strings.NewReader(s), uint64(len(s)))
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	file := func(mode uint16, e erofs.Extent) *erofs.Inode {
		return &erofs.Inode{Mode: erofs.TypeReg | mode, Data: e}
	}
	folder := func(entries ...erofs.Dirent) *erofs.Inode {
		return &erofs.Inode{Mode: erofs.TypeDir | 0o755, Entries: entries}
	}
	tmp := folder()
	tmp.Mode |= 0o1777
	_, _, err = w.Finish(folder(
		erofs.Dirent{Name: "bin", Inode: folder(
			erofs.Dirent{Name: "testapp", Inode: file(0o755, data)},
			erofs.Dirent{Name: "plain", Inode: file(0o644, text("not executable"))},
			erofs.Dirent{Name: "foreign", Inode: file(0o755, text("\x7fELF\x02\x01\x01"+strings.Repeat("\x00", 9)+"\x02\x00\xf3\x00\x01\x00\x00\x00"+strings.Repeat("\x00", 40)))},
			erofs.Dirent{Name: "noise", Inode: file(0o755, text("this is no program\n"))},
		)},
		erofs.Dirent{Name: "etc", Inode: folder(erofs.Dirent{Name: "hosts", Inode: file(0o644, text("from the image\n"))})},
		erofs.Dirent{Name: "tmp", Inode: tmp},
	))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// testLog writes a process's log to the test's.
type testLog struct{ t testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Logf("%s", strings.TrimSpace(string(b)))
	return len(b), nil
}

func freshKey(t testing.TB) ed25519.PrivateKey {
	_, k, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func dialWarden(w *world) (c *net.UnixConn, err error) {
	as(workerUID, func() { c, err = net.DialUnix("unix", nil, w.socket.Addr().(*net.UnixAddr)) })
	return c, err
}
