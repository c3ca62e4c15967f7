package controller

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
)

// Bounds of reading logs.
const (
	maxTail       = 100_000
	maxLogSources = 200              // Machines that one request follows
	maxLogStreams = 500              // Machines that all requests follow; half of what a worker's connection carries
	logWrite      = 30 * time.Second // a reader that takes nothing for so long is cut off
	logHeartbeat  = 15 * time.Second // an empty line, so that a dead reader is noticed
)

// LogLine is one line of an answer: newline-delimited JSON (application/x-ndjson).
// This endpoint is Bulkhead's own, the Machines API has none:
//
//	GET /v1/apps/{app}/machines/{id}/logs?follow=true&tail=100
//	GET /v1/apps/{app}/logs?follow=true&tail=100
//
// Lines of one Machine are in order. While following, an empty line is sent now and
// then; readers skip it.
type LogLine struct {
	Timestamp string `json:"timestamp"` // RFC 3339, UTC
	Machine   string `json:"machine"`
	Stream    string `json:"stream"` // "stdout", "stderr", or "bulkhead" for the platform's own words
	Message   string `json:"message"`
	// Bytes are those of a line that is no UTF-8, whose Message has other characters in place.
	Bytes []byte `json:"message_base64,omitempty"`
}

func (c *Controller) machineLogs(r *call) (int, any, error) {
	m, _, err := c.getMachine(r.Context(), r.app(), r.machine())
	if err != nil {
		return 0, nil, err
	}
	return c.streamLogs(r, []*record.Machine{m}, false)
}

// appLogs merges the lines of all Machines of an app, as they come.
func (c *Controller) appLogs(r *call) (int, any, error) {
	a, _, err := c.getApp(r.Context(), r.app())
	if err != nil {
		return 0, nil, err
	}
	records, _, err := record.List[record.Machine](r.Context(), c.store, record.MachinesOf(a.Name))
	if err != nil {
		return 0, nil, err
	}
	var live []*record.Machine
	for _, m := range records {
		if m.Gone == nil {
			live = append(live, m)
		}
	}
	if len(live) > maxLogSources {
		return 0, nil, fault.New(fault.Unprocessable, "app %s has %d machines; logs of at most %d can be read at once: ask for single machines", a.Name, len(live), maxLogSources)
	}
	return c.streamLogs(r, live, true)
}

// streamLogs copies lines from the workers to the caller. An error before the first
// line is answered as usual; after it, it ends the stream.
func (c *Controller) streamLogs(r *call, from []*record.Machine, merged bool) (int, any, error) {
	follow, err := r.flag("follow")
	if err != nil {
		return 0, nil, err
	}
	tail, err := r.number("tail", 0, 0, maxTail)
	if err != nil {
		return 0, nil, err
	}
	// Readers of logs must not take the streams that starts, stops and execs need.
	if n := c.logStreams.Add(int64(len(from))); n > maxLogStreams {
		c.logStreams.Add(-int64(len(from)))
		return 0, nil, fault.New(fault.TooMany, "too many logs are being read at once (%d machines); end some of the readers, or try again later", maxLogStreams)
	}
	defer c.logStreams.Add(-int64(len(from)))
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	stop := context.AfterFunc(c.closing, cancel)
	defer stop()
	lines, errs := make(chan LogLine, 64), make(chan error, len(from))
	var wg sync.WaitGroup
	for _, m := range from {
		wg.Go(func() { errs <- c.readLogs(ctx, m, follow, tail, lines) })
	}
	go func() { wg.Wait(); close(lines) }()
	if err := c.writeLogs(r, lines, errs, merged, follow); err != nil {
		return 0, nil, err
	}
	return 0, nil, errAnswered
}

// readLogs reads one Machine's lines until they end.
func (c *Controller) readLogs(ctx context.Context, m *record.Machine, follow bool, tail int, out chan<- LogLine) error {
	conn, err := c.dial("worker", m.Node)
	if err != nil {
		return err
	}
	if !follow {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, answerLimit)
		defer cancel()
	}
	stream, err := internalpb.NewWorkerClient(conn).Logs(ctx, &internalpb.LogsRequest{MachineId: string(m.ID), Follow: follow, Tail: int32(tail)})
	if err != nil {
		return err
	}
	for {
		l, err := stream.Recv()
		if err != nil {
			return err
		}
		select {
		case out <- logLine(m.ID, l):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func logLine(id key.MachineID, l *internalpb.LogLine) LogLine {
	message, bytes := textOf(l.Line)
	return LogLine{Timestamp: stamp(time.Unix(0, l.TimeNs)), Machine: string(id), Stream: l.Stream, Message: message, Bytes: bytes}
}

// writeLogs writes lines until there are no more.
func (c *Controller) writeLogs(r *call, lines <-chan LogLine, errs <-chan error, merged, follow bool) error {
	started := false
	begin := func() {
		if !started {
			started = true
			r.w.Header().Set("Content-Type", "application/x-ndjson")
			r.w.WriteHeader(http.StatusOK)
		}
	}
	write := func(b []byte) error {
		begin()
		r.rc.SetWriteDeadline(time.Now().Add(logWrite))
		if _, err := r.w.Write(append(b, '\n')); err != nil {
			return err
		}
		if len(lines) == 0 {
			return r.rc.Flush()
		}
		return nil
	}
	beat := time.NewTicker(logHeartbeat)
	defer beat.Stop()
	for {
		select {
		case l, more := <-lines:
			if !more {
				if why := endedBy(r.Context()); why != nil {
					return sayEnded(why, started, write)
				}
				if err := firstError(errs); err != nil && !started && !merged {
					return err
				}
				begin()
				return r.rc.Flush()
			}
			b, err := json.Marshal(l)
			if err != nil {
				return err
			}
			if write(b) != nil {
				return nil // the reader is gone; errAnswered follows
			}
		case <-beat.C:
			if follow && write(nil) != nil {
				return nil
			}
		}
	}
}

// sayEnded tells the reader of a stream why it ends here, in a line of the platform's own.
func sayEnded(why error, started bool, write func([]byte) error) error {
	if !started {
		return why
	}
	b, err := json.Marshal(LogLine{Timestamp: stamp(now()), Stream: "bulkhead", Message: "the stream ends here: " + fault.MessageOf(why)})
	if err == nil {
		err = write(b)
	}
	if err == nil {
		write(nil) // flushed, whatever else waits
	}
	return nil // who does not take it is gone
}

// firstError is the first error that says more than "no more lines".
func firstError(errs <-chan error) error {
	for {
		select {
		case err := <-errs:
			if err != nil && fault.KindOf(err) != fault.Internal {
				return err
			}
		default:
			return nil
		}
	}
}
