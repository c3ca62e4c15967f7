package supervisor

import (
	"context"
	"net"
	"os"
	"strconv"
	"time"
)

// notify tells systemd about bulkheadd's state, when systemd started it.
type notify struct{ socket string }

func newNotify() notify {
	n := notify{os.Getenv("NOTIFY_SOCKET")}
	os.Unsetenv("NOTIFY_SOCKET")
	return n
}

// send sends one state, such as "READY=1"; without systemd it does nothing.
func (n notify) send(state string) {
	if n.socket == "" {
		return
	}
	name := n.socket
	if name[0] == '@' {
		name = "\x00" + name[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	c.Write([]byte(state))
}

// watchdog keeps systemd's watchdog content until ctx is done, as long as alive
// answers in time.
func (n notify) watchdog(ctx context.Context, alive func()) {
	us, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if n.socket == "" || err != nil || us <= 0 {
		return
	}
	t := time.NewTicker(time.Duration(us) * time.Microsecond / 3)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			alive()
			n.send("WATCHDOG=1")
		}
	}
}
