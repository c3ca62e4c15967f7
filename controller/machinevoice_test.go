package controller_test

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/controller"
	"bulkhead/fault"
	"bulkhead/internal/await"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/role"
)

// says has the worker report a Machine as it likes.
func (w *fakeWorker) says(id string, st machine.State, local machine.Desired) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.machines[key.MachineID(id)]
	m.state, m.obs.Local, m.obs.Wish = st, string(local), m.a.Wish
	w.report(m, "", "")
}

// setDeaf has it take no more assignments, or take them again.
func (w *fakeWorker) setDeaf(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deaf = on
}

// token asks for an identity token over a connection, and returns the answer's code; 0 when
// there is none.
func (i *inside) token() int {
	resp, _, err := i.ask("POST", "/v1/tokens/oidc", "")
	if err != nil {
		return 0
	}
	return resp.StatusCode
}

// ends reads what a connection has yet to say, and reports whether it ends within a time, and why.
func (i *inside) ends(within time.Duration) (bool, error) {
	over := make(chan error, 1)
	go func() {
		for {
			if _, err := i.stream.Recv(); err != nil {
				over <- err
				return
			}
		}
	}()
	select {
	case err := <-over:
		return true, err
	case <-time.After(within):
		i.cancel()
		<-over
		return false, nil
	}
}

// stolen plays a lost worker, which keeps connections open and says that its Machines run
// whatever is wanted of them, and returns what it got in their names. A connection that is not over within a time it keeps.
func stolen(e *env, within time.Duration) (got []string) {
	e.t.Helper()
	path := "/v1/apps/web/machines/"
	stopped, gone := e.launch("web", image()), e.launch("web", image())
	held, heldGone := e.inside(node, stopped.ID), e.inside(node, gone.ID)
	for _, c := range []*inside{held, heldGone} {
		if code := c.token(); code != 200 {
			e.t.Fatalf("one that runs gets no token: %d", code)
		}
	}
	e.worker.setDeaf(true) // from here on it does nothing that it is told
	try := func(what string, id string, held *inside) {
		began := time.Now()
		if held.token() == 200 {
			got = append(got, "a token of one that is "+what+", over a connection of before")
		}
		if over, _ := held.ends(within); !over {
			got = append(got, "a connection of one that is "+what)
		} else {
			e.t.Logf("the connection of one that is %s is over %v after the wish", what, time.Since(began))
		}
		e.worker.says(id, machine.Started, machine.WantStarted)
		c := e.inside(node, id)
		defer c.cancel()
		if c.token() == 200 {
			got = append(got, "a token of one that is "+what)
		}
	}
	e.want(200, "POST", path+stopped.ID+"/stop", nil, nil)
	try("stopped", stopped.ID, held)
	e.want(200, "DELETE", path+gone.ID+"?force=true", nil, nil)
	try("destroyed", gone.ID, heldGone)
	e.worker.setDeaf(false)
	return got
}

// TestLostWorkerSpeaksForNoMachineThatIsNotToRun: no identity token for a Machine that was
// stopped or destroyed, whatever its worker says, and no connection of it that stays. The
// same is tried of a controller that believes its workers, which must not pass.
func TestLostWorkerSpeaksForNoMachineThatIsNotToRun(t *testing.T) {
	e := newEnvWith(t, func(c *controller.Config) { c.AckLimit = 50 * time.Millisecond })
	e.startWorker()
	e.ctl.MachineTimes(0, 200*time.Millisecond, 0, 0)
	e.app("web")
	if got := stolen(e, 40*time.Second); len(got) > 0 {
		t.Errorf("a lost worker got %q", got)
	}
	e.ctl.BelieveWorkers()
	if got := stolen(e, time.Second); len(got) < 3 {
		t.Errorf("of a controller that believes its workers a lost one got only %q: this tests nothing", got)
	}
}

