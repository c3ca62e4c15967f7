package doctor

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain makes this program also the stranger, and a process that does nothing.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == StrangerCommand {
		syscall.Exit(Stranger(os.Args[2:])) // os.Exit waits a second for the race detector
	}
	if len(os.Args) > 1 && os.Args[1] == "idle" {
		unix.Pause() // not select {}: without cgo the runtime calls that a deadlock
	}
	os.Exit(m.Run())
}

// seed listens on something for the time of a test and returns its address.
func seed(t *testing.T, network, addr string) string {
	t.Helper()
	var c interface{ Close() error }
	var at net.Addr
	if strings.HasPrefix(network, "udp") || network == "unixgram" {
		p, err := net.ListenPacket(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		c, at = p, p.LocalAddr()
	} else {
		l, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		c, at = l, l.Addr()
		if strings.HasPrefix(network, "tcp") {
			go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("welcome")) }))
		}
	}
	t.Cleanup(func() { c.Close() })
	return at.String()
}

// us is this process, taken for the platform's.
var us = []Process{{os.Getpid(), "bulkhead-seeded"}}

// openDir is a directory that every user may enter.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "doctor")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// tried finds and tries what this process listens on.
func tried(t *testing.T, p Platform, procs []Process) []Listener {
	t.Helper()
	found, err := Listeners(p, procs)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := Try(ctx, p, found); err != nil {
		t.Fatal(err)
	}
	return found
}

// at returns the listener of an address.
func at(t *testing.T, found []Listener, network, addr string) Listener {
	t.Helper()
	i := slices.IndexFunc(found, func(l Listener) bool { return l.Network == network && l.Addr == addr })
	if i < 0 {
		t.Fatalf("%s %s was not found among %+v", network, addr, found)
	}
	return found[i]
}

// TestSeededListenersAreFound: whatever kind of socket a process opens, it is found,
// it is not expected, it is seen to answer, and it makes the doctor fail.
func TestSeededListenersAreFound(t *testing.T) {
	dir := openDir(t)
	for _, c := range []struct{ name, network, addr, found string }{
		{"TCP", "tcp", "127.0.0.1:0", "tcp"},
		{"TCP on every address", "tcp", ":0", "tcp"},
		{"TCP over IPv6", "tcp6", "[::1]:0", "tcp"},
		{"UDP", "udp", "127.0.0.1:0", "udp"},
		{"a unix socket", "unix", filepath.Join(dir, "open.sock"), "unix"},
		{"a unix socket of datagrams", "unixgram", filepath.Join(dir, "datagrams.sock"), "unix"},
		{"a unix socket of packets", "unixpacket", filepath.Join(dir, "packets.sock"), "unix"},
		{"an abstract socket", "unix", "@doctor-seeded", "abstract"},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr := seed(t, c.network, c.addr)
			if c.found == "unix" {
				if err := os.Chmod(c.addr, 0o666); err != nil {
					t.Fatal(err)
				}
			}
			found := tried(t, Platform{RunDir: dir + "/run", DataDir: dir + "/data"}, us)
			l := at(t, found, c.found, addr)
			if l.Namespace != "host" || l.Expected != "" || !slices.Contains(l.Processes, fmt.Sprintf("bulkhead-seeded %d", os.Getpid())) {
				t.Errorf("%+v", l)
			}
			open := slices.ContainsFunc(l.Trials, func(t Trial) bool { return !t.Refused })
			if !open && c.network != "udp" {
				t.Errorf("it does not seem to answer: %+v", l.Trials)
			}
			if !slices.ContainsFunc(judgeListeners(found), func(f Finding) bool { return f.Level == Fail && strings.Contains(f.Found, l.Addr) }) {
				t.Errorf("the doctor is content: %+v", judgeListeners(found))
			}
		})
	}
}

