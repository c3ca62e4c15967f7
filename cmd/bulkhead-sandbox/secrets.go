package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/subcommands"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/cmd"
	"gvisor.dev/gvisor/runsc/cmd/util"
	"gvisor.dev/gvisor/runsc/flag"
)

// What is secret of a Machine comes in a file of its own, which nobody between the worker
// and this program reads: each variable as NAME=value, each file as its path, which begins
// with a slash, and then its content in base64; each of these is ended by a zero byte.
// Variables are put over the environment and contents into the archive that is laid over
// the image, both in memory: neither the bundle nor the state file beside it ever holds them.

// maxSecrets bounds that file, in bytes; the warden has checked it.
const maxSecrets = 1 << 20

// secrets are what that file holds.
type secrets struct {
	variables []string
	files     map[string][]byte // by path
}

// readSecrets reads the file and closes it. Without one there are none.
func readSecrets(fd int) (secrets, error) {
	if fd < 0 {
		return secrets{}, nil
	}
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "secrets")
	defer f.Close()
	// By offset: the position belongs to the open file, which others hold too.
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxSecrets))
	if err != nil {
		return secrets{}, err
	}
	return parseSecrets(b)
}

// parseSecrets reads what the file holds. Its errors hold nothing of it but paths.
func parseSecrets(b []byte) (s secrets, err error) {
	s.files = map[string][]byte{}
	for len(b) > 0 {
		var entry, content []byte
		entry, b, _ = bytes.Cut(b, []byte{0})
		if !bytes.HasPrefix(entry, []byte("/")) {
			s.variables = append(s.variables, string(entry))
			continue
		}
		content, b, _ = bytes.Cut(b, []byte{0})
		if s.files[string(entry)], err = base64.StdEncoding.AppendDecode(nil, content); err != nil {
			return secrets{}, fmt.Errorf("the content of %s is not base64", entry)
		}
	}
	return s, nil
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

// upperTar is the annotation that names the archive that is laid over the image.
const upperTar = "dev.gvisor.tar.rootfs.upper"

// secretBundle makes a bundle like the given one, with what is secret in it. Its config.json
// and its archive lead to files in memory that this process holds: gVisor opens them by
// those names for the processes that it starts. spec, which was read from the bundle, is
// told of the archive. remove takes the names away.
func secretBundle(bundle string, spec *specs.Spec, s secrets) (dir string, remove func(), err error) {
	var held []*os.File
	made := ""
	cleanUp := func() {
		for _, f := range held {
			f.Close()
		}
		if made != "" {
			os.RemoveAll(made)
		}
	}
	defer func() {
		if err != nil {
			cleanUp()
		}
	}()
	hold := func(name string, b []byte) (string, error) {
		defer clear(b)
		f, err := memoryFile(name, b)
		if err != nil {
			return "", err
		}
		held = append(held, f)
		return fmt.Sprintf("/proc/self/fd/%d", f.Fd()), nil
	}
	if len(s.files) > 0 {
		b, err := os.ReadFile(spec.Annotations[upperTar])
		if err != nil {
			return "", nil, err
		}
		if b, err = fill(b, s.files); err != nil {
			return "", nil, err
		}
		if spec.Annotations[upperTar], err = hold("upper.tar", b); err != nil {
			return "", nil, err
		}
	}
	b, err := secretConfig(bundle, spec.Annotations, s.variables)
	if err != nil {
		return "", nil, err
	}
	config, err := hold("config.json", b)
	if err != nil {
		return "", nil, err
	}
	if made, err = os.MkdirTemp("", "bundle"); err != nil {
		return "", nil, err
	}
	return made, cleanUp, os.Symlink(config, filepath.Join(made, "config.json"))
}

// secretConfig is the bundle's config.json with the annotations and the variables.
func secretConfig(bundle string, annotations map[string]string, variables []string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	var spec specs.Spec
	if err := json.Unmarshal(b, &spec); err != nil {
		return nil, err
	}
	if spec.Process == nil || spec.Root == nil {
		return nil, fmt.Errorf("the bundle has no process or no root")
	}
	spec.Process.Env = over(spec.Process.Env, variables)
	if upper, ok := annotations[upperTar]; ok {
		spec.Annotations[upperTar] = upper
	}
	if !filepath.IsAbs(spec.Root.Path) {
		spec.Root.Path = filepath.Join(bundle, spec.Root.Path)
	}
	return json.Marshal(spec)
}

// memoryFile makes a file in memory.
func memoryFile(name string, b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.WriteAt(b, 0); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// fill puts contents into empty files of an archive, each of which must be there: it says
// what mode and owner they have.
func fill(archive []byte, contents map[string][]byte) ([]byte, error) {
	size := len(archive)
	for _, c := range contents {
		size += len(c) + 512
	}
	out := bytes.NewBuffer(make([]byte, 0, size)) // so that no smaller one stays behind
	r, w := tar.NewReader(bytes.NewReader(archive)), tar.NewWriter(out)
	filled := 0
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		content, ok := contents[strings.TrimPrefix(h.Name, ".")]
		if ok && (h.Typeflag != tar.TypeReg || h.Size != 0) {
			return nil, fmt.Errorf("%s is to be filled and is no empty file", h.Name)
		}
		if ok {
			filled++
			h.Size = int64(len(content))
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if ok {
			_, err = w.Write(content)
		} else {
			_, err = io.Copy(w, r)
		}
		if err != nil {
			return nil, err
		}
	}
	if filled != len(contents) {
		return nil, fmt.Errorf("%d files are to be filled, and the archive has %d of them", len(contents), filled)
	}
	if err := w.Close(); err != nil { // writes the end
		return nil, err
	}
	return out.Bytes(), nil
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
	program, read, write, err := openInit()
	if err != nil {
		return util.Errorf("open the machine's init: %v", err)
	}
	if err := setFlags(f, map[string]string{"exec-fd": strconv.Itoa(int(program.Fd())), "pass-fd": fmt.Sprintf("%d:%d", write.Fd(), reportGuestFD)}); err != nil {
		return util.Errorf("pass the machine's init on: %v", err)
	}
	code := e.Exec.Execute(ctx, f, args...) // closes both
	if err := readReport(read); err != nil {
		return util.Errorf("%v", err)
	}
	report(code, args)
	return code
}

// takeSecrets replaces the process description by one with the variables. It comes out of
// a pipe: the shim bounds what files may hold.
func (e *exec) takeSecrets(f *flag.FlagSet) error {
	s, err := readSecrets(e.secretsFD)
	if err != nil || len(s.variables) == 0 {
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
	p.Env = over(p.Env, s.variables)
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
