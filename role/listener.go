package role

import (
	"errors"
	"net"
	"syscall"
	"time"

	"bulkhead/fault"
	"bulkhead/notice"
)

// acceptMax is the longest pause between two tries to accept a connection.
const acceptMax = time.Second

// listener is a role's socket. When the process or the host has used up what a
// connection needs, callers wait in the socket's queue, the trouble is said once,
// and it goes on when there is something left again: a server that ended for that
// would take with it what it serves already.
type listener struct {
	net.Listener
	name  string
	board *notice.Board
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	what := "connections wait, because none can be accepted on socket " + l.name
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, acceptMax) {
		c, err := l.Listener.Accept()
		if err == nil {
			l.board.Over(what)
			return c, nil
		}
		if !usedUp(err) {
			return nil, err
		}
		l.board.Trouble(what, fault.System(err, "accept"))
		time.Sleep(wait)
	}
}

// usedUp says whether an error of accept passes when something is given back.
func usedUp(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
