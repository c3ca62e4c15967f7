package warden

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"bulkhead/sandbox"
)

// TestAPISocket: what an app does to its own /.fly/api in a real sandbox, and that the
// socket carries bytes both ways afterwards.
func TestAPISocket(t *testing.T) {
	w := newWorld(t).start()
	spec := w.spec("sleep")
	w.begin(spec)
	l, err := w.client.Listen(t.Context(), spec.Machine)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got := l.Addr().String(); !strings.HasSuffix(got, sandbox.APISocket) {
		t.Errorf("the listener is at %q", got)
	}
	go func() { // answers with what it got
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(testTime))
				io.Copy(c, c)
			}()
		}
	}()
	if code, out := w.run(spec.Machine, "api"); code != 0 {
		t.Errorf("an app does to its API what it may not: %s", out)
	}
	if code, out := w.run(spec.Machine, "ask", "after", "4"); code != 0 || out != strings.TrimSpace(strings.Repeat("after\n", 4)) {
		t.Errorf("the API afterwards: %d %q", code, out)
	}
}

// TestAPISocketUnserved: nobody calls Accept, however many connect: they are refused
// in time, and those who come when somebody does get through.
func TestAPISocketUnserved(t *testing.T) {
	w := newWorld(t).start()
	spec := w.spec("sleep")
	w.begin(spec)
	l, err := w.client.Listen(t.Context(), spec.Machine)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if code, out := w.run(spec.Machine, "ask", "x", "2"); code != 2 || strings.Count(out, "temporarily unavailable") != 2 {
		t.Errorf("while nobody serves: %d %q", code, out)
	}
	// Those who went away have left knocks behind; their connections are for the next.
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func(c net.Conn) {
				defer c.Close()
				c.SetDeadline(time.Now().Add(testTime))
				io.Copy(c, c)
			}(c)
		}
	}()
	if code, out := w.run(spec.Machine, "ask", "y", "5"); code != 0 || strings.Count(out, "y") != 5 {
		t.Errorf("when somebody serves: %d %q", code, out)
	}
}
