package doctor

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Listener is a socket at which a process of the platform takes what others send.
type Listener struct {
	Network   string   `json:"network"` // tcp, udp, unix, abstract, raw, packet, or a number of the kernel's
	Addr      string   `json:"addr"`
	Namespace string   `json:"namespace"` // host, router, or net:[number]: where it can be reached
	Processes []string `json:"processes"` // that hold it, as name and process id
	// Expected is what docs/sockets.md calls it; empty when nobody planned it.
	Expected string  `json:"expected"`
	Trials   []Trial `json:"trials"`

	kind  int // SOCK_STREAM and so on
	inode uint64
	pid   int    // a process that holds it; 0: unknown
	ns    string // a file that is the network namespace it can be reached in
	// kept holds a namespace that no process is in.
	kept *os.File
}

// Trial is one attempt to use a listener without credentials.
type Trial struct {
	What    string `json:"what"`
	Refused bool   `json:"refused"`
	Got     string `json:"got"` // how it was refused, or what was answered
}

// Role is what the listener is for, and who serves it.
func (l *Listener) Role() string {
	if l.Expected == "" {
		return "NOT EXPECTED, held by " + strings.Join(l.Processes, ", ")
	}
	return l.Expected
}

// Listeners finds every listening socket that a process holds. The kernel is asked
// about each descriptor itself: tables of /proc show one namespace and some protocols.
func Listeners(p Platform, procs []Process) ([]Listener, error) {
	byInode := map[uint64]*Listener{}
	spaces, err := namespaces(procs)
	if err != nil {
		return nil, err
	}
	seen := map[uint64]bool{} // sockets that were asked, listening or not
	for _, proc := range procs {
		if err := ofProcess(proc, spaces, seen, byInode); err != nil {
			return nil, fmt.Errorf("look into process %d (%s): %w", proc.PID, proc.Name, err)
		}
	}
	strays, err := unheld(spaces, seen)
	if err != nil {
		return nil, err
	}
	var out []Listener
	for _, l := range byInode {
		slices.Sort(l.Processes)
		l.Expected = expected(p, l)
		out = append(out, *l)
	}
	out = append(out, strays...)
	slices.SortFunc(out, func(a, b Listener) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Network, b.Network), cmp.Compare(a.Addr, b.Addr))
	})
	return out, nil
}

// ofProcess adds the listening sockets of one process. One that ends meanwhile has none.
func ofProcess(proc Process, spaces map[uint64]space, seen map[uint64]bool, found map[uint64]*Listener) error {
	pidfd, err := unix.PidfdOpen(proc.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	dir := fmt.Sprintf("/proc/%d/fd", proc.PID)
	names, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	who := fmt.Sprintf("%s %d", proc.Name, proc.PID)
	for _, n := range names {
		link, err := os.Readlink(filepath.Join(dir, n.Name()))
		if err != nil || !strings.HasPrefix(link, "socket:[") {
			continue
		}
		inode, err := strconv.ParseUint(strings.Trim(link[len("socket:"):], "[]"), 10, 64)
		if err != nil {
			return err
		}
		if l := found[inode]; l != nil {
			if !slices.Contains(l.Processes, who) {
				l.Processes = append(l.Processes, who)
			}
			continue
		}
		if seen[inode] {
			continue
		}
		number, err := strconv.Atoi(n.Name())
		if err != nil {
			return err
		}
		fd, err := unix.PidfdGetfd(pidfd, number, 0)
		if errors.Is(err, unix.EBADF) || errors.Is(err, unix.ESRCH) {
			continue // closed meanwhile
		}
		if err != nil {
			return fmt.Errorf("take a copy of descriptor %d: %w", number, err)
		}
		seen[inode] = true
		l, err := ask(fd, spaces)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("descriptor %d: %w", number, err)
		}
		if l != nil {
			l.inode, l.pid, l.Processes = inode, proc.PID, []string{who}
			found[inode] = l
		}
	}
	return nil
}

