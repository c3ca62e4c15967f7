package supervisor

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"bulkhead/role"
)

// maxHeld is how many lines of one process are held back; when there are more they
// are written after all.
const maxHeld = 500

// voice is where the lines of one process of a role go. Those of a process that
// comes after one which failed to start are held back until it is ready or has
// failed of another reason: what fails of the same reason says the same.
type voice struct {
	out  *logWriter
	tail tail
	done chan struct{} // closed: everything that it said has been read

	mu   sync.Mutex
	hold bool
	held [][]byte
}

func newVoice(out *logWriter, hold bool) *voice {
	return &voice{out: out, hold: hold, done: make(chan struct{})}
}

// line takes one line, given without its end.
func (v *voice) line(b []byte) {
	v.tail.add(string(b))
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.hold {
		if v.held = append(v.held, bytes.Clone(b)); len(v.held) > maxHeld {
			v.flush()
		}
		return
	}
	v.out.line(b)
}

// release writes what was held back, and what comes later at once.
func (v *voice) release() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.flush()
}

func (v *voice) flush() {
	for _, b := range v.held {
		v.out.line(b)
	}
	v.hold, v.held = false, nil
}

// drop forgets what was held back.
func (v *voice) drop() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.held = nil
}

// heard waits, not for long, until all that an ended process said has been read.
func (v *voice) heard() {
	select {
	case <-v.done:
	case <-time.After(time.Second): // a child of it keeps its log open
	}
}

// listen reads lines from r until it ends.
func (v *voice) listen(r io.ReadCloser) {
	defer close(v.done)
	defer r.Close()
	br := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := br.ReadSlice('\n')
		if len(line) > 0 {
			v.line(bytes.TrimRight(line, "\n"))
		}
		for err == bufio.ErrBufferFull { // skip the rest of a line that is too long
			_, err = br.ReadSlice('\n')
		}
		if err != nil {
			return
		}
	}
}

// reason is what the process itself gave as the cause of its end: the error that
// its main ended with, a panic's first line, or nothing.
func (v *voice) reason() string {
	lines := v.tail.all()
	for i := len(lines) - 1; i >= 0; i-- {
		l := lines[i]
		var m struct{ Msg, Err string }
		switch {
		case json.Unmarshal([]byte(l), &m) == nil && m.Msg == role.EndsWith:
			return m.Err
		case strings.HasPrefix(l, "panic: "), strings.HasPrefix(l, "fatal error: "), strings.HasPrefix(l, "bulkhead-"):
			return l
		}
	}
	return ""
}

// oomKills is how many processes the kernel has ended for want of memory since it
// was started.
func oomKills() int {
	b, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "\noom_kill ")
	n, _, _ := strings.Cut(rest, "\n")
	kills, _ := strconv.Atoi(n)
	return kills
}

// forMemory is the part of a sentence that tells a kill for want of memory from
// another.
func forMemory(before int) string {
	if n := oomKills() - before; n > 0 {
		return fmt.Sprintf("; the kernel ended %d processes for want of memory meanwhile, dmesg names them", n)
	}
	return ""
}
