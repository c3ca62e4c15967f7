package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"bulkhead/warden/wire"
)

// enter moves this process into the sandbox's cgroup and becomes its program. The
// descriptors were opened by root, whose rights they carry.
func enter(count string, argv []string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	for fd := 4; fd < 4+n; fd++ {
		if _, err := syscall.Write(fd, []byte("0")); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
		syscall.Close(fd)
	}
	return syscall.Exec(argv[0], argv, []string{})
}

// run starts the sandbox, serves requests, and leaves the exit status behind.
func run(c wire.ShimConfig) error {
	for fd := wire.FDGo; fd < wire.FDCgroups+c.Cgroups; fd++ {
		syscall.CloseOnExec(fd)
	}
	if err := enterRoot(c); err != nil {
		return err
	}
	if n, err := syscall.Read(wire.FDGo, make([]byte, 1)); n != 1 {
		return fmt.Errorf("the warden gave up before the start: %v", err)
	}
	s := &shim{config: c, reaper: newReaper()}
	pid, err := s.startSandbox()
	if err != nil {
		return err
	}
	// We are the first process of our namespace: the sandbox became our child when the
	// process that made it exited.
	exited := s.reaper.adopt(pid)
	if err := dropPrivileges(); err != nil {
		return err
	}
	go s.serve()
	status := <-exited
	return s.writeExit(status)
}

// shim is the state of a running shim.
type shim struct {
	config wire.ShimConfig
	reaper *reaper
	log    *tail  // of the sandbox: its error log, its last words
	doors  [2]int // sockets: ours, through which doors go to the sandbox, and the sandbox's
}

// startSandbox runs "bulkhead-sandbox start", which reads the second byte of the go
// pipe, reports to the warden, and
// returns the pid of the sandbox process.
func (s *shim) startSandbox() (int, error) {
	logw, err := s.openLog()
	if err != nil {
		return 0, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	files := []uintptr{null.Fd(), wire.FDStdout, wire.FDStderr, logw.Fd()}
	for i := range s.config.Cgroups {
		files = append(files, uintptr(wire.FDCgroups+i))
	}
	ready := len(files)
	if s.doors, err = syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0); err != nil {
		return 0, err
	}
	files = append(files, wire.FDGo, wire.FDSecrets, uintptr(s.doors[1]))
	files = wideTable(files, null.Fd())
	argv := []string{"/proc/self/exe", "enter", strconv.Itoa(s.config.Cgroups), wire.ShimProgram}
	argv = append(argv, s.config.Flags...)
	argv = append(argv, "start", "--ready-fd="+strconv.Itoa(ready), "--secrets-fd="+strconv.Itoa(ready+1), "--api-fd="+strconv.Itoa(ready+2), "--bundle="+wire.ShimBundle, "--pid-file="+wire.ShimPIDFile, s.config.ID)
	_, done, err := s.reaper.start(argv, files)
	logw.Close()
	null.Close()
	syscall.Close(wire.FDGo)
	for fd := wire.FDStdout; fd < wire.FDCgroups+s.config.Cgroups; fd++ {
		if fd != wire.FDOOM && fd != wire.FDMeter {
			syscall.Close(fd)
		}
	}
	if err != nil {
		return 0, s.report(wire.Report{Log: err.Error()}, fmt.Errorf("start %s: %w", s.config.Program, err))
	}
	if status := <-done; status.ExitStatus() != 0 {
		s.log.wait(2 * time.Second)
		return 0, s.report(wire.Report{Log: s.log.text()}, fmt.Errorf("the sandbox did not start (status %#x): %s", uint32(status), s.log.text()))
	}
	b, err := os.ReadFile(wire.ShimPIDFile)
	if err != nil {
		return 0, s.report(wire.Report{Log: err.Error()}, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, s.report(wire.Report{Log: err.Error()}, err)
	}
	return pid, s.report(wire.Report{OK: true}, nil)
}

// tableFD is the highest descriptor that gVisor uses while it boots.
const tableFD = 255

// wideTable adds descriptor tableFD to those of a child. Then the kernel makes the child's
// table large while it has one thread. Boot, which has several, would wait for all
// processors to do the same. Later execs and forks keep the size while the descriptor is
// open; "bulkhead-sandbox start" lets it close when it starts boot.
func wideTable(files []uintptr, fd uintptr) []uintptr {
	for len(files) < tableFD {
		files = append(files, ^uintptr(0))
	}
	return append(files, fd)
}

// openLog makes the pipe behind --log and --panic-log and reads it in the
// background: a sandbox must never block on its own last words.
func (s *shim) openLog() (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s.log = newTail(r, wire.FDMeter)
	return w, nil
}

// report writes the one Report and passes err through.
func (s *shim) report(r wire.Report, err error) error {
	// Nobody may be left to read it: that is the warden's business, not the sandbox's.
	syscall.Write(wire.FDReport, r.Marshal())
	syscall.Close(wire.FDReport)
	return err
}

// writeExit records how the sandbox ended. The exact status comes from the
// sandbox's log; without it (the sandbox was killed) the process's own counts.
func (s *shim) writeExit(status syscall.WaitStatus) error {
	s.log.wait(time.Second)
	e := wire.Exit{At: time.Now(), OOM: oomKilled()}
	if st, ok := s.log.status(); ok && (status == lost || status.Exited()) {
		status = syscall.WaitStatus(st)
	}
	switch {
	case status == lost:
		e.Code = -1
	case status.Signaled():
		e.Code, e.Signal = 128+int(status.Signal()), int(status.Signal())
	default:
		e.Code = status.ExitStatus()
	}
	_, err := syscall.Pwrite(wire.FDExit, e.Marshal(), 0)
	return err
}

// oomKilled reads whether the kernel killed anything for the memory limit. The line
// "oom_kill N" is the same in memory.events (v2) and memory.oom_control (v1).
func oomKilled() bool {
	buf := make([]byte, 4096)
	n, err := syscall.Pread(wire.FDOOM, buf, 0)
	if err != nil || n <= 0 {
		return false
	}
	for line := range strings.Lines(string(buf[:n])) {
		if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
			return strings.TrimSpace(v) != "0"
		}
	}
	return false
}

