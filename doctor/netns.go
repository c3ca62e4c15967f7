package doctor

import (
	"fmt"
	"net"
	"runtime"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ownNetns is the network namespace of this process.
const ownNetns = "/proc/self/ns/net"

func netnsOf(pid int) string { return fmt.Sprintf("/proc/%d/ns/net", pid) }

// within runs f in a network namespace, named by a file. The thread that did it is
// thrown away.
func within(ns string, f func() error) error {
	fd, err := unix.Open(ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	done := make(chan error, 1)
	go aside(func() error {
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network namespace %s: %w", ns, err)
		}
		return f()
	}, done)
	return <-done
}

// aside runs f on a thread that ends with it. Not on the first one, which does not
// end, and which is what /proc/self shows.
func aside(f func() error, done chan<- error) {
	runtime.LockOSThread() // and never unlocked: the thread ends with its goroutine
	if unix.Gettid() != unix.Getpid() {
		done <- f()
		return
	}
	defer runtime.UnlockOSThread()
	other := make(chan error, 1)
	go aside(f, other) // on another thread, since this one is taken
	done <- <-other
}

// unheld lists what listens in the platform's own network namespaces and is held by
// none of the processes that were looked into: nobody else has any business there.
func unheld(spaces map[uint64]space, seen map[uint64]bool) (out []Listener, err error) {
	for _, s := range spaces {
		if s.name == "host" {
			continue
		}
		err := within(s.file, func() error {
			for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
				tcp, err := netlink.SocketDiagTCP(family)
				if err != nil {
					return fmt.Errorf("list TCP sockets: %w", err)
				}
				udp, err := netlink.SocketDiagUDP(family)
				if err != nil {
					return fmt.Errorf("list UDP sockets: %w", err)
				}
				const listen, closed = 10, 7 // TCP_LISTEN; an unconnected UDP socket counts as closed
				for _, k := range []struct {
					network string
					state   uint8
					kind    int
					sockets []*netlink.Socket
				}{{"tcp", listen, unix.SOCK_STREAM, tcp}, {"udp", closed, unix.SOCK_DGRAM, udp}} {
					for _, sock := range k.sockets {
						if sock.State != k.state || seen[uint64(sock.INode)] {
							continue
						}
						out = append(out, Listener{
							Network: k.network, Namespace: s.name, kind: k.kind, inode: uint64(sock.INode), ns: s.file,
							Addr:      net.JoinHostPort(sock.ID.Source.String(), strconv.Itoa(int(sock.ID.SourcePort))),
							Processes: []string{"a process that is not the platform's"},
						})
					}
				}
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("what listens in %s: %w", s.name, err)
		}
	}
	return out, nil
}
