package sandboxtest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"bulkhead/fault"
	"bulkhead/key"
)

// ask is App's verb: it holds n connections at once, sends the word over each and
// prints the answers. The code is how many failed.
func ask(p Process, word string, n int) (failed int) {
	conns := make([]net.Conn, 0, n)
	for range n {
		c, err := p.Connect()
		if err != nil {
			fmt.Fprintln(p.Stdout, err)
			failed++
			continue
		}
		defer c.Close()
		conns = append(conns, c)
	}
	for _, c := range conns {
		c.SetDeadline(time.Now().Add(Timeout / 2))
		fmt.Fprintln(c, word)
		answer, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			fmt.Fprintln(p.Stdout, err)
			failed++
			continue
		}
		fmt.Fprint(p.Stdout, answer)
	}
	return failed
}

// echo answers each line that arrives at l with name and the line, until l ends.
func echo(l net.Listener, name string) (ended chan struct{}) {
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		var all sync.WaitGroup
		defer all.Wait()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(Timeout / 2))
				line, err := bufio.NewReader(c).ReadString('\n')
				if err == nil {
					io.WriteString(c, name+" "+line)
				}
			})
		}
	}()
	return ended
}

func testListen(t *testing.T, s *suite) {
	_, err := s.rt.Listen(s.ctx, key.NewMachineID())
	s.kind("listen for nobody", err, fault.NotFound)
	spec, _ := s.startReady("sleep")
	asks := func(n int) (int, string) {
		t.Helper()
		r, out, _ := s.exec(spec, nil, "ask", "hello", fmt.Sprint(n))
		return r.Code, out
	}
	if code, out := asks(1); code != 1 || !strings.Contains(out, "refused") {
		t.Errorf("without a listener: %d %q", code, out)
	}
	first, err := s.rt.Listen(s.ctx, spec.Machine)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	firstEnded := echo(first, "first")
	if code, out := asks(8); code != 0 || out != strings.Repeat("first hello\n", 8) {
		t.Errorf("through a listener: %d %q", code, out)
	}
	// A worker that comes after another one.
	second, err := s.rt.Listen(s.ctx, spec.Machine)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	secondEnded := echo(second, "second")
	if code, out := asks(1); code != 0 || out != "second hello\n" {
		t.Errorf("through the second listener: %d %q", code, out)
	}
	// One that has gone, and a third that follows.
	second.Close()
	<-secondEnded
	if code, out := asks(1); code != 1 {
		t.Errorf("the listener is closed, and still: %q", out)
	}
	third, err := s.rt.Listen(s.ctx, spec.Machine)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	thirdEnded := echo(third, "third")
	if code, out := asks(1); code != 0 || out != "third hello\n" {
		t.Errorf("through the third listener: %d %q", code, out)
	}
	if err := s.rt.Remove(s.ctx, spec.Machine); err != nil {
		t.Fatal(err)
	}
	for name, ended := range map[string]chan struct{}{"first": firstEnded, "third": thirdEnded} {
		select {
		case <-ended:
		case <-s.ctx.Done():
			t.Errorf("the %s listener goes on without its sandbox", name)
		}
	}
}
