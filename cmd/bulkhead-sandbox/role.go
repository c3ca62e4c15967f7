package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/context"
	"gvisor.dev/gvisor/pkg/errors/linuxerr"
	"gvisor.dev/gvisor/pkg/fspath"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/kernfs"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/kernel/auth"
	"gvisor.dev/gvisor/pkg/sentry/vfs"
)

// The identity token of a Machine that has AWS_ROLE_ARN in its environment is a file,
// /.fly/oidc_token. It is this kernel's own, as those of /proc are: whoever reads it from
// its beginning gets a token that was asked for a minute ago at most, over a connection
// like those to /.fly/api. No process in the Machine renews it, and nothing is written.

const (
	roleVariable = "AWS_ROLE_ARN"
	tokenName    = "oidc_token"

	tokenKept   = time.Minute // of the ten that it is good for
	tokenFailed = time.Second // that a failure is kept, so that readers do not all ask
	tokenLimit  = 5 * time.Second
	maxAnswer   = 16 << 10 // bytes
)

// tokenRequest asks for a token as AWS wants it. HTTP/1.0: the answer is not chunked, and
// ends with the connection.
const tokenRequest = "POST /v1/tokens/oidc HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 27\r\n\r\n" +
	`{"aud":"sts.amazonaws.com"}`

// wantsToken reports whether a process with the environment gets the file.
func wantsToken(env []string) bool {
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, roleVariable+"="); ok && v != "" {
			return true
		}
	}
	return false
}

// tokenFile is the content of the file.
type tokenFile struct {
	ask func() ([]byte, error)
	now func() time.Time

	mu   sync.Mutex
	last *tokenAnswer // nil before the first
}

// tokenAnswer is one asking. What it gave may be read when done is closed.
type tokenAnswer struct {
	done  chan struct{}
	began time.Time
	token []byte
	err   error
}

// fresh reports whether an answer may be given at t. A clock that was set counts as age.
func (a *tokenAnswer) fresh(t time.Time) bool {
	kept := tokenKept
	select {
	case <-a.done:
		if a.err != nil {
			kept = tokenFailed
		}
	default:
		return true // under way: it ends in bounded time
	}
	wall := t.Round(0).Sub(a.began.Round(0))
	return wall >= 0 && wall < kept && t.Sub(a.began) < kept
}

// Generate implements vfs.DynamicBytesSource.
func (f *tokenFile) Generate(_ context.Context, buf *bytes.Buffer) error {
	f.mu.Lock()
	a := f.last
	mine := a == nil || !a.fresh(f.now())
	if mine {
		a = &tokenAnswer{done: make(chan struct{}), began: f.now()}
		f.last = a
	}
	f.mu.Unlock()
	if mine {
		a.token, a.err = f.ask()
		close(a.done)
	}
	<-a.done
	if a.err != nil {
		return linuxerr.EIO // with EAGAIN a reader might wait for ever
	}
	buf.Write(a.token)
	return nil
}

// askToken asks the controller, over a connection that the worker gives.
func (d *doors) askToken() ([]byte, error) {
	fd, serr := d.connect()
	if serr != nil {
		return nil, serr.ToError()
	}
	defer unix.Close(fd)
	c := &apiStream{fd: fd, deadline: time.Now().Add(tokenLimit)}
	if _, err := c.Write([]byte(tokenRequest)); err != nil {
		return nil, err
	}
	return readToken(c)
}

// readToken reads the answer, and takes a whole token or nothing.
func readToken(from io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(from, maxAnswer))
	if err != nil {
		return nil, err
	}
	rest := bytes.NewReader(b)
	r := textproto.NewReader(bufio.NewReader(rest))
	line, err := r.ReadLine()
	if err != nil {
		return nil, err
	}
	if f := strings.Fields(line); len(f) < 2 || !strings.HasPrefix(f[0], "HTTP/1.") || f[1] != "200" {
		return nil, errors.New("the API gives no token")
	}
	h, err := r.ReadMIMEHeader()
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(r.R)
	if err != nil {
		return nil, err
	}
	if n, err := strconv.Atoi(h.Get("Content-Length")); err != nil || n != len(body) {
		return nil, errors.New("the answer is cut off")
	}
	token := bytes.TrimSpace(body)
	if parts := bytes.Split(token, []byte(".")); len(parts) != 3 || len(parts[0]) == 0 || len(parts[1]) == 0 || len(parts[2]) == 0 || bytes.ContainsAny(token, " \r\n\t\x00") {
		return nil, errors.New("the answer is no token")
	}
	return token, nil
}

