// Package handover carries listening sockets from one process to the next, so that a
// restart refuses no connection: callers wait in the socket's queue.
//
// There are two ways. A process that replaces its own program (Exec) leaves the sockets
// open and names them in its environment. A process under systemd puts them into the
// service manager's descriptor store (Store) and gets them back when it starts again.
// Take finds both. A socket is used only when it listens at exactly the wanted address.
package handover

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// Env names the sockets that Exec leaves open: the process id, then name=descriptor.
const Env = "BULKHEAD_SOCKETS"

// Inherited are the sockets that an earlier process left.
type Inherited struct {
	files []*os.File // Name is the socket's name
	stale []string   // names of those that were refused
	// Exec says that this process replaced its own program.
	Exec bool
}

// Take finds what was left, closes it to programs that this process starts, and clears
// the environment. Call it once, before the process starts another.
func Take() *Inherited {
	in := &Inherited{}
	value, ok := os.LookupEnv(Env)
	os.Unsetenv(Env)
	words := strings.Fields(value)
	if ok && len(words) > 0 && words[0] == strconv.Itoa(os.Getpid()) {
		in.Exec = true
		for _, w := range words[1:] {
			name, number, _ := strings.Cut(w, "=")
			fd, err := strconv.Atoi(number)
			var st unix.Stat_t
			if err != nil || fd < 3 || unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
				continue // not what Exec left
			}
			in.add(fd, name)
			unix.Close(fd)
		}
	}
	for _, f := range activation.Files(true) {
		in.add(int(f.Fd()), f.Name())
		f.Close()
	}
	return in
}

// add keeps a duplicate of a descriptor. The role that had it may have made it
// non-blocking, and that would bind the copy to this process's poller.
func (in *Inherited) add(fd int, name string) {
	unix.SetNonblock(fd, false)
	if own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3); err == nil {
		in.files = append(in.files, os.NewFile(uintptr(own), name))
	}
}

// Listener returns the socket of that name if it listens on TCP at addr, and nil if
// there is none. An empty host is every address, port 0 any port. Sockets of that name
// that do not fit are closed.
func (in *Inherited) Listener(name, addr string) (found *os.File) {
	in.files = slices.DeleteFunc(in.files, func(f *os.File) bool {
		if f.Name() != name {
			return false
		}
		if found == nil && listensAt(f, addr) == nil {
			found = f
			return true
		}
		f.Close()
		in.stale = append(in.stale, name)
		return true
	})
	return found
}

// Close closes what nobody asked for and returns the names of all that were not used.
func (in *Inherited) Close() (unused []string) {
	for _, f := range in.files {
		f.Close()
		in.stale = append(in.stale, f.Name())
	}
	in.files = nil
	slices.Sort(in.stale)
	return slices.Compact(in.stale)
}

// listensAt checks that f is a TCP socket that listens at addr.
func listensAt(f *os.File, addr string) error {
	fd := int(f.Fd())
	for _, want := range []struct {
		option int
		values []int
		what   string
	}{
		{unix.SO_TYPE, []int{unix.SOCK_STREAM}, "a stream"},
		{unix.SO_PROTOCOL, []int{unix.IPPROTO_TCP, unix.IPPROTO_MPTCP}, "TCP"}, // Go listens with the second
		{unix.SO_ACCEPTCONN, []int{1}, "listening"},
	} {
		if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, want.option); err != nil || !slices.Contains(want.values, v) {
			return fmt.Errorf("the socket is not %s", want.what)
		}
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	var have netip.AddrPort
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		have = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		have = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
		only, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		if have.Addr().IsUnspecified() && (err != nil || only != 0) {
			return errors.New("the socket takes IPv6 only")
		}
	default:
		return errors.New("the socket is not of IPv4 or IPv6")
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if host == "" {
		host = "::"
	}
	want, err := netip.ParseAddr(host)
	if err != nil {
		return err
	}
	same := want.Unmap().WithZone("") == have.Addr() || want.IsUnspecified() && have.Addr().IsUnspecified()
	if !same || port != "0" && port != strconv.Itoa(int(have.Port())) {
		return fmt.Errorf("the socket listens at %s", have)
	}
	return nil
}

// Exec replaces this process's program by the one at path, which finds the sockets with
// Take. It returns only when that fails; then the sockets are as before.
func Exec(path string, args, env []string, files map[string]*os.File) error {
	value := strconv.Itoa(os.Getpid())
	var open []int
	defer func() {
		for _, fd := range open {
			unix.Close(fd)
		}
	}()
	for name, f := range files {
		// A copy: the original stays closed to what this process starts until then.
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD, 3)
		if err != nil {
			return fmt.Errorf("hand over socket %s: %w", name, err)
		}
		open = append(open, fd)
		value += fmt.Sprintf(" %s=%d", name, fd)
	}
	env = append(slices.DeleteFunc(slices.Clone(env), func(v string) bool { return strings.HasPrefix(v, Env+"=") }), Env+"="+value)
	return fmt.Errorf("start %s: %w", path, syscall.Exec(path, args, env))
}

// Store puts a socket into the descriptor store of the service manager that listens on
// the unix socket notify. A socket that it has already stays there once.
func Store(notify, name string, f *os.File) error {
	return send(notify, "FDSTORE=1\nFDNAME="+name, unix.UnixRights(int(f.Fd())))
}

// Forget removes every socket of that name from the descriptor store.
func Forget(notify, name string) error {
	return send(notify, "FDSTOREREMOVE=1\nFDNAME="+name, nil)
}

// send sends one datagram. A service manager that does not read for 5 s gets none.
func send(notify, message string, rights []byte) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return err
	}
	// A name that begins with @ is an abstract one, here as for systemd.
	return os.NewSyscallError("sendmsg", unix.Sendmsg(fd, []byte(message), rights, &unix.SockaddrUnix{Name: notify}, 0))
}
