// Package fake is a sandbox.Runtime in memory, for tests of whatever runs
// Machines. Its programs are Go functions. A Host is the world: it lives on when
// the worker that used it is dropped, as sandboxes do, and PowerCut takes
// everything away at once.
package fake

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"bulkhead/fault"
	"bulkhead/grant"
	"bulkhead/key"
	"bulkhead/privnet"
	"bulkhead/sandbox"
)

// Program is what a sandbox runs; it returns its exit code, soon after Done is closed.
type Program func(p *Process) int

// Process is a Program's view of its sandbox.
type Process struct {
	Spec   sandbox.Spec
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	// Done is closed when the process was killed.
	Done <-chan struct{}

	box *box
}

// Handle makes the process receive the signals on the channel that it returns
// instead of dying of them. SIGKILL cannot be handled.
func (p *Process) Handle(signals ...int) <-chan int {
	p.box.mu.Lock()
	defer p.box.mu.Unlock()
	for _, s := range signals {
		p.box.handled[s] = true
	}
	return p.box.signals
}

// Env looks up a variable of the process.
func (p *Process) Env(name string) string {
	for _, kv := range append(slices.Clone(p.Spec.Secrets), p.Spec.Env...) {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			return v
		}
	}
	return ""
}

// Sleep is a Program that runs until it is signalled.
func Sleep(p *Process) int { <-p.Done; return 0 }

// Host is a node's world of sandboxes; it implements sandbox.Runtime. Set its
// fields before it is used.
type Host struct {
	// GrantKey checks each Spec's grant for Node, when it is set.
	GrantKey ed25519.PublicKey
	Node     key.Node
	// Now is the clock that grants are held against; time.Now when nil.
	Now func() time.Time
	// Before, when it is set, is called before an operation ("start", "attach",
	// "signal", "exec", "processes", "remove", "list") takes effect; its error is the
	// operation's, which then has no effect.
	Before func(op string, id key.MachineID) error
	// After is called when an operation has taken effect; its error is the
	// operation's: done, but the answer was lost. A start is then undone, as the
	// contract asks.
	After func(op string, id key.MachineID) error

	mu       sync.Mutex
	programs map[string]Program
	boxes    map[key.MachineID]*box
	starts   map[key.MachineID]int
	newest   map[key.MachineID]int64 // generations started
	faults   []string
}

// NewHost returns an empty Host that knows the program "sleep".
func NewHost() *Host {
	return &Host{programs: map[string]Program{"sleep": Sleep}, boxes: map[key.MachineID]*box{}, starts: map[key.MachineID]int{}, newest: map[key.MachineID]int64{}}
}

// Install makes a program known by a name, the last part of Args[0].
func (h *Host) Install(name string, p Program) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.programs[name] = p
}

// Starts is how many times a Machine's process was started.
func (h *Host) Starts(id key.MachineID) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.starts[id]
}

// Spec returns what the Machine's sandbox was started from.
func (h *Host) Spec(id key.MachineID) (sandbox.Spec, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if b := h.boxes[id]; b != nil {
		return b.spec, true
	}
	return sandbox.Spec{}, false
}

// Faults lists what the users of the Host did and must never do, such as two
// sandboxes in one slot.
func (h *Host) Faults() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.faults)
}

// PowerCut ends everything at once and leaves nothing behind.
func (h *Host) PowerCut() {
	h.mu.Lock()
	boxes := h.boxes
	h.boxes = map[key.MachineID]*box{}
	h.mu.Unlock()
	for _, b := range boxes {
		b.end(sandbox.Exit{Code: -1, At: time.Now()})
	}
}

// Vanish kills a Machine's sandbox from outside: it leaves no exit status behind.
func (h *Host) Vanish(id key.MachineID) {
	h.mu.Lock()
	b := h.boxes[id]
	h.mu.Unlock()
	if b != nil {
		b.end(sandbox.Exit{Code: -1, At: time.Now()})
	}
}

// OOM ends a Machine's process as the kernel does when its memory is used up.
func (h *Host) OOM(id key.MachineID) {
	h.mu.Lock()
	b := h.boxes[id]
	h.mu.Unlock()
	if b != nil {
		b.end(sandbox.Exit{Code: 137, Signal: 9, OOM: true, At: time.Now()})
	}
}

// box is one sandbox, running or ended.
type box struct {
	spec    sandbox.Spec
	started time.Time
	out     [2]*os.File // read ends: stdout, stderr
	in      [2]*os.File // write ends
	signals chan int
	killed  chan struct{} // tells the program to end
	done    chan struct{} // closed when exit is set

	mu      sync.Mutex
	handled map[int]bool
	exit    sandbox.Exit
	over    bool
	door    *door // the newest listener's
}

// end sets the exit, once, and closes the process's output.
func (b *box) end(e sandbox.Exit) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return
	}
	b.over, b.exit = true, e
	close(b.killed)
	b.in[0].Close()
	b.in[1].Close()
	close(b.done)
}