// serve answers the warden's requests, each on a connection of its own.
func (s *shim) serve() {
	for {
		fd, _, err := syscall.Accept4(wire.FDControl, syscall.SOCK_CLOEXEC)
		if err == syscall.EINTR || err == syscall.ECONNABORTED {
			continue
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "bulkhead-shim: control socket: %v\n", err)
			return
		}
		go func() {
			defer syscall.Close(fd)
			if err := s.handle(wire.FD(fd)); err != nil {
				fmt.Fprintf(os.Stderr, "bulkhead-shim: request: %v\n", err)
			}
		}()
	}
}

// handle carries out one request.
func (s *shim) handle(c wire.FD) error {
	body, files, err := wire.Receive(c)
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	args := wire.ParseShimRequest(body).Args
	if len(files) == 1 && args[0] == wire.ShimDoor {
		var reply wire.ShimReply
		if err := s.door(files[0]); err != nil {
			reply = wire.ShimReply{Code: 1, Log: err.Error()}
		}
		return wire.Send(c, reply.Marshal())
	}
	if len(files) < 3 {
		return fmt.Errorf("%d files instead of stdin, stdout and stderr", len(files))
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	log := newTail(r, -1)
	fds := []uintptr{files[0].Fd(), files[1].Fd(), files[2].Fd(), w.Fd()}
	for _, f := range files[3:] {
		fds = append(fds, f.Fd())
	}
	argv := append(append([]string{wire.ShimProgram}, s.config.Flags...), args...)
	pid, done, err := s.reaper.start(argv, fds)
	w.Close()
	if err != nil {
		return wire.Send(c, wire.ShimReply{Code: -1, Log: err.Error()}.Marshal())
	}
	gone := make(chan struct{})
	go func() { c.Read(make([]byte, 1)); close(gone) }()
	var status syscall.WaitStatus
	select {
	case status = <-done:
	case <-gone:
		syscall.Kill(pid, syscall.SIGKILL)
		<-done
		return nil
	}
	log.wait(time.Second)
	st, known := log.status()
	return wire.Send(c, wire.ShimReply{Status: st, Known: known, Code: status.ExitStatus(), Log: log.text()}.Marshal())
}

// door hands a door to the sandbox, which takes it when somebody inside wants one. One
// that it has not taken yet is of no more use.
func (s *shim) door(f *os.File) error {
	for {
		oob := make([]byte, syscall.CmsgSpace(4))
		n, oobn, _, _, err := syscall.Recvmsg(s.doors[1], make([]byte, 1), oob, syscall.MSG_DONTWAIT|syscall.MSG_CMSG_CLOEXEC)
		if err != nil || n == 0 {
			break
		}
		old, _ := syscall.ParseSocketControlMessage(oob[:oobn])
		for i := range old {
			fds, _ := syscall.ParseUnixRights(&old[i])
			for _, fd := range fds {
				syscall.Close(fd)
			}
		}
	}
	return syscall.Sendmsg(s.doors[0], []byte{1}, syscall.UnixRights(int(f.Fd())), nil, syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL)
}
