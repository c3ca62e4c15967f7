package edge

import (
	"bytes"
	"net"
	"net/http"
	"strings"
	"time"

	"bulkhead/edge/upstream"
)

// upgradeOf returns the protocol that an HTTP/1.1 request asks to switch to, or "".
// A switch to h2c is not forwarded: it would open a way to the Machine that goes
// round every check of the edge.
func upgradeOf(r *http.Request, hop upstream.Hop) string {
	if r.ProtoMajor != 1 || r.ProtoMinor != 1 || !hop.Has("Upgrade") || len(r.Header["Upgrade"]) != 1 {
		return ""
	}
	p := strings.TrimSpace(r.Header["Upgrade"][0])
	if p == "" || strings.ContainsAny(p, ", ") || strings.HasPrefix(strings.ToLower(p), "h2") {
		return ""
	}
	return p
}

// upgrade joins client and Machine after a 101. From here on bytes are copied
// unread, until both directions have ended or nothing moves.
func (x *exchange) upgrade(resp *http.Response, stop func() bool) *failure {
	if !stop() {
		return &failure{code: "PC04", text: "the client is gone"}
	}
	nc, rw, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		return &failure{status: 500, code: "PU04", text: "this connection cannot be upgraded", cause: err}
	}
	defer nc.Close()
	x.s.sessions.add()
	defer x.s.sessions.done()
	var head bytes.Buffer
	head.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + resp.Header.Get("Upgrade") + "\r\n")
	hop := upstream.HopOf(resp.Header)
	h := http.Header{}
	for k, vv := range resp.Header {
		if !hop.Drops(k) {
			x.s.give(h, k, vv)
		}
	}
	h["Via"] = append(h["Via"], via(1))
	h["Fly-Request-Id"] = []string{x.id}
	_ = h.Write(&head) // a bytes.Buffer takes all
	head.WriteString("\r\n")
	head.Write(x.conn.Buffered())
	x.status = http.StatusSwitchingProtocols
	if _, err := nc.Write(head.Bytes()); err != nil {
		return nil
	}
	up := x.conn.NetConn()
	if n := rw.Reader.Buffered(); n > 0 {
		early, _ := rw.Reader.Peek(n)
		_ = up.SetWriteDeadline(time.Now().Add(x.s.Limits.WriteIdle))
		if _, err := up.Write(early); err != nil {
			return nil
		}
	}
	x.s.pipes.run(bare(nc), up, x.s.Limits.PipeIdle)
	return nil
}

// bare takes the wrapper off a plain connection, so that the kernel can move its
// bytes.
func bare(nc net.Conn) net.Conn {
	if c, ok := nc.(*http1Conn); ok {
		nc = c.Conn
	}
	if c, ok := nc.(*clientConn); ok && len(c.prefix) == 0 {
		return c.Conn
	}
	return nc
}