// signal does what the kernel would.
func (b *box) signal(n int) {
	b.mu.Lock()
	handled := b.handled[n] && n != 9
	b.mu.Unlock()
	switch {
	case handled:
		select {
		case b.signals <- n:
		default:
		}
	case n == 17 || n == 18 || n == 23 || n == 28: // CHLD, CONT, URG, WINCH are ignored by default
	default:
		b.end(sandbox.Exit{Code: 128 + n, Signal: n, At: time.Now()})
	}
}

func (h *Host) before(op string, id key.MachineID) error {
	if h.Before == nil {
		return nil
	}
	return h.Before(op, id)
}

func (h *Host) after(op string, id key.MachineID) error {
	if h.After == nil {
		return nil
	}
	return h.After(op, id)
}

// Start is sandbox.Runtime's.
func (h *Host) Start(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	if err := ctx.Err(); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the start was given up")
	}
	if err := h.before("start", spec.Machine); err != nil {
		return nil, err
	}
	b, err := h.start(spec)
	if err != nil {
		return nil, err
	}
	if err := h.after("start", spec.Machine); err != nil {
		h.drop(spec.Machine)
		return nil, err
	}
	return h.handle(b)
}

func (h *Host) start(spec sandbox.Spec) (*box, error) {
	if err := h.check(spec); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.boxes[spec.Machine] != nil {
		return nil, fault.New(fault.Conflict, "machine %s has a sandbox already; remove it first", spec.Machine)
	}
	for _, o := range h.boxes {
		if o.spec.Slot == spec.Slot {
			h.faults = append(h.faults, fmt.Sprintf("slot %d of machine %s given to %s", spec.Slot, o.spec.Machine, spec.Machine))
			return nil, fault.New(fault.Conflict, "slot %d is taken by machine %s", spec.Slot, o.spec.Machine)
		}
	}
	prog := h.programs[path.Base(spec.Args[0])]
	if prog == nil {
		return nil, fault.New(fault.Unprocessable, "the command %q does not exist in the image", spec.Args[0])
	}
	b := &box{spec: spec, started: time.Now(), signals: make(chan int, 16), killed: make(chan struct{}), done: make(chan struct{}), handled: map[int]bool{}}
	for i := range 2 {
		var err error
		if b.out[i], b.in[i], err = os.Pipe(); err != nil {
			return nil, fault.Wrap(fault.Internal, err, "no pipe for the output")
		}
	}
	h.boxes[spec.Machine] = b
	h.starts[spec.Machine]++
	go func() {
		code := prog(&Process{Spec: spec, Stdin: bytes.NewReader(nil), Stdout: b.in[0], Stderr: b.in[1], Done: b.killed, box: b})
		b.end(sandbox.Exit{Code: code, At: time.Now()})
	}()
	return b, nil
}

// check refuses what the contract calls malformed or not granted.
func (h *Host) check(s sandbox.Spec) error {
	if _, err := key.ParseMachineID(string(s.Machine)); err != nil {
		return err
	}
	if _, err := key.ParseInstanceID(string(s.Instance)); err != nil {
		return err
	}
	if err := privnet.CheckSlot(s.Slot); err != nil {
		return fault.New(fault.Invalid, "%w", err)
	}
	if _, err := key.ParseDigest(string(s.Image)); err != nil {
		return err
	}
	if len(s.Args) == 0 || !path.IsAbs(s.Cwd) || len(s.Upper) > sandbox.MaxUpper {
		return fault.New(fault.Invalid, "the spec of machine %s needs a command, an absolute working directory and at most %d bytes of files", s.Machine, sandbox.MaxUpper)
	}
	n := 0
	for _, x := range append(slices.Clone(s.Args), s.Env...) {
		n += len(x) + 1
		if strings.ContainsRune(x, 0) {
			return fault.New(fault.Invalid, "an argument or variable of machine %s has a zero byte", s.Machine)
		}
	}
	if n > sandbox.MaxStrings {
		return fault.New(fault.Invalid, "the arguments and variables of machine %s take %d bytes", s.Machine, n)
	}
	if h.GrantKey == nil {
		return nil
	}
	g, err := grant.Verify(h.GrantKey, h.Node, s.Grant, s.GrantSignature)
	if err != nil {
		return err
	}
	if g.Machine != s.Machine || g.Instance != s.Instance {
		return fault.New(fault.Denied, "the grant is for machine %s, version %s", g.Machine, g.Instance)
	}
	now := time.Now
	if h.Now != nil {
		now = h.Now
	}
	if err := g.Usable(now()); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if g.Generation < h.newest[s.Machine] {
		return fault.New(fault.Denied, "the grant of machine %s was replaced", s.Machine).WithStatus(grant.StatusReplaced)
	}
	h.newest[s.Machine] = g.Generation
	return nil
}

// find returns the Machine's box or NotFound.
func (h *Host) find(op string, id key.MachineID) (*box, error) {
	if err := h.before(op, id); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	b := h.boxes[id]
	if b == nil {
		return nil, fault.New(fault.NotFound, "machine %s has no sandbox", id)
	}
	return b, nil
}

