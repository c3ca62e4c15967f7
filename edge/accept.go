package edge

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pires/go-proxyproto"

	"bulkhead/edge/route"
	"bulkhead/edge/sni"
	"bulkhead/edge/upstream"
)

// accept takes connections from l until it is closed. A lack of descriptors is
// waited out: it passes when other connections end.
func (s *Server) accept(l net.Listener, hand *handoff, https bool) error {
	kind := "http"
	if https {
		kind = "https"
	}
	for delay := time.Duration(0); ; {
		nc, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			if delay = min(max(2*delay, 5*time.Millisecond), time.Second); s.logs.allow() {
				s.Log.Warn("accept failed, trying again", "listener", kind, "err", err)
			}
			time.Sleep(delay)
			continue
		}
		delay = 0
		c := s.newClient(nc, kind, https)
		if err := s.clients.add(c); err != nil {
			reason := "full"
			if errors.Is(err, errTooManyEach) {
				reason = "full_address"
			}
			s.m.refused.WithLabelValues(reason).Inc()
			nc.Close()
			continue
		}
		if !https {
			s.m.accepted.WithLabelValues("http").Inc()
			hand.give(s.http1(c, false))
			continue
		}
		s.sessions.add()
		hand.coming.add()
		c.settled = sync.OnceFunc(hand.coming.done)
		go func() {
			defer s.sessions.done()
			defer c.settled()
			s.secure(c, hand)
		}()
	}
}

func (s *Server) newClient(nc net.Conn, kind string, https bool) *clientConn {
	c := &clientConn{Conn: nc, srv: s, kind: kind, https: https}
	remote, _ := netip.ParseAddrPort(nc.RemoteAddr().String())
	local, _ := netip.ParseAddrPort(nc.LocalAddr().String())
	addr := remote.Addr().Unmap()
	c.group = groupOf(addr)
	c.clientIP = addr.WithZone("").String()
	c.forwardedFor = c.clientIP + ", " + local.Addr().Unmap().WithZone("").String()
	return c
}

// helloBufs hold ClientHellos while they are read.
var helloBufs = sync.Pool{New: func() any { b := make([]byte, 0, sni.MaxHello); return &b }}

// secure finds out whom a TLS connection is for and hands it there. A name that
// nobody serves gets an alert and no certificate.
func (s *Server) secure(c *clientConn, hand *handoff) {
	_ = c.Conn.SetDeadline(time.Now().Add(s.Limits.HelloTimeout))
	buf := helloBufs.Get().(*[]byte)
	raw, name, err := sni.Read(c.Conn, *buf)
	raw = bytes.Clone(raw)
	helloBufs.Put(buf)
	if err != nil {
		s.badHello(c, raw, err)
		return
	}
	name = hostName(name)
	if name == "api."+s.Domain || name == "registry."+s.Domain || name == s.Domain {
		c.settled()
		s.m.accepted.WithLabelValues("passthrough").Inc()
		s.passThrough(c, raw)
		return
	}
	app, ok := s.appOf(name)
	var r *route.App
	if ok {
		r = s.table.Lookup(app)
	}
	if r == nil || r.HTTPS == nil && len(r.Route.GetServices()) > 0 {
		s.tlsFailed(c, "PT05")
		s.alert(c, alertUnrecognizedName)
		return
	}
	c.app = app
	c.prefix = raw
	switch svc := r.HTTPS; {
	case svc == nil || svc.TLS && svc.Web:
		s.endTLS(c, s.tlsHTTP, func(t *tls.Conn) {
			s.m.accepted.WithLabelValues("https").Inc()
			hand.give(s.http1(t, true))
		})
	case svc.TLS:
		s.endTLS(c, s.tlsRaw, func(t *tls.Conn) {
			c.settled()
			s.m.accepted.WithLabelValues("tls").Inc()
			s.raw(c, t)
		})
	case svc.Web: // HTTP without TLS on the TLS port: nothing a client could do
		s.tlsFailed(c, "PT06")
		s.alert(c, alertUnrecognizedName)
	default: // no handler: the app ends its own TLS
		c.settled()
		s.m.accepted.WithLabelValues("tcp").Inc()
		_ = c.Conn.SetDeadline(time.Time{})
		s.raw(c, c)
	}
}

