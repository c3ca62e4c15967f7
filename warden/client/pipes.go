package client

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"bulkhead/sandbox"
)

// outputGrace is how long output is awaited after a command has ended and its pipe is empty:
// its children may keep the pipe open for ever.
const outputGrace = 200 * time.Millisecond

// atEnd is how much is read after a command has ended: what a pipe holds at most, and what
// a Read that was under way took.
const atEnd = 64<<10 + outputChunk

// outputChunk is the size of a Read.
const outputChunk = 32 << 10

// pipes carry a command's bytes between the sandbox and the worker. The warden passes their
// other ends on and reads nothing of them.
type pipes struct {
	theirs []*os.File // stdin, stdout, stderr
	stdin  *os.File
	out    []*output
}

// output is one of the two streams that come back.
type output struct {
	r    *os.File
	to   io.Writer
	done chan struct{}

	mu    sync.Mutex
	ended bool
	left  int   // bytes to read after the end
	err   error // of the writer
}

// newPipes starts to carry bytes. A writer that fails calls giveUp.
func newPipes(spec sandbox.ExecSpec, giveUp func()) (*pipes, error) {
	p := &pipes{}
	var all []*os.File
	for range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(all)
			return nil, err
		}
		all = append(all, r, w)
	}
	// The warden's side may open them by their /proc path, as another user.
	for _, f := range []*os.File{all[3], all[5]} {
		if err := f.Chmod(0o622); err != nil {
			closeAll(all)
			return nil, err
		}
	}
	p.stdin, p.theirs = all[1], []*os.File{all[0], all[3], all[5]}
	in := spec.Stdin
	go func() {
		defer p.stdin.Close()
		if in != nil {
			io.Copy(p.stdin, in) // ends when the command has closed its end, at the latest
		}
	}()
	for i, to := range []io.Writer{spec.Stdout, spec.Stderr} {
		if to == nil {
			to = io.Discard
		}
		o := &output{r: all[2+2*i], to: to, done: make(chan struct{}), left: atEnd}
		p.out = append(p.out, o)
		go o.run(giveUp)
	}
	return p, nil
}

// run copies until the pipe ends.
func (o *output) run(giveUp func()) {
	defer close(o.done)
	defer o.r.Close()
	b := make([]byte, outputChunk)
	for {
		n, err := o.r.Read(b)
		if n > 0 {
			if _, werr := o.to.Write(b[:n]); werr != nil {
				o.mu.Lock()
				o.err = werr
				o.mu.Unlock()
				giveUp()
				return
			}
		}
		if err != nil || !o.more(n) {
			return
		}
	}
}

// more reports whether there may be more of the command's own bytes, after n.
func (o *output) more(n int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.ended {
		return true
	}
	o.r.SetReadDeadline(time.Now().Add(outputGrace))
	o.left -= n
	return o.left > 0
}

// end says that the command has ended.
func (o *output) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	o.r.SetReadDeadline(time.Now().Add(outputGrace))
}

// finish waits for what the command has written, and returns the error of a writer.
func (p *pipes) finish() error {
	closeAll(p.theirs)
	p.stdin.Close()
	var errs []error
	for _, o := range p.out {
		o.end()
		<-o.done
		errs = append(errs, o.err)
	}
	return errors.Join(errs...)
}