// apiStream reads and writes a connection of the host's with no other system calls than
// gVisor's filter allows, and keeps no thread of the host waiting.
type apiStream struct {
	fd       int
	deadline time.Time
}

func (c *apiStream) Write(b []byte) (int, error) {
	for at := 0; at < len(b); {
		n, err := unix.SendmsgN(c.fd, b[at:], nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if err == nil {
			at += n
		} else if err := c.pause(err); err != nil {
			return at, err
		}
	}
	return len(b), nil
}

func (c *apiStream) Read(b []byte) (int, error) {
	for {
		n, _, _, _, err := unix.Recvmsg(c.fd, b, nil, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		if err == nil && n == 0 {
			return 0, io.EOF
		}
		if err == nil {
			return min(n, len(b)), nil
		}
		if err := c.pause(err); err != nil {
			return 0, err
		}
	}
}

// pause waits a moment when err says that a call would have had to wait.
func (c *apiStream) pause(err error) error {
	if err != unix.EAGAIN && err != unix.EINTR {
		return err
	}
	if time.Now().After(c.deadline) {
		return errors.New("the API does not answer")
	}
	time.Sleep(time.Millisecond)
	return nil
}

// tokenFS is the file system of that one file.
type tokenFS struct {
	kernfs.Filesystem
	devMinor uint32
}

// Release implements vfs.FilesystemImpl.
func (fs *tokenFS) Release(ctx context.Context) {
	fs.VFSFilesystem().VirtualFilesystem().PutAnonBlockDevMinor(fs.devMinor)
	fs.Filesystem.Release(ctx)
}

// MountOptions implements vfs.FilesystemImpl.
func (*tokenFS) MountOptions() string { return "" }

type tokenFSType struct{}

// Name implements vfs.FilesystemType.
func (tokenFSType) Name() string { return "identity" }

// Release implements vfs.FilesystemType.
func (tokenFSType) Release(context.Context) {}

// GetFilesystem implements vfs.FilesystemType: apps mount none.
func (tokenFSType) GetFilesystem(context.Context, *vfs.VirtualFilesystem, *auth.Credentials, string, vfs.GetFilesystemOptions) (*vfs.Filesystem, *vfs.Dentry, error) {
	return nil, nil, linuxerr.EPERM
}

// mountToken puts the file into dir, over an empty one that is made for it.
func mountToken(ctx context.Context, k *kernel.Kernel, creds *auth.Credentials, dir vfs.VirtualDentry, source vfs.DynamicBytesSource) error {
	v := k.VFS()
	pop := &vfs.PathOperation{Root: dir, Start: dir, Path: fspath.Parse(tokenName)}
	if err := v.MknodAt(ctx, creds, pop, &vfs.MknodOptions{Mode: linux.S_IFREG | 0o444}); err != nil {
		return fmt.Errorf("its place: %w", err)
	}
	minor, err := v.GetAnonBlockDevMinor()
	if err != nil {
		return err
	}
	fs := &tokenFS{devMinor: minor}
	fs.VFSFilesystem().Init(v, tokenFSType{}, fs)
	defer fs.VFSFilesystem().DecRef(ctx)
	inode := new(kernfs.DynamicBytesFile)
	inode.Init(ctx, creds, linux.UNNAMED_MAJOR, minor, fs.NextIno(), source, 0o444)
	root := new(kernfs.Dentry)
	root.InitRoot(&fs.Filesystem, inode)
	mnt := v.NewDisconnectedMount(fs.VFSFilesystem(), root.VFSDentry(), &vfs.MountOptions{ReadOnly: true, Locked: true, Flags: vfs.MountFlags{NoExec: true, NoSUID: true, NoDev: true}})
	defer mnt.DecRef(ctx)
	if err := v.ConnectMountAt(ctx, creds, mnt, pop); err != nil {
		return fmt.Errorf("its mount: %w", err)
	}
	return nil
}