// TLS alerts, RFC 8446 section 6.
const (
	alertUnrecognizedName = 112
	alertInternalError    = 80
	alertDecodeError      = 50
)

// alert sends a fatal TLS alert in the clear and closes.
func (s *Server) alert(c *clientConn, code byte) {
	_, _ = c.Conn.Write([]byte{21, 3, 3, 0, 2, 2, code})
	// The client's last bytes are read first, so that the close does not reset the
	// connection before the alert has arrived.
	if c.CloseWrite() == nil {
		_ = c.Conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		_, _ = io.CopyN(io.Discard, c.Conn, 64<<10)
	}
	c.Close()
}

func (s *Server) tlsFailed(c *clientConn, code string) {
	s.m.tlsFails.WithLabelValues(code).Inc()
	if s.logs.allow() {
		s.Log.Debug("TLS failed", "code", code, "client", c.clientIP)
	}
}

// badHello answers what is no ClientHello.
func (s *Server) badHello(c *clientConn, raw []byte, err error) {
	switch {
	case errors.Is(err, sni.ErrNotTLS):
		s.m.refused.WithLabelValues("not_tls").Inc()
		if len(raw) > 0 && raw[0] >= 'A' && raw[0] <= 'Z' {
			_, _ = io.WriteString(c.Conn, "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nthis port speaks HTTPS\n")
		}
		c.Close()
	case errors.Is(err, sni.ErrMalformed), errors.Is(err, sni.ErrTooLarge):
		s.tlsFailed(c, "PT04")
		s.alert(c, alertDecodeError)
	case upstream.IsTimeout(err):
		s.tlsFailed(c, "PT08")
		c.Close()
	default:
		if len(raw) > 0 {
			s.tlsFailed(c, "PT07")
		}
		c.Close()
	}
}

// endTLS shakes hands and passes the connection on.
func (s *Server) endTLS(c *clientConn, config *tls.Config, then func(*tls.Conn)) {
	ctx, cancel := context.WithTimeout(s.background, s.Limits.HelloTimeout)
	defer cancel()
	if _, err := s.certs.get(ctx, c.app); err != nil {
		s.tlsFailed(c, "PT06")
		if s.logs.allow() {
			s.Log.Warn("no certificate for a client", "app", c.app, "err", err)
		}
		s.alert(c, alertInternalError)
		return
	}
	t := tls.Server(c, config)
	if err := t.HandshakeContext(ctx); err != nil {
		switch {
		case upstream.IsTimeout(err):
			s.tlsFailed(c, "PT08")
		case upstream.IsClosed(err):
			s.tlsFailed(c, "PT03")
		default:
			s.tlsFailed(c, "PT04")
		}
		c.Close()
		return
	}
	_ = c.SetDeadline(time.Time{})
	then(t)
}

// passThrough gives the connection, as it is, to the controller, which learns the
// client's address from a PROXY v2 header.
func (s *Server) passThrough(c *clientConn, raw []byte) {
	defer c.Close()
	ctx, cancel := context.WithTimeout(s.background, s.Limits.DialTimeout)
	defer cancel()
	var d net.Dialer
	up, err := d.DialContext(ctx, "unix", s.APISocket)
	if err != nil {
		s.m.errors.WithLabelValues("PC06").Inc()
		if s.logs.allow() {
			s.Log.Warn("the API cannot be reached", "err", err)
		}
		s.alert(c, alertInternalError)
		return
	}
	defer up.Close()
	head, err := proxyproto.HeaderProxyFromAddrs(2, c.RemoteAddr(), c.LocalAddr()).Format()
	if err != nil {
		s.Log.Error("PROXY header not made", "err", err)
		return
	}
	_ = c.Conn.SetDeadline(time.Time{})
	_ = up.SetWriteDeadline(time.Now().Add(s.Limits.WriteIdle))
	if _, err := up.Write(append(head, raw...)); err != nil {
		return
	}
	s.pipes.run(c.Conn, up, s.Limits.PipeIdle)
}

