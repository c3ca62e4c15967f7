package upstream

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// writeIdle bounds how long a Machine may refuse to take the next bytes.
const writeIdle = 60 * time.Second

// SendHead writes the request line and the headers of r as they go to the Machine.
// target is the request target; chunked and length frame the body (length -1 with
// chunked false is no body and no Content-Length). upgrade is the protocol asked
// for, or "".
func (c *Conn) SendHead(r *http.Request, target string, o *Origin, hop Hop, chunked bool, length int64, upgrade string) error {
	w := c.bw
	w.WriteString(r.Method)
	w.WriteByte(' ')
	w.WriteString(target)
	w.WriteString(" HTTP/1.1\r\nHost: ")
	w.WriteString(r.Host)
	w.WriteString("\r\n")
	o.Each(r.Header, hop, func(name, value string) {
		w.WriteString(name)
		w.WriteString(": ")
		w.WriteString(value)
		w.WriteString("\r\n")
	})
	if TrailersWanted(r.Header) {
		w.WriteString("TE: trailers\r\nConnection: TE\r\n")
	}
	switch {
	case upgrade != "":
		w.WriteString("Connection: Upgrade\r\nUpgrade: ")
		w.WriteString(upgrade)
		w.WriteString("\r\n")
	case chunked:
		w.WriteString("Transfer-Encoding: chunked\r\n")
		if len(r.Trailer) > 0 {
			names := make([]string, 0, len(r.Trailer))
			for k := range r.Trailer {
				names = append(names, k)
			}
			w.WriteString("Trailer: " + strings.Join(names, ", ") + "\r\n")
		}
	case length >= 0:
		w.WriteString("Content-Length: ")
		var b [20]byte
		w.Write(strconv.AppendInt(b[:0], length, 10))
		w.WriteString("\r\n")
	}
	w.WriteString("\r\n")
	c.rollWrite()
	return w.Flush() // a bufio.Writer keeps its first error
}

// rollWrite moves the write deadline on.
func (c *Conn) rollWrite() {
	if now := time.Now(); c.writeBy.Sub(now) < writeIdle/2 {
		c.writeBy = now.Add(writeIdle)
		_ = c.nc.SetWriteDeadline(c.writeBy)
	}
}

// WriteBody sends p of a body whose length was announced.
func (c *Conn) WriteBody(p []byte) error {
	c.rollWrite()
	_, err := (*connWriter)(c).Write(p)
	return err
}

// WriteChunk sends p as one chunk.
func (c *Conn) WriteChunk(p []byte) error {
	if len(p) == 0 {
		return nil // an empty chunk would end the body
	}
	c.rollWrite()
	var b [20]byte
	c.bw.Write(append(strconv.AppendInt(b[:0], int64(len(p)), 16), '\r', '\n'))
	c.bw.Write(p)
	c.bw.WriteString("\r\n")
	return c.bw.Flush()
}

// EndChunks ends a chunked body with its trailers.
func (c *Conn) EndChunks(trailer http.Header) error {
	c.rollWrite()
	c.bw.WriteString("0\r\n")
	for k, vv := range trailer {
		for _, v := range vv {
			if TrailerAllowed(k, v) {
				c.bw.WriteString(k + ": " + v + "\r\n")
			}
		}
	}
	c.bw.WriteString("\r\n")
	return c.bw.Flush()
}

// ReadHead reads the next response header, an interim one included. headerBy
// bounds the wait for it; the body is then read with a rolling deadline of idle.
// r is only asked for its method. started tells, on an error, whether any byte of
// a response came.
func (c *Conn) ReadHead(r *http.Request, headerBy time.Time, idle time.Duration) (resp *http.Response, started bool, err error) {
	c.readIdle, c.budget = 0, MaxHeader
	c.readBy = headerBy
	if err := c.nc.SetReadDeadline(headerBy); err != nil {
		return nil, false, err
	}
	if _, err := c.br.Peek(1); err != nil {
		return nil, false, err
	}
	resp, err = http.ReadResponse(c.br, r)
	if err != nil {
		if c.budget == 0 {
			err = ErrHeaderTooLarge
		}
		return nil, true, err
	}
	c.budget, c.readIdle = -1, idle
	return resp, true, nil
}

// BodyPending reports whether bytes of the body wait in the buffer, so that the
// next read will not block.
func (c *Conn) BodyPending() bool { return c.br.Buffered() > 0 }
