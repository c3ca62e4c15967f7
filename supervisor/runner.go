package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/notice"
	"bulkhead/role"
	"bulkhead/room"
)

// timing holds every wait of the supervisor, so that tests can be fast.
type timing struct {
	ready    time.Duration // how long a role may take to become ready
	attempts int           // how often a role may fail before it was ready for the first time
	min, max time.Duration // back-off between restarts
	healthy  time.Duration // after so long the back-off starts at min again
	stop     time.Duration // from SIGTERM to SIGKILL
	platform time.Duration // how long the ready roles may take to answer as a whole
}

var defaultTiming = timing{
	ready: 60 * time.Second, attempts: 5,
	min: 100 * time.Millisecond, max: 10 * time.Second, healthy: 60 * time.Second,
	stop: 15 * time.Second, platform: 60 * time.Second,
}

// runner keeps one role running.
type runner struct {
	name    string
	config  role.Config
	cred    owner
	groups  []uint32
	caps    []int
	netns   string // "" or the network namespace to start in
	runDir  string
	env     []string
	names   []string // of files
	files   []*os.File
	spawn   *spawner
	out     *logWriter
	log     *slog.Logger
	timing  timing
	board   *notice.Board
	voice   *voice // of the newest process
	failing bool   // the process before was not ready
	onReady func() // called at each readiness, when set

	quit    chan struct{} // closed: stop
	once    sync.Once
	waits   sync.Once
	ended   chan struct{} // closed: the role does not run and will not be started
	first   chan struct{} // closed: it was ready once
	stuck   chan struct{} // closed: it was not, and is tried until the disk has room
	failure error         // set before ended is closed, when it never became ready
}

func (r *runner) init() {
	r.quit, r.ended, r.first, r.stuck = make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{})
}

// configFile is where the role finds its configuration.
func (r *runner) configFile() string { return filepath.Join(r.runDir, "roles", r.name+".json") }

// loop starts the role again and again until stop is called, or until it failed
// too often to become ready for the first time. Starts that met a full disk do not
// count: bulkheadd would free no space by ending.
func (r *runner) loop() {
	defer close(r.ended)
	wait, wasReady, inRow := r.timing.min, false, 0
	var began time.Time
	full := func() bool { return room.Check(r.config.DataDir, 0, room.Records) != nil }
	for attempt, onFull := 1, 0; ; attempt++ {
		if attempt == 1 {
			began = time.Now()
		}
		wasFull := !wasReady && full()
		ready, lived, err := r.life(&wasReady)
		r.failing = !ready
		if r.stopping() {
			return
		}
		if !wasReady && (wasFull || full()) {
			if onFull++; onFull >= r.timing.attempts || time.Since(began) >= r.timing.ready {
				r.waits.Do(func() { close(r.stuck) })
			}
			attempt = 0
		} else if !wasReady && (attempt >= r.timing.attempts || time.Since(began) >= r.timing.ready) {
			r.failure = fmt.Errorf("the %s does not start: %w", r.name, err)
			return
		}
		if ready && lived >= r.timing.healthy {
			wait, inRow = r.timing.min, 0
		}
		inRow++
		r.tell(ready && inRow <= sayEach, err, lived, wait)
		select {
		case <-r.quit:
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, r.timing.max)
	}
}

// sayEach is how many ends in a row of a role that was ready are said one by one.
const sayEach = 10

// restarts is what the board calls a role's trouble.
func (r *runner) restarts() string { return "the " + r.name + " does not keep running" }

// tell says that a process ended, and lets out what it said, unless the one before
// it ended of the same reason and said the same.
func (r *runner) tell(news bool, err error, lived, wait time.Duration) {
	args := []any{"lived", lived.Round(time.Millisecond).String(), "in", wait.String()}
	if news {
		r.log.Error("a role ended and is started again", append([]any{"what", r.name, "why", err.Error()}, args...)...)
		return
	}
	if r.board.Trouble(r.restarts(), err, append(args, "what", r.name)...) && r.voice != nil {
		r.voice.release()
	}
	if r.voice != nil {
		r.voice.drop()
	}
}

