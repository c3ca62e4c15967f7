package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"bulkhead/handover"
	"bulkhead/role"
)

// socket says who listens on a unix socket and who may connect to it.
type socket struct {
	name string
	role string // that gets the descriptor
	mode os.FileMode
	// opener is the role whose user owns the file; "" with group set means root
	// and the group of all roles, "" without it root alone.
	opener string
	group  bool
}

// unixSockets are the sockets of a node. Who may open one is decided by the file's
// owner and mode first, and by the listener (certificate or peer credentials) again.
var unixSockets = []socket{
	{name: role.SocketInternal, role: role.Controller, mode: 0o660, group: true},
	{name: role.SocketEnroll, role: role.Controller, mode: 0o660, group: true},
	{name: role.SocketAdmin, role: role.Controller, mode: 0o600},
	{name: role.SocketAPI, role: role.Controller, mode: 0o600, opener: role.Edge},
	{name: role.SocketWorker, role: role.Worker, mode: 0o660, group: true},
	{name: role.SocketWarden, role: role.Warden, mode: 0o600, opener: role.Worker},
	{name: role.SocketEdge, role: role.Edge, mode: 0o660, group: true},
}

// sockets are the listening sockets of a node. They belong to bulkheadd, so that
// callers of a role that is being restarted wait in the backlog.
type sockets struct {
	files map[string]*os.File
	addrs map[string]string // of the TCP sockets: host as configured, port as bound
	paths map[string]string // of the unix sockets
	owned map[string]string // socket name → role
}

// Close closes the sockets and removes the files of the unix sockets.
func (s *sockets) Close() {
	for _, f := range s.files {
		f.Close()
	}
	for _, p := range s.paths {
		os.Remove(p)
	}
	s.files, s.paths = nil, nil
}

// of returns the sockets of a role, in a fixed order.
func (s *sockets) of(r string) (names []string) {
	for _, n := range []string{role.SocketInternal, role.SocketCluster, role.SocketEnroll, role.SocketAdmin, role.SocketAPI,
		role.SocketWorker, role.SocketWarden, role.SocketEdge, role.SocketHTTP, role.SocketHTTPS} {
		if s.owned[n] == r {
			names = append(names, n)
		}
	}
	return names
}

// openPublic takes the TCP sockets that an earlier bulkheadd left, and binds the others;
// when one cannot be had, none stays open. patience is how long a port may still be held
// by a role of an earlier bulkheadd that was killed, and is dying.
func openPublic(c Config, left *handover.Inherited, patience time.Duration) (*sockets, error) {
	s := &sockets{files: map[string]*os.File{}, addrs: map[string]string{}, paths: map[string]string{}, owned: map[string]string{}}
	for _, l := range []struct{ name, role, addr, field, flag string }{
		{role.SocketHTTP, role.Edge, c.HTTPAddr, "http", "--http-addr"},
		{role.SocketHTTPS, role.Edge, c.HTTPSAddr, "https", "--https-addr"},
		{role.SocketCluster, role.Controller, c.ClusterAddr, "cluster", "--cluster-addr"},
	} {
		if l.addr == "" {
			continue
		}
		f, addr, err := left.Listener(l.name, l.addr), "", error(nil)
		if f != nil {
			addr, err = listenAddr(f, l.addr)
		} else {
			f, addr, err = listenTCP(l.addr, patience)
		}
		if err != nil {
			s.Close()
			return nil, explainListen(err, l.field, l.addr, l.flag)
		}
		s.files[l.name], s.addrs[l.name], s.owned[l.name] = f, addr, l.role
	}
	return s, nil
}

// listenTCP returns a listening descriptor and its address with the real port.
func listenTCP(addr string, patience time.Duration) (*os.File, string, error) {
	end := time.Now().Add(patience)
	for {
		l, err := net.Listen("tcp", addr)
		if errors.Is(err, syscall.EADDRINUSE) && time.Now().Before(end) {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if err != nil {
			return nil, "", err
		}
		f, err := l.(*net.TCPListener).File()
		l.Close()
		if err != nil {
			return nil, "", err
		}
		return f, joinPort(addr, l.Addr()), nil
	}
}

// listenAddr is addr with the real port of f, which listens there.
func listenAddr(f *os.File, addr string) (string, error) {
	l, err := net.FileListener(f) // a copy
	if err != nil {
		f.Close()
		return "", err
	}
	defer l.Close()
	return joinPort(addr, l.Addr()), nil
}

func joinPort(addr string, bound net.Addr) string {
	host, _, _ := net.SplitHostPort(addr)
	_, port, _ := net.SplitHostPort(bound.String())
	return net.JoinHostPort(host, port)
}

// explainListen says in one sentence why an address cannot be had.
func explainListen(err error, what, addr, flag string) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		by := ""
		_, port, _ := net.SplitHostPort(addr)
		if holder := portHolder(port); holder != "" {
			by = " by " + holder
		}
		return fmt.Errorf("%s address %s is in use%s; choose another with %s", what, addr, by, flag)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s address %s is not an address of this machine; choose another with %s", what, addr, flag)
	}
	return fmt.Errorf("%s address %s cannot be listened on: %w; choose another with %s", what, addr, err, flag)
}

// openUnix adds the unix sockets to s. Files left by an earlier start are
// replaced. The umask of bulkheadd is 077, so that none is open to more than it
// should between bind and chmod.
func (s *sockets) openUnix(runDir string, u *users) error {
	for _, k := range unixSockets {
		path := socketPath(runDir, k.name)
		if fi, err := os.Lstat(path); err == nil {
			if fi.Mode()&os.ModeSocket == 0 {
				return fmt.Errorf("%s is in the way: it is not a socket", path)
			}
			if err := os.Remove(path); err != nil {
				return err
			}
		}
		o := root
		if k.opener != "" {
			o = u.of(k.opener)
		} else if k.group {
			o = owner{0, u.group}
		}
		f, err := listenUnix(path, k.mode, o)
		if err != nil {
			return fmt.Errorf("socket %s: %w", path, err)
		}
		s.files[k.name], s.paths[k.name], s.owned[k.name] = f, path, k.role
	}
	return nil
}

func socketPath(runDir, name string) string { return filepath.Join(runDir, name+".sock") }

func listenUnix(path string, mode os.FileMode, o owner) (*os.File, error) {
	l, err := new(net.ListenConfig).Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false)
	defer u.Close()
	if err := os.Lchown(path, int(o.uid), int(o.gid)); err != nil {
		return nil, err
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, err
	}
	return u.File()
}

// portHolder names the process that listens on a TCP port: "nginx, process 12".
// "" when that cannot be found out.
func portHolder(port string) string {
	inodes := map[string]bool{}
	var want uint16
	if _, err := fmt.Sscan(port, &want); err != nil {
		return ""
	}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, _ := os.ReadFile(table)
		for _, line := range strings.Split(string(b), "\n") {
			f := strings.Fields(line)
			if len(f) < 10 || f[3] != "0A" { // 0A: LISTEN
				continue
			}
			if _, p, ok := strings.Cut(f[1], ":"); ok && p == fmt.Sprintf("%04X", want) {
				inodes["socket:["+f[9]+"]"] = true
			}
		}
	}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err == nil && inodes[link] {
			dir := filepath.Dir(filepath.Dir(fd))
			comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
			return fmt.Sprintf("%s, process %s", strings.TrimSpace(string(comm)), filepath.Base(dir))
		}
	}
	return ""
}
