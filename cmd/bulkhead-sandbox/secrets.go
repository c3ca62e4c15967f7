package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/subcommands"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/cmd"
	"gvisor.dev/gvisor/runsc/cmd/util"
	"gvisor.dev/gvisor/runsc/flag"
)

// What is secret of a process's environment comes in a file of its own, which nobody
// between the worker and this program reads: each variable, NAME=value, ended by a zero
// byte. It is put over the environment in memory, and neither config.json nor the state
// file beside it ever holds it.

// maxSecrets bounds that file, in bytes; the warden has checked it.
const maxSecrets = 1 << 20

// readSecrets reads the variables and closes the file. Without one there are none.
func readSecrets(fd int) ([]string, error) {
	if fd < 0 {
		return nil, nil
	}
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "secrets")
	defer f.Close()
	// By offset: the position belongs to the open file, which others hold too.
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxSecrets))
	if err != nil || len(b) == 0 {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00"), nil
}

// over returns env with the variables over it.
func over(env, variables []string) []string {
	names := map[string]bool{}
	for _, v := range variables {
		name, _, _ := strings.Cut(v, "=")
		names[name] = true
	}
	out := make([]string, 0, len(env)+len(variables))
	for _, e := range env {
		if name, _, _ := strings.Cut(e, "="); !names[name] {
			out = append(out, e)
		}
	}
	return append(out, variables...)
}

// secretBundle makes a bundle like the given one, with the variables over the process's
// environment. Its config.json leads to a file in memory that this process holds: gVisor
// opens it by that name for the processes that it starts. remove takes the name away.
func secretBundle(bundle string, variables []string) (dir string, remove func(), err error) {
	b, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return "", nil, err
	}
	var spec specs.Spec
	if err := json.Unmarshal(b, &spec); err != nil {
		return "", nil, err
	}
	if spec.Process == nil || spec.Root == nil {
		return "", nil, fmt.Errorf("the bundle has no process or no root")
	}
	spec.Process.Env = over(spec.Process.Env, variables)
	if !filepath.IsAbs(spec.Root.Path) {
		spec.Root.Path = filepath.Join(bundle, spec.Root.Path)
	}
	if b, err = json.Marshal(spec); err != nil {
		return "", nil, err
	}
	defer clear(b)
	fd, err := unix.MemfdCreate("config.json", unix.MFD_CLOEXEC)
	if err != nil {
		return "", nil, err
	}
	f := os.NewFile(uintptr(fd), "config.json")
	if _, err := f.WriteAt(b, 0); err != nil {
		f.Close()
		return "", nil, err
	}
	if dir, err = os.MkdirTemp("", "bundle"); err == nil {
		err = os.Symlink(fmt.Sprintf("/proc/self/fd/%d", fd), filepath.Join(dir, "config.json"))
	}
	if err != nil {
		f.Close()
		return "", nil, err
	}
	return dir, func() { f.Close(); os.RemoveAll(dir) }, nil
}

// exec runs one more process in a sandbox and waits for it. Its environment has what is
// secret of the first process's over it.
type exec struct {
	*cmd.Exec
	secretsFD int
}

// SetFlags implements subcommands.Command.
func (e *exec) SetFlags(f *flag.FlagSet) {
	e.Exec.SetFlags(f)
	f.IntVar(&e.secretsFD, "secrets-fd", -1, "file of variables that are put over the environment")
}

// Execute runs the process and reports its wait status.
func (e *exec) Execute(ctx context.Context, f *flag.FlagSet, args ...any) subcommands.ExitStatus {
	if err := e.takeSecrets(f); err != nil {
		return util.Errorf("take the secrets: %v", err)
	}
	code := e.Exec.Execute(ctx, f, args...)
	report(code, args)
	return code
}

// takeSecrets replaces the process description by one with the variables. It comes out of
// a pipe: the shim bounds what files may hold.
func (e *exec) takeSecrets(f *flag.FlagSet) error {
	variables, err := readSecrets(e.secretsFD)
	if err != nil || len(variables) == 0 {
		return err
	}
	b, err := os.ReadFile(f.Lookup("process").Value.String())
	if err != nil {
		return err
	}
	var p specs.Process
	if err := json.Unmarshal(b, &p); err != nil {
		return err
	}
	p.Env = over(p.Env, variables)
	if b, err = json.Marshal(p); err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	description = r
	go func() {
		defer w.Close()
		w.Write(b)
	}()
	return f.Set("process", fmt.Sprintf("/proc/self/fd/%d", r.Fd()))
}

// description keeps the pipe open: an os.File closes itself when nothing refers to it.
//
//lint:ignore U1000 it is there to be referred to, not to be read
var description *os.File
