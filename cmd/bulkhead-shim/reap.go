package main

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"bulkhead/warden/wire"
)

// lost is the status of a child that ended before it became ours: how is in its log
// or nowhere. No real wait status has this bit.
const lost syscall.WaitStatus = 1 << 31

// reaper starts children and collects all of them, adopted ones too. Only it calls
// wait4, so no child's status is lost to another waiter.
type reaper struct {
	mu      sync.Mutex
	waiting map[int]chan syscall.WaitStatus
	dead    map[int]syscall.WaitStatus // adopted children that nobody asked for yet
	started chan struct{}
}

func newReaper() *reaper {
	r := &reaper{waiting: map[int]chan syscall.WaitStatus{}, dead: map[int]syscall.WaitStatus{}, started: make(chan struct{}, 1)}
	go r.loop()
	return r
}

// start runs argv with files as its descriptors 0, 1, 2 ...
func (r *reaper) start(argv []string, files []uintptr) (pid int, done chan syscall.WaitStatus, err error) {
	r.mu.Lock() // the loop may not reap the child before it is registered
	defer r.mu.Unlock()
	pid, err = syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{Env: []string{}, Files: files})
	if err != nil {
		return 0, nil, err
	}
	done = make(chan syscall.WaitStatus, 1)
	r.waiting[pid] = done
	select {
	case r.started <- struct{}{}:
	default:
	}
	return pid, done, nil
}

// adopt waits for a child that came to us when its parent exited.
func (r *reaper) adopt(pid int) chan syscall.WaitStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	done := make(chan syscall.WaitStatus, 1)
	if status, ok := r.dead[pid]; ok {
		done <- status
		return done
	}
	if syscall.Kill(pid, 0) == syscall.ESRCH {
		done <- lost
		return done
	}
	r.waiting[pid] = done
	return done
}

func (r *reaper) loop() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil: // no children
			<-r.started
		default:
			r.mu.Lock()
			if done, ok := r.waiting[pid]; ok {
				delete(r.waiting, pid)
				done <- status
			} else {
				r.dead[pid] = status
			}
			r.mu.Unlock()
		}
	}
}

// tail reads a log to its end, keeps its last wire.MaxLog bytes and the wait status that
// bulkhead-sandbox writes last. Lines that are a wire.Meter go to a file of their own.
type tail struct {
	mu   sync.Mutex
	buf  []byte
	done chan struct{}

	meter int    // descriptor; -1 when there is none
	line  []byte // the beginning of a line; longer than a Meter's it is cut
}

func newTail(r *os.File, meter int) *tail {
	t := &tail{done: make(chan struct{}), meter: meter}
	go func() {
		defer close(t.done)
		defer r.Close()
		buf := make([]byte, 4096)
		for {
			n, err := r.Read(buf)
			if meter >= 0 {
				t.lines(buf[:n])
			}
			t.mu.Lock()
			t.buf = append(t.buf, buf[:n]...)
			if over := len(t.buf) - wire.MaxLog; over > 0 {
				t.buf = append([]byte(nil), t.buf[over:]...)
			}
			t.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return t
}

// lines takes what follows in the log and writes the Meters in it over each other.
func (t *tail) lines(b []byte) {
	for _, c := range b {
		if c != '\n' {
			if len(t.line) <= wire.MaxMeter {
				t.line = append(t.line, c)
			}
			continue
		}
		if len(t.line) <= wire.MaxMeter && strings.HasPrefix(string(t.line), wire.MeterPrefix) {
			for len(t.line) < wire.MaxMeter {
				t.line = append(t.line, ' ')
			}
			syscall.Pwrite(t.meter, append(t.line, '\n'), 0) // the next one mends it
		}
		t.line = t.line[:0]
	}
}

// wait returns when the log has ended, or after d.
func (t *tail) wait(d time.Duration) {
	select {
	case <-t.done:
	case <-time.After(d):
	}
}

func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}

// status finds the last {"status":N} line.
func (t *tail) status() (uint32, bool) {
	text := strings.TrimRight(t.text(), "\n")
	last := text[strings.LastIndexByte(text, '\n')+1:]
	num, ok := strings.CutPrefix(last, `{"status":`)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSuffix(num, "}"), 10, 32)
	return uint32(n), err == nil
}
