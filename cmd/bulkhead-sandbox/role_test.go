package main

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/errors/linuxerr"
)

// TestTokenFile: what is read is a minute old at most, whichever way the clock was set;
// many readers ask once, and a failure is not kept for long.
func TestTokenFile(t *testing.T) {
	var asked atomic.Int32
	var fail atomic.Bool
	at := time.Now()
	gate := make(chan struct{})
	close(gate)
	f := &tokenFile{now: func() time.Time { return at }, ask: func() ([]byte, error) {
		<-gate
		n := asked.Add(1)
		if fail.Load() {
			return nil, errors.New("away")
		}
		return []byte(strings.Repeat("x", int(n))), nil
	}}
	read := func(want int) {
		t.Helper()
		var b bytes.Buffer
		err := f.Generate(nil, &b)
		if want < 0 {
			if !errors.Is(err, linuxerr.EIO) || b.Len() != 0 {
				t.Errorf("read %q, %v, want EIO", b.String(), err)
			}
		} else if err != nil || b.Len() != want {
			t.Errorf("read %q, %v, want token %d", b.String(), err, want)
		}
	}
	read(1)
	at = at.Add(tokenKept - 1)
	read(1)
	at = at.Add(1)
	read(2)
	at = at.Add(-time.Hour) // set back
	read(3)
	fail.Store(true)
	at = at.Add(tokenKept)
	read(-1)
	fail.Store(false)
	read(-1)
	at = at.Add(tokenFailed)
	read(5)
	at = at.Add(tokenKept)
	gate = make(chan struct{})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { read(6) })
	}
	close(gate)
	wg.Wait()
}

// TestReadToken: a whole token or none.
func TestReadToken(t *testing.T) {
	const good = "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\na.b.c"
	for in, want := range map[string]string{
		good:               "a.b.c",
		good[:len(good)-1]: "",
		"":                 "",
		good[:20]:          "",
		"no " + good:       "",
		"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\na.b.c\n":       "a.b.c",
		"HTTP/1.0 200 OK\r\n\r\na.b.c":                              "",
		"HTTP/1.0 429 Too Many\r\nContent-Length: 5\r\n\r\na.b.c":   "",
		"HTTP/1.0 503 Away\r\nContent-Length: 5\r\n\r\na.b.c":       "",
		"HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\n{\"a\":1}":     "",
		"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\na.b":           "",
		"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\na.b.":          "",
		"HTTP/1.0 200 OK\r\nX: " + strings.Repeat("x", 2*maxAnswer): "",
	} {
		got, err := readToken(strings.NewReader(in))
		if string(got) != want || (err == nil) != (want != "") {
			t.Errorf("%.60q: %q, %v", in, got, err)
		}
	}
}

// TestAskToken goes the way of a connection of the Machine's: knock, receive, ask, read.
func TestAskToken(t *testing.T) {
	pair := func(kind int) (int, int) {
		p, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return p[0], p[1]
	}
	door, worker := pair(unix.SOCK_SEQPACKET)
	shim, other := pair(unix.SOCK_SEQPACKET)
	defer unix.Close(worker)
	defer unix.Close(shim)
	defer unix.Close(other)
	d := &doors{shim: shim, door: door}
	answers := make(chan string, 2)
	answers <- "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\na.b.c"
	answers <- "" // hangs up
	done := make(chan string, 2)
	go func() {
		for range 2 {
			unix.Read(worker, make([]byte, 1))
			mine, theirs := pair(unix.SOCK_STREAM)
			unix.Sendmsg(worker, []byte{1}, unix.UnixRights(theirs), nil, 0)
			unix.Close(theirs)
			b := make([]byte, len(tokenRequest))
			n, _ := unix.Read(mine, b)
			io.WriteString(&apiStream{fd: mine, deadline: time.Now().Add(time.Minute)}, <-answers)
			unix.Close(mine)
			done <- string(b[:n])
		}
	}()
	if token, err := d.askToken(); err != nil || string(token) != "a.b.c" {
		t.Errorf("%q, %v", token, err)
	}
	if got := <-done; got != tokenRequest {
		t.Errorf("asked %q", got)
	}
	if token, err := d.askToken(); err == nil {
		t.Errorf("of a connection that was hung up: %q", token)
	}
	<-done
	unix.Close(worker)
	if token, err := d.askToken(); err == nil {
		t.Errorf("without a worker: %q", token)
	}
}
