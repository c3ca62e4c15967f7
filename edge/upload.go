package edge

import (
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"bulkhead/edge/upstream"
)

// upload is the body of a request on its way to a Machine. One goroutine reads it from
// the client as long as the request lasts, because a read that has begun cannot be taken
// back. Until more was read than its buffer holds, another Machine may get it all.
type upload struct {
	q    *request
	rc   *http.ResponseController
	done chan struct{} // closed when the reader ends; nil before the first attach

	mu      sync.Mutex
	changed sync.Cond // to or stopped changed
	to      sink      // where the bytes go now; nil between two attempts
	buf     *[]byte
	n       int  // bytes in buf
	began   bool // a byte was read
	lost    bool // buf no longer holds the body's beginning
	eof     bool // the body was read to its end
	stopped bool
	err     error // from reading the client
}

// sink is where one attempt sends a body. Its methods are called one at a time.
type sink interface {
	// write sends some bytes, finish the end of the body.
	write(p []byte) error
	finish() error
	// fail ends an attempt whose body cannot be completed. It may be called at any time.
	fail(err error)
}

// minRead is how much room a read from the client gets at least.
const minRead = 4 << 10

// uploadOf returns the upload of a request that has a body, else nil.
func uploadOf(q *request) *upload {
	if q.r.ContentLength == 0 || q.r.Body == nil || q.r.Body == http.NoBody {
		return nil
	}
	u := &upload{q: q, rc: http.NewResponseController(q.w)}
	u.changed.L = &u.mu
	if q.r.ProtoMajor == 1 {
		_ = u.rc.EnableFullDuplex()
	}
	return u
}

// attach sends the body to a sink from now on. begin gets what was read before, and
// whether that is all; it is called before any call of the sink.
func (u *upload) attach(to sink, begin func(held []byte, eof bool)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.stopped {
		return
	}
	if u.done == nil {
		u.done = make(chan struct{})
		u.buf = copyBufs.Get().(*[]byte)
		go u.run()
	}
	if begin((*u.buf)[:u.n], u.eof); u.err != nil {
		to.fail(u.err)
		return
	}
	u.to = to
	u.changed.Broadcast()
}

// detach stops sending to a sink. A call of it that is under way may go on.
func (u *upload) detach(to sink) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.to == to {
		u.to = nil
	}
}

// replayable reports whether another sink can still get the whole body, and whether
// nothing of it was read yet.
func (u *upload) replayable() (whole, untouched bool) {
	if u == nil {
		return true, false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return !u.lost && u.err == nil, !u.began && !u.eof && u.err == nil
}

// open reports whether the client may still be sending.
func (u *upload) open() bool {
	if u == nil {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return !u.eof
}

// clientError returns what went wrong at the client's side. net/http ends the request's
// context before the reader hears of the error, so that it is waited for a little.
func (u *upload) clientError() error {
	if u == nil {
		return nil
	}
	u.mu.Lock()
	done := u.done
	u.mu.Unlock()
	if done != nil && u.q.r.Context().Err() != nil {
		t := time.NewTimer(100 * time.Millisecond)
		defer t.Stop()
		select {
		case <-done:
		case <-t.C:
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.err
}

// end stops the reader and waits for it. After it nobody reads the request's body. For
// HTTP/1 this ends the request's context: the answer must have been written.
func (u *upload) end() {
	if u == nil {
		return
	}
	u.mu.Lock()
	to, done, eof := u.to, u.done, u.eof
	u.to, u.stopped = nil, true
	u.changed.Broadcast()
	u.mu.Unlock()
	if done == nil {
		return
	}
	if to != nil {
		to.fail(os.ErrClosed)
	}
	if !eof {
		_ = u.rc.SetReadDeadline(time.Unix(1, 0))
	}
	<-done
	copyBufs.Put(u.buf)
}

// run reads until the body ends, the client fails, or end is called.
func (u *upload) run() {
	defer close(u.done)
	for {
		u.mu.Lock()
		for u.to == nil && !u.stopped {
			u.changed.Wait()
		}
		if u.stopped {
			u.mu.Unlock()
			return
		}
		if len(*u.buf)-u.n < minRead {
			u.n, u.lost = 0, true
		}
		at := u.n
		u.mu.Unlock()
		n, err := u.read((*u.buf)[at:])
		u.mu.Lock()
		u.n += n
		u.began = u.began || n > 0
		switch {
		case err == io.EOF:
			u.eof = true
			u.checkTrailer()
		case err != nil && !u.stopped:
			u.err = err
		}
		to := u.to
		u.mu.Unlock()
		if to != nil && !u.pass(to, (*u.buf)[at:at+n], err) {
			u.detach(to) // its answer counts now, or another attempt
		}
		if err != nil {
			return
		}
	}
}

// pass gives a sink what one read gave, and reports whether it takes more.
func (u *upload) pass(to sink, p []byte, err error) bool {
	if len(p) > 0 {
		if werr := to.write(p); werr != nil {
			return false
		}
	}
	switch {
	case err == io.EOF:
		return to.finish() == nil
	case err != nil:
		to.fail(err)
		return false
	}
	return true
}

// read reads from the client, for at most ReadIdle.
func (u *upload) read(p []byte) (int, error) {
	_ = u.rc.SetReadDeadline(time.Now().Add(u.q.s.Limits.ReadIdle))
	u.mu.Lock()
	stopped := u.stopped
	u.mu.Unlock()
	if stopped { // end came between: its deadline has just been overwritten
		return 0, os.ErrDeadlineExceeded
	}
	n, err := u.q.r.Body.Read(p)
	if err == io.EOF {
		_ = u.rc.SetReadDeadline(time.Time{})
	}
	return n, err
}

// checkTrailer takes out what a client may not say in trailers.
func (u *upload) checkTrailer() {
	for k, vv := range u.q.r.Trailer {
		for _, v := range vv {
			if !upstream.TrailerAllowed(k, v) {
				delete(u.q.r.Trailer, k)
				break
			}
		}
	}
}