// running is find for what needs a process.
func (h *Host) running(op string, id key.MachineID) (*box, error) {
	b, err := h.find(op, id)
	if err != nil {
		return nil, err
	}
	select {
	case <-b.done:
		return nil, fault.New(fault.NotFound, "machine %s does not run", id)
	default:
		return b, nil
	}
}

// Attach is sandbox.Runtime's.
func (h *Host) Attach(ctx context.Context, id key.MachineID) (sandbox.Sandbox, error) {
	b, err := h.find("attach", id)
	if err != nil {
		return nil, err
	}
	if err := h.after("attach", id); err != nil {
		return nil, err
	}
	return h.handle(b)
}

// Signal is sandbox.Runtime's.
func (h *Host) Signal(ctx context.Context, id key.MachineID, signal int) error {
	b, err := h.running("signal", id)
	if err != nil {
		return err
	}
	b.signal(signal)
	return h.after("signal", id)
}

// Exec is sandbox.Runtime's: it runs another installed program.
func (h *Host) Exec(ctx context.Context, id key.MachineID, spec sandbox.ExecSpec) (sandbox.ExecResult, error) {
	b, err := h.running("exec", id)
	if err != nil {
		return sandbox.ExecResult{}, err
	}
	if len(spec.Args) == 0 {
		return sandbox.ExecResult{}, fault.New(fault.Invalid, "there is no command to run")
	}
	h.mu.Lock()
	prog := h.programs[path.Base(spec.Args[0])]
	h.mu.Unlock()
	if prog == nil {
		return sandbox.ExecResult{}, fault.New(fault.Unprocessable, "the command %q does not exist in the image", spec.Args[0])
	}
	if spec.Timeout == 0 {
		spec.Timeout = sandbox.MaxExec
	}
	caller := ctx
	ctx, cancel := context.WithTimeout(ctx, spec.Timeout)
	defer cancel()
	s := b.spec
	s.Args, s.Env, s.Cwd = spec.Args, append(slices.Clone(s.Env), spec.Env...), spec.Cwd
	s.Secrets = spec.Secrets
	in, out, errs := spec.Stdin, spec.Stdout, spec.Stderr
	if in == nil {
		in = bytes.NewReader(nil)
	}
	if out == nil {
		out = io.Discard
	}
	if errs == nil {
		errs = io.Discard
	}
	failed := &failing{cancel: cancel}
	code := make(chan int, 1)
	b.mu.Lock()
	dead := &box{spec: s, signals: make(chan int), handled: map[int]bool{}, door: b.door}
	b.mu.Unlock()
	go func() {
		code <- prog(&Process{Spec: s, Stdin: in, Stdout: failed.on(out), Stderr: failed.on(errs), Done: ctx.Done(), box: dead})
	}()
	c := <-code
	switch err := failed.err(); {
	case err != nil:
		return sandbox.ExecResult{}, fault.Wrap(fault.Timeout, err, "what the command wrote was not taken")
	case caller.Err() != nil:
		return sandbox.ExecResult{}, fault.Wrap(fault.Timeout, caller.Err(), "the caller gave the command up")
	case ctx.Err() != nil:
		return sandbox.ExecResult{Code: 137, Signal: 9}, nil
	}
	return sandbox.ExecResult{Code: c}, h.after("exec", id)
}

// Processes is sandbox.Runtime's.
func (h *Host) Processes(ctx context.Context, id key.MachineID) ([]sandbox.Process, error) {
	b, err := h.running("processes", id)
	if err != nil {
		return nil, err
	}
	return []sandbox.Process{
		{PID: 1, Command: "bulkhead-init", Started: b.started},
		{PID: 2, Command: strings.Join(b.spec.Args, " "), Started: b.started},
	}, h.after("processes", id)
}

// drop ends and forgets a Machine's box.
func (h *Host) drop(id key.MachineID) {
	h.mu.Lock()
	b := h.boxes[id]
	delete(h.boxes, id)
	h.mu.Unlock()
	if b != nil {
		b.end(sandbox.Exit{Code: 137, Signal: 9, At: time.Now()})
		b.out[0].Close()
		b.out[1].Close()
	}
}

// Remove is sandbox.Runtime's.
func (h *Host) Remove(ctx context.Context, id key.MachineID) error {
	if err := h.before("remove", id); err != nil {
		return err
	}
	h.drop(id)
	return h.after("remove", id)
}

// List is sandbox.Runtime's.
func (h *Host) List(ctx context.Context) ([]sandbox.Info, error) {
	if err := h.before("list", ""); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []sandbox.Info
	for id, b := range h.boxes {
		running := true
		select {
		case <-b.done:
			running = false
		default:
		}
		out = append(out, sandbox.Info{Machine: id, Instance: b.spec.Instance, Slot: b.spec.Slot, Running: running})
	}
	slices.SortFunc(out, func(a, b sandbox.Info) int { return strings.Compare(string(a.Machine), string(b.Machine)) })
	return out, h.after("list", "")
}