// raw joins a client with a Machine, byte by byte. client is c itself or the TLS
// on top of it.
func (s *Server) raw(c *clientConn, client net.Conn) {
	defer client.Close()
	var tried []*route.Backend
	until := time.Now().Add(s.Limits.RetryFor)
	for {
		lease, err := s.lease(s.background, c.app, tried, func(a *route.App) *route.Service { return a.HTTPS })
		if err == nil {
			ctx, cancel := context.WithTimeout(s.background, s.Limits.DialTimeout)
			up, derr := lease.Pool.Connect(ctx)
			cancel()
			if derr == nil {
				lease.Worked()
				s.pipes.run(client, up, s.Limits.PipeIdle)
				lease.Release()
				return
			}
			lease.Failed(time.Now())
			s.doubt(c.app, lease.Backend, derr)
			until = s.patience(until, lease.Backend)
			tried = append(tried, lease.Backend)
			lease.Release()
			s.m.retries.Inc()
			continue
		}
		if len(tried) > 0 && time.Now().Before(until) {
			tried = nil
			if !sleep(s.background, 100*time.Millisecond) {
				return
			}
			continue
		}
		s.m.errors.WithLabelValues(err.code).Inc()
		s.tell(c.app, err)
		return
	}
}

// failure is an answer that the edge itself gives.
type failure struct {
	status int    // HTTP status; 0 ends the connection without an answer
	code   string // as in Fly's list
	text   string // for the client
	cause  error  // for the log
	client bool   // the client's fault, and its alone
	again  again  // whether the request may be sent again
}

// Error gives the text for logs.
func (f *failure) Error() string {
	if f.cause != nil {
		return fmt.Sprintf("%s: %v", f.text, f.cause)
	}
	return f.text
}

// lease picks a Machine of app that is not in tried. When none runs it waits until one
// is woken, and when all are full for a place or another one to be woken.
func (s *Server) lease(ctx context.Context, app string, tried []*route.Backend, of func(*route.App) *route.Service) (route.Lease, *failure) {
	var wait, held context.Context
	for {
		r := s.table.Lookup(app)
		if r == nil {
			return route.Lease{}, &failure{status: 404, code: "PM06", text: "no app " + app}
		}
		svc := of(r)
		if svc == nil || len(svc.Targets)+len(svc.Asleep) == 0 {
			return route.Lease{}, &failure{status: 503, code: "PR01", text: "app " + app + " has no running machine"}
		}
		l, verdict := svc.Pick(time.Now(), tried)
		if verdict == route.Picked {
			if l.OverSoft {
				s.m.overSoft.Inc()
				if len(svc.Asleep) > 0 {
					s.waker.begin(s, app, of) // one more; this request does not wait for it
				}
			}
			return l, nil
		}
		if verdict == route.Full {
			limit, rising := s.Limits.QueueTimeout, s.rising(tried)
			if rising { // it is asked again soon, and no other woken for it
				limit = risingPause
			} else if len(svc.Asleep) > 0 {
				s.waker.begin(s, app, of) // one more, unless a place gets free before
			}
			if wait == nil {
				s.m.queued.Inc()
				var cancel context.CancelFunc
				wait, cancel = context.WithTimeout(ctx, limit)
				defer cancel()
			}
			full := func() bool {
				now := s.table.Lookup(app)
				return now == r && svc.AtLimit(tried)
			}
			if svc.Wait(wait, full) {
				continue
			}
			if rising {
				return route.Lease{}, atLimit(app)
			}
		}
		if held == nil {
			var cancel context.CancelFunc
			held, cancel = context.WithTimeout(ctx, s.Limits.WakeTimeout)
			defer cancel()
		}
		switch fail := s.waker.hold(held, s, r, of); {
		case fail == nil:
		case verdict == route.Full:
			return route.Lease{}, atLimit(app)
		default:
			return route.Lease{}, fail
		}
	}
}

func atLimit(app string) *failure {
	return &failure{status: 503, code: "PL02", text: "all machines of app " + app + " are at their limit"}
}

// tell logs, a bounded number of times a second, what went wrong for an app.
func (s *Server) tell(app string, f *failure) {
	if s.logs.allow() {
		s.Log.Info("request not served", "app", app, "code", f.code, "why", f.Error())
	}
}

// sleep waits for d and reports whether ctx is still good.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
