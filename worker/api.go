package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"bulkhead/api/internalpb"
	"bulkhead/fault"
	"bulkhead/key"
)

// Bounds of what a Machine does with its sandbox.APISocket.
const (
	apiConns    = 16               // at once
	apiCalls    = 512              // at once on the node: streams of the worker's one connection to the controller
	apiRate     = 512 << 10        // bytes a second towards the controller, all connections together
	apiBurst    = 4 << 20          // as large as a request
	apiNewRate  = 20               // connections a second
	apiNewBurst = 40               //
	apiFirst    = 10 * time.Second // to say anything
	apiTake     = 10 * time.Second // for the controller to take the connection
	apiDrain    = 30 * time.Second // for the Machine to take a part of an answer
	apiChunk    = 16 << 10         // bytes of one message
)

// apiGate opens a Machine's API: connections that its processes make go to the
// controller, byte by byte. Nothing of them is read here, and none of them is a call
// before its first byte.
type apiGate struct {
	w      *Worker
	id     key.MachineID
	cancel context.CancelFunc
	done   sync.WaitGroup
	bytes  *bucket
	news   *bucket
}

// openAPI opens a Machine's API, until close.
func (w *Worker) openAPI(id key.MachineID) *apiGate {
	ctx, cancel := context.WithCancel(w.life)
	g := &apiGate{w: w, id: id, cancel: cancel, bytes: newBucket(apiRate, apiBurst), news: newBucket(apiNewRate, apiNewBurst)}
	g.done.Go(func() { g.run(ctx) })
	return g
}

// close ends all connections.
func (g *apiGate) close() {
	g.cancel()
	g.done.Wait()
}

// run listens until the gate is closed, which it is when the sandbox is gone; a listener
// that breaks is made anew. Whether there is still a sandbox the actor knows: the warden
// also says that there is none when it has merely not reached the shim.
func (g *apiGate) run(ctx context.Context) {
	for wait := retryFirst; ctx.Err() == nil; wait = min(2*wait, retryMax) {
		began := time.Now()
		err := g.listen(ctx)
		if ctx.Err() != nil {
			return
		}
		g.w.log.Debug("a machine's API is opened anew", "machine", g.id, "err", err)
		if time.Since(began) > syncSteady {
			wait = retryFirst
		}
		if sleep(ctx, wait) != nil {
			return
		}
	}
}

// listen takes connections until one cannot be taken.
func (g *apiGate) listen(ctx context.Context) error {
	lctx, cancel := context.WithTimeout(ctx, callTimeout)
	l, err := g.w.runtime.Listen(lctx, g.id)
	cancel()
	if err != nil {
		return err
	}
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	places := newGate(apiConns)
	for {
		leave, err := places.enter(ctx)
		if err != nil {
			return err
		}
		if err := g.news.take(ctx, 1); err != nil {
			return err
		}
		c, err := l.Accept()
		if err != nil {
			return err
		}
		g.w.metrics.apiConns.Inc()
		g.done.Go(func() {
			defer leave()
			defer c.Close()
			g.carry(ctx, c)
		})
	}
}

// carry takes one connection to the controller and back.
func (g *apiGate) carry(ctx context.Context, c net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	buf := make([]byte, apiChunk)
	c.SetReadDeadline(time.Now().Add(apiFirst))
	n, err := c.Read(buf)
	if err != nil || g.bytes.take(ctx, n) != nil {
		return
	}
	c.SetReadDeadline(time.Time{})
	leave := g.w.apiCalls.try()
	if leave == nil {
		g.refuse(c, fault.New(fault.TooMany, "the machines of this node make more than %d calls at once; try again", apiCalls))
		return
	}
	defer leave()
	stream, err := g.call(ctx, buf[:n])
	if err != nil {
		g.refuse(c, err)
		return
	}
	g.done.Go(func() { // up; its end is c's or the stream's
		defer stream.CloseSend()
		for {
			n, err := c.Read(buf)
			if n > 0 && (g.bytes.take(ctx, n) != nil || stream.Send(&internalpb.MachineBytes{Data: buf[:n]}) != nil) {
				return
			}
			if err != nil {
				return
			}
		}
	})
	for { // down
		m, err := stream.Recv()
		if err != nil {
			return
		}
		c.SetWriteDeadline(time.Now().Add(apiDrain))
		if _, err := c.Write(m.GetData()); err != nil {
			return
		}
	}
}

// refuse answers who could not be taken to the controller.
func (g *apiGate) refuse(c net.Conn, err error) {
	g.w.metrics.apiRefused.Inc()
	g.w.log.Debug("a machine's call is not taken", "machine", g.id, "err", err)
	c.SetWriteDeadline(time.Now().Add(apiDrain))
	c.Write(refusal(err))
}

// call opens a stream that the controller has taken, with the first bytes.
func (g *apiGate) call(ctx context.Context, first []byte) (grpc.BidiStreamingClient[internalpb.MachineBytes, internalpb.MachineBytes], error) {
	if g.w.opt.API == nil {
		return nil, fault.New(fault.Unavailable, "this worker knows no controller")
	}
	sctx, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(apiTake, cancel)
	stream, err := g.w.opt.API.MachineAPI(sctx)
	if err == nil {
		if err = stream.Send(&internalpb.MachineBytes{MachineId: string(g.id), Data: first}); err == nil {
			var taken metadata.MD
			if taken, err = stream.Header(); err == nil && taken == nil {
				err = io.ErrUnexpectedEOF // ended without a header
			}
		}
		if err == nil && !late.Stop() {
			err = context.DeadlineExceeded
		}
		if err != nil { // the stream's own error says more
			if _, rerr := stream.Recv(); rerr != nil {
				err = rerr
			}
		}
	}
	if err != nil {
		late.Stop()
		cancel()
		return nil, err
	}
	context.AfterFunc(ctx, cancel)
	return stream, nil
}

// refusal is the answer to whoever calls while the controller does not take it. What
// was asked nobody knows here.
func refusal(err error) []byte {
	code, text, msg := 503, "Service Unavailable", "the controller cannot be reached; the machine runs on, try again"
	var f *fault.Error
	switch {
	case !errors.As(err, &f):
	case f.Kind == fault.TooMany:
		code, text, msg = 429, "Too Many Requests", f.Msg
	case f.Kind == fault.Denied:
		code, text, msg = 403, "Forbidden", "this machine is to be stopped or destroyed; no call is taken in its name"
	}
	body := fmt.Sprintf("{\"error\":%q,\"status\":\"unknown\"}\n", msg)
	return []byte("HTTP/1.1 " + strconv.Itoa(code) + " " + text + "\r\nContent-Type: application/json\r\nRetry-After: 2\r\nConnection: close\r\nContent-Length: " +
		strconv.Itoa(len(body)) + "\r\n\r\n" + body)
}

// bucket lets a number of things through a second, and burst at once.
type bucket struct {
	rate, burst float64

	mu   sync.Mutex
	have float64
	at   time.Time
}

func newBucket(rate, burst float64) *bucket {
	return &bucket{rate: rate, burst: burst, have: burst, at: time.Now()}
}

// take waits until n things may pass, or for ctx.
func (b *bucket) take(ctx context.Context, n int) error {
	b.mu.Lock()
	now := time.Now()
	b.have = min(b.burst, b.have+now.Sub(b.at).Seconds()*b.rate)
	b.at = now
	b.have -= float64(n)
	wait := time.Duration(-b.have / b.rate * float64(time.Second))
	b.mu.Unlock()
	if wait <= 0 {
		return ctx.Err()
	}
	return sleep(ctx, wait)
}
