package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/context"
	gverrors "gvisor.dev/gvisor/pkg/errors"
	"gvisor.dev/gvisor/pkg/errors/linuxerr"
	"gvisor.dev/gvisor/pkg/fspath"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/kernel/auth"
	"gvisor.dev/gvisor/pkg/sentry/vfs"
	"gvisor.dev/gvisor/pkg/usermem"
	"gvisor.dev/gvisor/runsc/flag"
)

// The files of a Machine's config come as an archive. gVisor would lay it over the image
// as a layer, where a directory or a link above a file hides the image's. So this program
// writes the files itself, before bulkhead-init starts the command, as a process in the
// Machine would: below the image's directories, through its links, and never out of its root.

// maxLinks is how many symbolic links are followed for one file, as the kernel does.
const maxLinks = 40

// platformFiles are files that every Machine gets. A link of the image that leads nowhere
// gives way to one of them.
var platformFiles = []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}

// takeFlag takes a descriptor out of boot's flags. It is -1 when there is none.
func takeFlag(f *flag.FlagSet, name string) (int, error) {
	var fd int
	if _, err := fmt.Sscan(f.Lookup(name).Value.String(), &fd); err != nil {
		return -1, fmt.Errorf("flag --%s: %w", name, err)
	}
	return fd, f.Set(name, "-1")
}

// readAll reads a file by offset and closes it: the position belongs to the open file.
func readAll(fd int) ([]byte, error) {
	f := os.NewFile(uintptr(fd), "files")
	defer f.Close()
	return io.ReadAll(io.NewSectionReader(f, 0, 1<<40))
}

// fileError says which file could not be written.
type fileError struct {
	name string
	err  error
}

// Error gives the report that package warden/runsc reads.
func (e *fileError) Error() string {
	no := unix.EIO
	var known *gverrors.Error
	if errors.As(e.err, &known) {
		no = linuxerr.ToUnix(known)
	}
	return fmt.Sprintf("file %d %s", no, e.name)
}

// writer writes files into the Machine's root file system.
type writer struct {
	ctx   context.Context
	v     *vfs.VirtualFilesystem
	creds *auth.Credentials
	root  vfs.VirtualDentry
	tmp   *vfs.Mount // at /tmp, where gVisor puts a file system in memory over an empty directory
}

// writeFiles writes the archive's files, and makes the working directory. One that cannot be
// made bulkhead-init does not find.
func writeFiles(t *kernel.Task, archive []byte, cwd string) error {
	mns := t.MountNamespace()
	if mns == nil {
		return fmt.Errorf("the first process has no mounts")
	}
	k := t.Kernel()
	w := &writer{ctx: k.SupervisorContext(), v: k.VFS(), creds: auth.NewRootCredentials(k.RootUserNamespace())}
	w.root = mns.Root(w.ctx)
	defer w.root.DecRef(w.ctx)
	if tmp, err := w.v.GetDentryAt(w.ctx, w.creds, w.at(w.root, "tmp"), &vfs.GetDentryOptions{}); err == nil {
		w.tmp = tmp.Mount()
		defer tmp.DecRef(w.ctx)
	}
	if cwd != "" {
		if dir, _, err := w.resolve(path.Clean(cwd) + "/."); err == nil {
			dir.DecRef(w.ctx)
		}
	}
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean(strings.TrimPrefix(h.Name, "."))
		if h.Typeflag == tar.TypeDir {
			continue // a file's directories are the image's, or made for it
		}
		content, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if err := w.write(name, uint16(h.Mode&0o7777), content); err != nil {
			return &fileError{name, err}
		}
	}
}

// at is the operation on name in dir itself, or on dir when name is empty.
func (w *writer) at(dir vfs.VirtualDentry, name string) *vfs.PathOperation {
	return &vfs.PathOperation{Root: w.root, Start: dir, Path: fspath.Parse(name)}
}

// write writes one file.
func (w *writer) write(name string, mode uint16, content []byte) error {
	dir, last, err := w.resolve(name)
	if err != nil && slices.Contains(platformFiles, name) {
		if dir, last, err = w.resolve(path.Dir(name) + "/."); err == nil {
			last = path.Base(name)
		}
	}
	if err != nil {
		return err
	}
	defer dir.DecRef(w.ctx)
	before, err := w.v.StatAt(w.ctx, w.creds, w.at(dir, ""), &vfs.StatOptions{Mask: linux.STATX_MTIME})
	if err != nil {
		return err
	}
	if err := w.v.UnlinkAt(w.ctx, w.creds, w.at(dir, last)); err != nil && !linuxerr.Equals(linuxerr.ENOENT, err) {
		return err
	}
	f, err := w.v.OpenAt(w.ctx, w.creds, w.at(dir, last), &vfs.OpenOptions{Flags: linux.O_WRONLY | linux.O_CREAT | linux.O_EXCL, Mode: 0o600})
	if err != nil {
		return err
	}
	defer f.DecRef(w.ctx)
	for rest := content; len(rest) > 0; {
		n, err := f.Write(w.ctx, usermem.BytesIOSequence(rest), vfs.WriteOptions{})
		if err != nil {
			return err
		}
		rest = rest[n:]
	}
	// The owner first: a change of it takes setuid away.
	for _, s := range []linux.Statx{{Mask: linux.STATX_UID | linux.STATX_GID}, {Mask: linux.STATX_MODE, Mode: mode}} {
		if err := f.SetStat(w.ctx, vfs.SetStatOptions{Stat: s}); err != nil {
			return err
		}
	}
	return w.v.SetStatAt(w.ctx, w.creds, w.at(dir, ""), &vfs.SetStatOptions{Stat: linux.Statx{Mask: linux.STATX_MTIME, Mtime: before.Mtime}})
}

