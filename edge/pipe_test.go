package edge

import (
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// piped runs a pipe and returns its two outer ends, and when it has ended.
func piped(p *pipes, idle time.Duration) (client, machine net.Conn, ended chan struct{}) {
	client, a := net.Pipe()
	machine, b := net.Pipe()
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		p.run(a, b, idle)
	}()
	return client, machine, ended
}

// tick moves one byte through a pipe.
func tick(t *testing.T, from, to net.Conn) {
	t.Helper()
	go from.Write([]byte("x"))
	if _, err := to.Read(make([]byte, 1)); err != nil {
		t.Fatalf("a pipe in use was cut: %v", err)
	}
}

// TestPipeIdle: a pipe on which something moves lasts for longer than one may be
// idle, whichever the direction; when nothing moves it is ended in time.
func TestPipeIdle(t *testing.T) {
	const idle = 10 * time.Minute
	for _, name := range []string{"to the machine", "to the client"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, machine, ended := piped(new(pipes), idle)
				defer client.Close()
				defer machine.Close()
				from, to := client, machine
				if name == "to the client" {
					from, to = machine, client
				}
				for range 5 {
					time.Sleep(idle - time.Second)
					tick(t, from, to)
				}
				still := time.Now()
				<-ended
				if took := time.Since(still); took < idle || took > idle*3/2 {
					t.Errorf("a pipe that may be idle for %v was ended after %v", idle, took)
				}
			})
		})
	}
}

// TestPipeIdleDuringDrain: a server that drains ends what is still, also what was
// still before, and not what is in use.
func TestPipeIdleDuringDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pipes
		c1, m1, still := piped(&p, 10*time.Minute)
		c2, m2, used := piped(&p, 10*time.Minute)
		for _, c := range []net.Conn{c1, m1, c2, m2} {
			defer c.Close()
		}
		tick(t, c1, m1)
		tick(t, m2, c2)
		time.Sleep(time.Second)
		p.drain()
		began := time.Now()
		for range 20 {
			tick(t, m2, c2)
			time.Sleep(drainIdle / 2)
		}
		select {
		case <-still:
		default:
			t.Errorf("a pipe that was still lasts after %v", time.Since(began))
		}
		began = time.Now()
		<-used
		if took := time.Since(began); took > 2*drainIdle {
			t.Errorf("a pipe was ended %v after its last byte, want at most %v", took, 2*drainIdle)
		}
	})
}