// ask asks a socket whether it takes what anybody sends it. nil: it does not.
func ask(fd int, spaces map[uint64]space) (*Listener, error) {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return nil, err
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, err
	}
	accepts, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return nil, err
	}
	l := &Listener{kind: kind}
	takes := accepts == 1
	addr, err := unix.Getsockname(fd)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, err
	}
	_, perr := unix.Getpeername(fd)
	connected := perr == nil
	switch a := addr.(type) {
	case *unix.SockaddrInet4:
		l.Addr, takes = inet(kind, netip.AddrFrom4(a.Addr), a.Port, takes, connected)
	case *unix.SockaddrInet6:
		l.Addr, takes = inet(kind, netip.AddrFrom16(a.Addr), a.Port, takes, connected)
	case *unix.SockaddrUnix:
		l.Network, l.Addr = "unix", a.Name
		if strings.HasPrefix(a.Name, "@") {
			l.Network = "abstract"
		}
		// "@" alone is how package unix shows that there is no name.
		takes = takes || kind == unix.SOCK_DGRAM && a.Name != "" && a.Name != "@" && !connected
	}
	switch {
	case domain == unix.AF_NETLINK: // the kernel alone sends there
		return nil, nil
	case domain == unix.AF_PACKET:
		l.Network, takes = "packet", true
	case domain == unix.AF_INET || domain == unix.AF_INET6:
		l.Network = map[int]string{unix.SOCK_STREAM: "tcp", unix.SOCK_DGRAM: "udp", unix.SOCK_RAW: "raw"}[kind]
	}
	if l.Network == "" {
		l.Network = fmt.Sprintf("family %d", domain)
	}
	if !takes {
		return nil, nil
	}
	return l, l.place(fd, spaces)
}

// inet says whether an internet socket takes what anybody sends: a stream that
// accepts, and everything else that is bound and not connected.
func inet(kind int, ip netip.Addr, port int, accepts, connected bool) (string, bool) {
	addr := net.JoinHostPort(ip.Unmap().String(), strconv.Itoa(port))
	if ip.Is6() && ip.IsUnspecified() {
		addr = net.JoinHostPort("::", strconv.Itoa(port))
	}
	return addr, accepts || kind == unix.SOCK_RAW || kind != unix.SOCK_STREAM && port != 0 && !connected
}

// space is a network namespace.
type space struct {
	name string
	file string
}

// namespaces finds the network namespaces of all processes, by their inode. That of
// this process is the host's, and that of the edge the router's.
func namespaces(procs []Process) (map[uint64]space, error) {
	own, err := nsInode(ownNetns)
	if err != nil {
		return nil, err
	}
	spaces := map[uint64]space{own: {"host", ownNetns}}
	for _, p := range procs {
		inode, err := nsInode(netnsOf(p.PID))
		if err != nil {
			continue // it ended
		}
		s, known := spaces[inode]
		if !known {
			s = space{fmt.Sprintf("net:[%d]", inode), netnsOf(p.PID)}
		}
		if p.Name == "bulkhead-edge" && inode != own {
			s = space{"router", netnsOf(p.PID)}
		}
		spaces[inode] = s
	}
	return spaces, nil
}

func nsInode(file string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat(file, &st)
	return st.Ino, err
}

// place notes the network namespace of a socket, which may be another than that of
// the process which holds it: the edge's sockets are the host's.
func (l *Listener) place(fd int, spaces map[uint64]space) error {
	ns, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
	if err != nil {
		return fmt.Errorf("ask a socket for its network namespace: %w", err)
	}
	f := os.NewFile(uintptr(ns), "netns")
	var st unix.Stat_t
	if err := unix.Fstat(ns, &st); err != nil {
		f.Close()
		return err
	}
	if s, ok := spaces[st.Ino]; ok {
		l.Namespace, l.ns = s.name, s.file
		return f.Close()
	}
	l.Namespace, l.ns, l.kept = fmt.Sprintf("net:[%d]", st.Ino), fmt.Sprintf("/proc/self/fd/%d", ns), f
	return nil
}
