package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/privnet"
)

// StrangerCommand is the first argument with which bulkheadd runs itself as a user
// without any right, to try what such a user can open. Its main (and a test's) hands
// over to Stranger.
const StrangerCommand = "doctor-stranger"

// errand is one thing that a stranger tries.
type errand struct {
	Path   string `json:"path"`
	Socket bool   `json:"socket"` // connect to it; else open it for reading
	Kind   int    `json:"kind"`   // of the socket: SOCK_STREAM and so on
}

// errandResult is what came of it. Errno 0 means that it worked.
type errandResult struct {
	Errno syscall.Errno `json:"errno"`
}

// Users without any right, as which everything is tried.
var strangers = []struct {
	name string
	id   uint32
}{
	{"user nobody", 65534},
	// Of a slot that a host hardly ever fills: a Machine that got out of its sandbox.
	{"a Machine's user", privnet.UIDRange(privnet.MaxSlot)},
}

// asStranger tries errands as another user, without groups and in a network
// namespace.
func asStranger(ctx context.Context, uid uint32, ns string, errands []errand) ([]errandResult, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	in, err := json.Marshal(errands)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", StrangerCommand, strconv.FormatUint(uint64(uid), 10))
	cmd.Dir, cmd.Env = "/", []string{"GOMAXPROCS=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	var out, complaints bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &complaints
	err = within(ns, cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return nil, fmt.Errorf("try as user %d: %w: %.300s", uid, err, complaints.String())
	}
	var got []errandResult
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || len(got) != len(errands) {
		return nil, fmt.Errorf("try as user %d: %d errands, and the answer %.100q", uid, len(errands), out.String())
	}
	return got, nil
}

// Stranger is the process of asStranger: it reads errands, tries them and writes what
// came of them. It returns the exit code. Whoever calls it with rights is refused: it
// would show nothing.
func Stranger(args []string) int {
	if err := stranger(args, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "bulkheadd: %v\n", err)
		return 1
	}
	return 0
}

func stranger(args []string, in io.Reader, out io.Writer) error {
	groups, err := os.Getgroups()
	if err != nil {
		return err
	}
	uid := os.Getuid()
	if len(args) != 1 || args[0] != strconv.Itoa(uid) || uid == 0 || os.Geteuid() != uid || len(groups) > 0 {
		return errors.New("this is for the doctor's own use: it starts it as a user without rights")
	}
	var errands []errand
	if err := json.NewDecoder(in).Decode(&errands); err != nil {
		return err
	}
	got := make([]errandResult, len(errands))
	for i, e := range errands {
		if err := e.do(); err != nil {
			if !errors.As(err, &got[i].Errno) {
				return err
			}
		}
	}
	return json.NewEncoder(out).Encode(got)
}

func (e errand) do() error {
	if !e.Socket {
		fd, err := unix.Open(e.Path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	fd, err := unix.Socket(unix.AF_UNIX, e.Kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	name := e.Path
	if len(name) > 100 && name[0] == '/' { // longer than an address may be
		dir, err := unix.Open(filepath.Dir(name), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(dir)
		name = fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(name))
	}
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: name})
	if errors.Is(err, unix.EAGAIN) { // its queue is full: it would have taken the call
		return nil
	}
	return err
}

// meant reports whether an errno is a refusal, and not a failure for another reason.
func meant(e syscall.Errno) bool {
	return e == unix.EACCES || e == unix.EPERM
}