// life is one process of the role, from start to end. It says whether the role
// was ready and for how long, and why it ended.
func (r *runner) life(wasReady *bool) (ready bool, lived time.Duration, err error) {
	p, err := r.start()
	if err != nil {
		return false, 0, err
	}
	defer p.readyPipe.Close()
	limit := time.NewTimer(r.timing.ready)
	defer limit.Stop()
	healthy := time.NewTimer(time.Hour)
	healthy.Stop()
	defer healthy.Stop()
	since := time.Now()
	readyc, quit := p.ready, r.quit
	for {
		select {
		case ok := <-readyc:
			readyc = nil
			if !ok {
				continue // it closed the pipe without a word: it is ending
			}
			limit.Stop()
			p.voice.release()
			healthy.Reset(r.timing.healthy)
			r.log.Info("a role is ready", "what", r.name, "pid", p.cmd.Process.Pid, "after", time.Since(since).Round(time.Millisecond).String())
			ready, since = true, time.Now()
			if !*wasReady {
				*wasReady = true
				close(r.first)
			}
			if r.onReady != nil {
				r.onReady()
			}
		case <-limit.C:
			p.cmd.Process.Kill()
			<-p.done
			p.voice.heard()
			return false, 0, fmt.Errorf("it was not ready within %s", r.timing.ready)
		case <-healthy.C:
			r.board.Over(r.restarts(), "what", r.name)
		case <-quit:
			quit = nil
			p.stop(r.timing.stop, r.log, r.name)
		case <-p.done:
			p.voice.heard()
			return ready, time.Since(since), p.why()
		}
	}
}

func (r *runner) stopping() bool {
	select {
	case <-r.quit:
		return true
	default:
		return false
	}
}

// stop ends the role and returns when it has ended.
func (r *runner) stop() {
	r.once.Do(func() { close(r.quit) })
	<-r.ended
}

// process is one running process of a role.
type process struct {
	cmd       *exec.Cmd
	readyPipe *os.File
	ready     chan bool
	done      chan struct{}
	err       error // of Wait, set before done is closed
	voice     *voice
	kills     int // oomKills at its start
}

// why says how the process ended.
func (p *process) why() error {
	var exit *exec.ExitError
	if errors.As(p.err, &exit) {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return fmt.Errorf("it was killed by signal %d (%s)%s", ws.Signal(), ws.Signal(), forMemory(p.kills))
		}
		if why := p.voice.reason(); why != "" {
			return fmt.Errorf("it ended with exit code %d: %s", exit.ExitCode(), why)
		}
		return fmt.Errorf("it ended with exit code %d", exit.ExitCode())
	}
	if p.err != nil {
		return p.err
	}
	return errors.New("it ended by itself")
}

// stop asks the process to end, and kills it when it has not after the deadline.
// Only the process itself: what it left running is meant to live on.
func (p *process) stop(deadline time.Duration, log *slog.Logger, name string) {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(deadline):
		log.Warn("a role did not stop in time and is killed", "what", name, "deadline", deadline.String())
		p.cmd.Process.Kill()
		<-p.done
	}
}

// start starts the role's program by way of Stage.
func (r *runner) start() (*process, error) {
	readyR, readyW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	logR, logW, err := os.Pipe()
	if err != nil {
		readyR.Close()
		readyW.Close()
		return nil, err
	}
	defer readyW.Close()
	defer logW.Close()
	arg, err := json.Marshal(stage{
		Parent: os.Getpid(), UID: r.cred.uid, GID: r.cred.gid, Groups: r.groups, KeepCaps: r.caps, NoFile: noFile(),
		Args: []string{filepath.Join(r.config.LibDir, "bulkhead-"+r.name), r.configFile()},
	})
	if err != nil {
		return nil, err
	}
	// /proc/self/exe stays this very program, even when a newer one has taken its place.
	cmd := exec.Command("/proc/self/exe", StageCommand, string(arg))
	cmd.Dir = "/"
	cmd.ExtraFiles = append(append([]*os.File{}, r.files...), readyW)
	names := append(append([]string{}, r.names...), "ready")
	cmd.Env = append(append([]string{}, r.env...),
		fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	cmd.Stderr = logW
	// A session of its own: Ctrl-C at the terminal is for bulkheadd, which stops the
	// roles in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	kills := oomKills()
	if err := r.spawn.start(cmd, r.netns); err != nil {
		readyR.Close()
		logR.Close()
		return nil, err
	}
	// What a process says while the role's start fails again and again is held back.
	r.voice = newVoice(r.out, r.failing)
	p := &process{cmd: cmd, readyPipe: readyR, ready: make(chan bool, 1), done: make(chan struct{}), voice: r.voice, kills: kills}
	go r.voice.listen(logR)
	go func() {
		b, _ := io.ReadAll(io.LimitReader(readyR, 6))
		p.ready <- string(b) == "ready\n"
	}()
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// noFile is the limit of open files for roles: a million, or as many as this
// process may give.
func noFile() uint64 {
	const want = 1 << 20
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 1024
	}
	if l.Max >= want || unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: l.Cur, Max: want}) == nil {
		return want
	}
	return l.Max
}
