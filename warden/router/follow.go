package router

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// settle is how long changes of the host's network may come before they are looked at: a
// switch of forwarding changes every interface, and a link that comes up brings routes.
const settle = 100 * time.Millisecond

// FollowForwarding keeps what EnsureForwarding does true until ctx ends: when somebody
// switches forwarding on or off, and when routes to the internet come and go.
func FollowForwarding(ctx context.Context, tag string, log *slog.Logger) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_NETCONF)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, s.Close)
	defer stop()
	changed := make(chan struct{}, 1)
	go func() {
		defer close(changed)
		for {
			messages, _, err := s.Receive()
			if ctx.Err() != nil {
				return
			}
			if err != nil && !errors.Is(err, unix.ENOBUFS) { // which says that some were lost
				log.Error("changes of the host's routes are no longer seen", "error", err)
				return
			}
			look := err != nil
			for _, m := range messages {
				look = look || concerns(m.Header.Type, m.Data)
			}
			if look {
				select {
				case changed <- struct{}{}:
				default:
				}
			}
		}
	}()
	// What changed before the subscription.
	for first := true; ; first = false {
		if err := EnsureForwarding(tag); err != nil {
			log.Error("the host's forwarding for machines cannot be set up", "error", err)
		} else if !first {
			log.Info("the host's routes or its forwarding changed", "claims", "looked at again")
		}
		if _, ok := <-changed; !ok {
			return ctx.Err()
		}
		select {
		case <-time.After(settle):
		case <-ctx.Done():
		}
	}
}

// concerns reports whether a message of the kernel may change what is to be forwarded: a
// switch, or a route by which packets leave.
func concerns(kind uint16, data []byte) bool {
	if kind != unix.RTM_NEWROUTE && kind != unix.RTM_DELROUTE {
		return true
	}
	const rtmType = 7 // its place in struct rtmsg (linux/rtnetlink.h)
	return len(data) <= rtmType || data[rtmType] == unix.RTN_UNICAST
}