// resolve finds the directory that name leads to and the name in it, which is not a link.
// It makes directories that are missing. The directory is the caller's to release. A last
// part of "." is a name.
func (w *writer) resolve(name string) (dir vfs.VirtualDentry, last string, err error) {
	dir = w.root
	dir.IncRef()
	defer func() {
		if err != nil {
			dir.DecRef(w.ctx)
		}
	}()
	links := 0
	for todo := parts(name); ; {
		part := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		final := len(todo) == 0
		if part == "" || part == "." {
			if !final {
				continue
			}
			if name[len(name)-1] == '.' {
				return dir, part, w.own(dir)
			}
			return dir, "", linuxerr.EISDIR // a link to a directory
		}
		next, err := w.v.GetDentryAt(w.ctx, w.creds, w.at(dir, part), &vfs.GetDentryOptions{})
		switch {
		case linuxerr.Equals(linuxerr.ENOENT, err) && final:
			return dir, part, w.own(dir)
		case linuxerr.Equals(linuxerr.ENOENT, err):
			if err := w.own(dir); err != nil {
				return dir, "", err
			}
			if next, err = w.mkdir(dir, part); err != nil {
				return dir, "", err
			}
		case err != nil:
			return dir, "", err
		}
		kind, err := w.kind(next)
		if err == nil && kind == linux.S_IFLNK {
			var to string
			if to, err = w.v.ReadlinkAt(w.ctx, w.creds, w.at(dir, part)); err == nil {
				if links++; links > maxLinks {
					err = linuxerr.ELOOP
				}
				if strings.HasPrefix(to, "/") {
					dir.DecRef(w.ctx)
					dir = w.root
					dir.IncRef()
				}
				todo = append(todo, parts(to)...)
			}
			next.DecRef(w.ctx)
			if err != nil {
				if foreign := w.own(dir); foreign != nil {
					err = foreign // a link of /proc leads nowhere for us
				}
				return dir, "", err
			}
			continue
		}
		if err == nil && final {
			next.DecRef(w.ctx)
			switch {
			case part == ".." || kind == linux.S_IFDIR:
				return dir, "", linuxerr.EISDIR
			case kind != linux.S_IFREG:
				return dir, "", linuxerr.EXDEV
			}
			return dir, part, w.own(dir)
		}
		if err == nil && kind != linux.S_IFDIR {
			err = linuxerr.ENOTDIR
		}
		if err != nil {
			next.DecRef(w.ctx)
			return dir, "", err
		}
		dir.DecRef(w.ctx)
		dir = next
	}
}

// parts gives the parts of a path, the last one first.
func parts(name string) []string {
	p := strings.Split(name, "/")
	slices.Reverse(p)
	return p
}

// own refuses directories of other file systems: /proc, /dev and the like are no part of
// the image, whatever link leads there.
func (w *writer) own(dir vfs.VirtualDentry) error {
	if m := dir.Mount(); m != w.root.Mount() && m != w.tmp {
		return linuxerr.EXDEV
	}
	return nil
}

func (w *writer) mkdir(dir vfs.VirtualDentry, name string) (vfs.VirtualDentry, error) {
	before, err := w.v.StatAt(w.ctx, w.creds, w.at(dir, ""), &vfs.StatOptions{Mask: linux.STATX_MTIME})
	if err != nil {
		return vfs.VirtualDentry{}, err
	}
	if err := w.v.MkdirAt(w.ctx, w.creds, w.at(dir, name), &vfs.MkdirOptions{Mode: 0o755}); err != nil {
		return vfs.VirtualDentry{}, err
	}
	err = w.v.SetStatAt(w.ctx, w.creds, w.at(dir, ""), &vfs.SetStatOptions{Stat: linux.Statx{Mask: linux.STATX_MTIME, Mtime: before.Mtime}})
	if err != nil {
		return vfs.VirtualDentry{}, err
	}
	return w.v.GetDentryAt(w.ctx, w.creds, w.at(dir, name), &vfs.GetDentryOptions{})
}

// kind is the type of a file.
func (w *writer) kind(d vfs.VirtualDentry) (uint16, error) {
	st, err := w.v.StatAt(w.ctx, w.creds, w.at(d, ""), &vfs.StatOptions{Mask: linux.STATX_TYPE})
	return st.Mode & linux.S_IFMT, err
}