// TestVoiceFollowsTraffic: a Machine that its edge lets sleep and wakes speaks while it is
// awake, though nobody has changed what is wanted of it; one that calls before its start is
// reported is heard; what is being replaced gets no token.
func TestVoiceFollowsTraffic(t *testing.T) {
	e := newEnvWith(t, func(c *controller.Config) { c.AckLimit = 50 * time.Millisecond })
	e.startWorker()
	e.app("web")
	conf := config{"image": "docker.example/library/app:1", "services": []config{{
		"protocol": "tcp", "internal_port": 8080, "autostart": true, "autostop": "stop", "ports": []config{{"port": 443, "handlers": []string{"tls", "http"}}},
	}}}
	m := e.launch("web", conf)
	path := "/v1/apps/web/machines/" + m.ID
	refused := func(what string) {
		t.Helper()
		e.ctl.MachineTimes(0, 100*time.Millisecond, 0, 0)
		defer e.ctl.MachineTimes(0, 40*time.Second, 0, 0)
		c := e.inside(node, m.ID)
		defer c.cancel()
		if code := c.token(); code != 0 {
			t.Errorf("%s: %d", what, code)
		}
	}
	held := e.inside(node, m.ID)
	if code := held.token(); code != 200 {
		t.Fatal(code)
	}
	e.worker.says(m.ID, machine.Stopped, machine.WantStopped)
	if over, _ := held.ends(40 * time.Second); !over {
		t.Error("a connection outlives an idle machine")
	}
	refused("asleep")
	early := make(chan int)
	c := e.inside(node, m.ID)
	go func() { early <- c.token() }()
	e.worker.says(m.ID, machine.Starting, machine.WantStarted)
	if code := <-early; code != 200 {
		t.Errorf("woken: %d", code)
	}
	// The same after a user's stop, which the next request undoes.
	e.worker.says(m.ID, machine.Started, machine.WantStarted)
	e.want(200, "POST", path+"/stop", nil, nil)
	e.wait("web", m.ID, "stopped")
	refused("stopped")
	e.worker.says(m.ID, machine.Started, machine.WantStarted)
	e.asMachine(200, m.ID, "POST", "/v1/tokens/oidc", "")

	// The old version speaks until the new one is there, and gets no token that names the new one.
	e.worker.setDeaf(true)
	e.want(200, "POST", path, config{"config": conf}, nil)
	e.worker.says(m.ID, machine.Started, machine.WantStarted)
	e.asMachine(200, m.ID, "GET", path, "")
	e.ctl.MachineTimes(0, 100*time.Millisecond, 0, 0)
	e.asMachine(503, m.ID, "POST", "/v1/tokens/oidc", "")
}

// TestMachineConnectionsEnd: a worker holds so many streams and no more, those that name no
// Machine not for long and none for ever; those of a node that is removed end with it.
func TestMachineConnectionsEnd(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	m := e.launch("web", image())
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	worker := internalpb.NewControllerClient(e.dial(role.Worker, node))
	e.ctl.MachineTimes(time.Minute, 0, 0, 0)
	over := make(chan error, controller.MachineNodeConns+20)
	for range cap(over) {
		s, err := worker.MachineAPI(ctx)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, err := s.Recv()
			over <- err
		}()
	}
	for range 20 {
		if err := <-over; !fault.Is(err, fault.TooMany) {
			t.Errorf("one stream too many: %v", err)
		}
	}
	cancel()
	for range controller.MachineNodeConns {
		<-over
	}
	e.ctl.MachineTimes(50*time.Millisecond, 0, 0, 0)
	await.True(e.t, "a stream that names no machine is ended", func() bool { // when those above have given their places back
		over, err := e.inside(node, "").ends(40 * time.Second)
		return over && fault.Is(err, fault.Timeout)
	})
	e.ctl.MachineTimes(time.Minute, 0, 0, 0)

	path := "/v1/apps/web/machines/" + m.ID
	e.ctl.MachineTimes(0, 0, time.Nanosecond, 500*time.Millisecond)
	c := e.inside(node, m.ID)
	if resp, _, err := c.ask("GET", path, ""); err != nil || !resp.Close {
		t.Errorf("an old connection is not told to end: %v %v", resp, err)
	}
	c = e.inside(node, m.ID)
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\n", path) // and no more
	if over, err := c.ends(40 * time.Second); !over || !fault.Is(err, fault.Timeout) {
		t.Errorf("one that says half a request for ever: %v", err)
	}
	e.ctl.MachineTimes(0, 0, time.Hour, time.Hour)
	c = e.inside(node, m.ID)
	if resp, _, err := c.ask("GET", path, ""); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp, err)
	}
	e.want(200, "DELETE", "/v1/platform/nodes/"+string(node)+"?force=true", nil, nil)
	if over, _ := c.ends(5 * time.Second); !over { // before a connection that says nothing ends by itself
		t.Error("a connection outlives its node")
	}
}
