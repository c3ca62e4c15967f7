package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"bulkhead/fault"
	"bulkhead/key"
)

// LogLine is one line that an app wrote.
type LogLine struct {
	Timestamp time.Time     `json:"timestamp"`
	Machine   key.MachineID `json:"machine"`
	Stream    string        `json:"stream"` // stdout or stderr
	Message   string        `json:"message"`
	// Bytes are those of a line that is no UTF-8, whose Message has other characters in place.
	Bytes []byte `json:"message_base64,omitempty"`
}

// Raw is the line as the app wrote it, without its end.
func (l LogLine) Raw() []byte {
	if l.Bytes != nil {
		return l.Bytes
	}
	return []byte(l.Message)
}

// LogQuery selects log lines.
type LogQuery struct {
	App     string
	Machine key.MachineID // empty means every Machine of the app
	Tail    int           // the last so many lines before now
	Follow  bool          // go on with what is written from now on
}

// maxLogLine bounds one line of the answer, in bytes.
const maxLogLine = 1 << 20

// Logs calls each for every line, oldest first. With Follow it returns when ctx
// ends (nil) or the stream breaks; each may end it early with an error, which is
// returned.
func (c *Client) Logs(ctx context.Context, q LogQuery, each func(LogLine) error) error {
	path := []string{"apps", q.App, "logs"}
	if q.Machine != "" {
		path = machinePath(q.App, q.Machine, "logs")
	}
	query := url.Values{"tail": {strconv.Itoa(q.Tail)}}
	if q.Follow {
		query.Set("follow", "true")
	} else {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, defaultTimeout)
		defer cancel()
	}
	resp, err := c.send(ctx, call{method: http.MethodGet, path: path, query: query})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 0, 64<<10), maxLogLine)
	for lines.Scan() {
		b := bytes.TrimSpace(lines.Bytes())
		if len(b) == 0 {
			continue // a keep-alive
		}
		var l LogLine
		if err := json.Unmarshal(b, &l); err != nil {
			return fault.Wrap(fault.Internal, err, "%s sent a log line that is not the expected JSON", c.base.Host)
		}
		if err := each(l); err != nil {
			return err
		}
	}
	err = lines.Err()
	switch {
	case q.Follow && ctx.Err() != nil:
		return nil
	case err == nil && q.Follow:
		return fault.New(fault.Unavailable, "%s ended the log stream", c.base.Host)
	case err == nil:
		return nil
	case errors.Is(err, bufio.ErrTooLong):
		return fault.Wrap(fault.Internal, err, "%s sent a log line of more than %d bytes", c.base.Host, maxLogLine)
	}
	return c.transportError(ctx, err)
}
