package worker

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/logs"
	"bulkhead/machine"
	"bulkhead/sandbox"
)

// pumps copies a sandbox's output into the Machine's logs, line by line.
type pumps struct {
	files [2]*os.File
	done  sync.WaitGroup
}

// pump starts copying. The files belong to the sandbox's handle.
func pump(store *logs.Store, id key.MachineID, box sandbox.Sandbox, kept func(error)) *pumps {
	p := &pumps{files: [2]*os.File{box.Stdout(), box.Stderr()}}
	for i, stream := range []string{logs.Stdout, logs.Stderr} {
		if p.files[i] == nil {
			continue
		}
		f := p.files[i]
		p.done.Go(func() {
			copyLines(f, func(lines []logs.Line) {
				for j := range lines {
					lines[j].Stream = stream
				}
				kept(store.Append(id, lines...))
			})
		})
	}
	return p
}

// finish ends the copying after what is there now has been read, which takes at
// most the given time; with 0 at once.
func (p *pumps) finish(within time.Duration) {
	bounded := true
	for _, f := range p.files {
		if f != nil && f.SetReadDeadline(time.Now().Add(within)) != nil {
			bounded = false // not a pipe that can be polled: its end of file ends the copying
			f.Close()
		}
	}
	if bounded {
		p.done.Wait()
	}
}

// copyLines reads r to its end and hands over whole lines, many at a time; a line
// longer than logs.MaxLine comes in parts, which end between characters.
func copyLines(r io.Reader, emit func([]logs.Line)) {
	buf := make([]byte, 0, 2*logs.MaxLine)
	for {
		n, err := r.Read(buf[len(buf):min(cap(buf), len(buf)+logs.MaxLine)]) // there is room: a rest is at most MaxLine
		buf = buf[:len(buf)+n]
		now := time.Now()
		var lines []logs.Line
		rest := buf
		for {
			i := bytes.IndexByte(rest, '\n')
			if i < 0 {
				break
			}
			lines = append(lines, logs.Line{Time: now, Text: bytes.TrimSuffix(rest[:i], []byte("\r"))})
			rest = rest[i+1:]
		}
		for len(rest) > logs.MaxLine {
			n := logs.Whole(rest, logs.MaxLine)
			lines = append(lines, logs.Line{Time: now, Text: rest[:n]})
			rest = rest[n:]
		}
		if err != nil && len(rest) > 0 {
			lines = append(lines, logs.Line{Time: now, Text: rest})
			rest = nil
		}
		if len(lines) > 0 {
			emit(lines)
		}
		buf = append(buf[:0], rest...)
		if err != nil {
			return
		}
	}
}

// say writes a line of the platform's own into the Machine's logs.
func (a *actor) say(format string, args ...any) {
	line := logs.Line{Time: time.Now(), Stream: logs.Platform, Text: fmt.Appendf(nil, format, args...)}
	a.w.kept(a.w.logs.Append(a.id, line))
}

// lostFor is how long no output must have been lost to say that it is kept again.
const lostFor = 5 * time.Second

// kept takes the outcome of every write to Machines' logs: that output is lost is
// said once for all of them, and so is its end.
func (w *Worker) kept(err error) {
	const what = "output of machines is lost; they run on"
	if err != nil {
		w.lostAt.Store(time.Now().UnixNano())
		if no := syscall.Errno(0); errors.As(err, &no) { // without the Machine's name: once for all
			err = fault.System(no, "a machine's log in %s cannot be written", filepath.Join(w.opt.Dir, "logs"))
		}
		w.board.Trouble(what, err)
		return
	}
	last := w.lostAt.Load()
	if last != 0 && time.Since(time.Unix(0, last)) > lostFor && w.lostAt.CompareAndSwap(last, 0) {
		w.board.Over(what)
	}
}

// sentence tells how a process ended.
func sentence(e sandbox.Exit, cfg *machine.Config) string {
	switch {
	case e.OOM:
		return fmt.Sprintf("the machine ran out of memory and its process was killed: it had used its %d MiB, files that it wrote among them; raise guest.memory_mb", cfg.EffectiveGuest().MemoryMB)
	case e.Code < 0:
		return "the machine's process vanished without an exit code"
	case e.Signal > 0:
		return fmt.Sprintf("the process was ended by signal %d", e.Signal)
	}
	return fmt.Sprintf("the process ended with code %d", e.Code)
}