// TestOnlyListenersAreFound: sockets that take nothing from strangers are no listeners.
func TestOnlyListenersAreFound(t *testing.T) {
	before, err := Listeners(Platform{}, us)
	if err != nil {
		t.Fatal(err)
	}
	addr := seed(t, "tcp", "127.0.0.1:0")
	for _, network := range []string{"tcp", "udp"} {
		c, err := net.Dial(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	for _, domain := range []int{unix.AF_INET, unix.AF_UNIX, unix.AF_NETLINK} {
		fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
	}
	after, err := Listeners(Platform{}, us)
	if err != nil || len(after) != len(before)+1 {
		t.Errorf("%v: %+v, before %+v", err, after, before)
	}
}

// TestClosedSocketsRefuse: a socket of the platform that is as it must be passes, and
// one that is not is told from it.
func TestClosedSocketsRefuse(t *testing.T) {
	run := openDir(t)
	cert, err := selfSigned()
	if err != nil {
		t.Fatal(err)
	}
	serve := func(name string, conf *tls.Config) string {
		path := filepath.Join(run, name+".sock")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		os.Chmod(path, 0o600)
		srv := &http.Server{Handler: http.NotFoundHandler(), TLSConfig: conf}
		srv.Protocols = new(http.Protocols)
		srv.Protocols.SetHTTP2(true)
		go srv.ServeTLS(l, "", "")
		t.Cleanup(func() { srv.Close() })
		return path
	}
	// The one asks for a certificate and takes any, the other wants one of an authority.
	lax := serve("worker", &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert})
	open := serve("edge", &tls.Config{Certificates: []tls.Certificate{cert}})
	strict := serve("internal", &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert})
	found := tried(t, Platform{RunDir: run}, us)
	for path, want := range map[string][]bool{strict: {true, true, true, true}, lax: {true, false, true, true}, open: {false, false, true, true}} {
		l := at(t, found, "unix", path)
		var got []bool
		for _, trial := range l.Trials {
			got = append(got, trial.Refused)
		}
		if !slices.Equal(got, want) || l.Expected == "" {
			t.Errorf("%s: %+v", path, l)
		}
	}
	fails := 0
	for _, f := range judgeListeners(found) {
		if f.Level == Fail && (strings.Contains(f.Found, lax) || strings.Contains(f.Found, open)) {
			fails++
		}
		if strings.Contains(f.Found, strict) {
			t.Errorf("%+v", f)
		}
	}
	if fails != 3 {
		t.Errorf("%d findings about two open sockets", fails)
	}
}

// TestListenersOfOtherNamespaces: what listens in a network namespace of the
// platform's is found, and reached there, whoever holds it.
func TestListenersOfOtherNamespaces(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "idle")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	procs := []Process{{cmd.Process.Pid, "bulkhead-edge"}}
	var held, inherited net.Listener
	err := within(netnsOf(cmd.Process.Pid), func() (err error) {
		if err := up(); err != nil {
			return err
		}
		held, err = net.Listen("tcp", "127.0.0.1:4711")
		if err != nil {
			return err
		}
		inherited, err = net.Listen("unix", "@doctor-inside")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	defer inherited.Close()
	// Nobody of the platform holds it.
	l := at(t, tried(t, Platform{}, procs), "tcp", "127.0.0.1:4711")
	if l.Namespace != "router" || l.Expected != "" || len(l.Trials) == 0 || l.Trials[0].Refused {
		t.Errorf("%+v", l)
	}
	// A process of another namespace holds it, as the edge holds sockets of the host's.
	found := tried(t, Platform{}, append(procs, us...))
	if l := at(t, found, "tcp", "127.0.0.1:4711"); l.Namespace != "router" || !strings.HasPrefix(l.Processes[0], "bulkhead-seeded") || l.Trials[0].Refused {
		t.Errorf("%+v", l)
	}
	if l := at(t, found, "abstract", "@doctor-inside"); l.Namespace != "router" || len(l.Trials) != 2 || l.Trials[0].Refused {
		t.Errorf("%+v", l)
	}
}

// up brings the loopback interface of this thread's namespace up.
func up() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// TestSomebodyElsesSocket in the runtime directory: the platform's callers would talk to it.
func TestSomebodyElsesSocket(t *testing.T) {
	run := t.TempDir()
	path := filepath.Join(run, "worker.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	if out := leftSockets(Platform{RunDir: run}, nil); len(out) != 1 || out[0].Level != Fail {
		t.Errorf("%+v", out)
	}
	if out := leftSockets(Platform{RunDir: run}, []Listener{{Network: "unix", Addr: path}}); len(out) != 0 {
		t.Errorf("%+v", out)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if out := leftSockets(Platform{RunDir: run}, nil); len(out) != 0 {
		t.Errorf("a file that nobody listens at: %+v", out)
	}
}

// TestStrangerHasNoRights: it refuses to try anything as somebody.
func TestStrangerHasNoRights(t *testing.T) {
	for _, args := range [][]string{nil, {"0"}, {"65534"}} {
		if err := stranger(args, strings.NewReader("[]"), os.Stdout); err == nil {
			t.Errorf("as user %d, %v: it tries", os.Getuid(), args)
		}
	}
	dir := openDir(t)
	long := filepath.Join(dir, strings.Repeat("long", 30))
	if err := os.Mkdir(long, 0o755); err != nil {
		t.Fatal(err)
	}
	seedAt := filepath.Join(dir, "s")
	seed(t, "unix", seedAt)
	os.Chmod(seedAt, 0o666)
	if err := os.Rename(seedAt, filepath.Join(long, "s")); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(dir, "shut"), nil, 0o600)
	got, err := asStranger(t.Context(), 65534, ownNetns, []errand{{filepath.Join(long, "s"), true, unix.SOCK_STREAM}, {Path: filepath.Join(dir, "shut")}, {Path: "/etc/passwd"}, {Path: "/nowhere"}})
	if err != nil {
		t.Fatal(err)
	}
	want := []errandResult{{0}, {unix.EACCES}, {0}, {unix.ENOENT}}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
