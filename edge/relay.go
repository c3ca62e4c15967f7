package edge

import (
	"io"
	"net/http"
	"strings"

	"bulkhead/edge/upstream"
)

// relay sends a Machine's response to the client. conn is where its body comes
// from, nil for HTTP/2. uploading says that the client is still sending: then its
// HTTP/1 connection cannot be used again. A body that breaks off is cut off at the
// client too, so that it cannot be taken for a whole one.
func (q *request) relay(resp *http.Response, conn *upstream.Conn, uploading bool) {
	defer resp.Body.Close()
	h := q.w.Header()
	closing := h["Connection"]
	hop := upstream.HopOf(resp.Header)
	for k, vv := range resp.Header {
		if k == "Content-Length" || !hop.Drops(k) {
			q.s.give(h, k, vv)
		}
	}
	if resp.ContentLength < 0 && q.r.Method != http.MethodHead {
		delete(h, "Content-Length")
	}
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // or net/http guesses one from the body
	}
	if _, ok := h["Server"]; !ok {
		h["Server"] = []string{"bulkhead"}
	}
	h["Via"] = append(h["Via"], via(resp.ProtoMajor))
	h["Fly-Request-Id"] = []string{q.id}
	if closing != nil || uploading && q.r.ProtoMajor == 1 {
		h["Connection"] = []string{"close"}
	}
	if len(resp.Trailer) > 0 {
		names := make([]string, 0, len(resp.Trailer))
		for k := range resp.Trailer {
			names = append(names, k)
		}
		h["Trailer"] = []string{strings.Join(names, ", ")}
		delete(h, "Content-Length") // HTTP/1.1 carries trailers after chunks only
	}
	announced := len(resp.Trailer)
	q.w.WriteHeader(resp.StatusCode)
	if err := q.copyBody(resp, conn); err != nil {
		q.s.m.errors.WithLabelValues("PC04").Inc()
		q.status = 0
		panic(http.ErrAbortHandler)
	}
	if len(resp.Trailer) > 0 {
		_ = http.NewResponseController(q.w).Flush() // or net/http may frame by length, without trailers
	}
	for k, vv := range resp.Trailer {
		if announced != len(resp.Trailer) {
			k = http.TrailerPrefix + k
		}
		for _, v := range vv {
			h.Add(k, v)
		}
	}
	q.status = resp.StatusCode
}

// copyBody copies the response body. It flushes whenever the next read would wait,
// so that every byte goes on as soon as it is there, but short bodies leave in one
// write.
func (q *request) copyBody(resp *http.Response, conn *upstream.Conn) error {
	if resp.Body == http.NoBody || resp.ContentLength == 0 || q.r.Method == http.MethodHead {
		return nil
	}
	buf := copyBufs.Get().(*[]byte)
	defer copyBufs.Put(buf)
	left := resp.ContentLength
	for {
		if left != 0 && conn != nil && !conn.BodyPending() || conn == nil && (left < 0 || left > 0 && left < resp.ContentLength) {
			if f, ok := q.w.(http.Flusher); ok {
				f.Flush()
			}
		}
		n, err := resp.Body.Read(*buf)
		if n > 0 {
			if _, werr := q.w.Write((*buf)[:n]); werr != nil {
				return werr
			}
			if left > 0 {
				left -= int64(n)
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}
