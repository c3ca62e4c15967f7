//go:build linux

package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

// command runs a program and returns its output.
func command(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, errs.String())
	}
	return out.Bytes()
}

// mount mounts a sealed image with the kernel's own EROFS.
func mount(t testing.TB, img *Image) string {
	t.Helper()
	dir := t.TempDir()
	// Kernels before 6.12 want a block device: -o loop makes one where it is needed.
	if err := unix.Mount(img.Path, dir, "erofs", unix.MS_RDONLY, ""); err != nil {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if out, err := exec.CommandContext(ctx, "mount", "-t", "erofs", "-o", "loop,ro", img.Path, dir).CombinedOutput(); err != nil {
			t.Fatalf("mounting the image (run the tests as root): %v\n%s", err, out)
		}
	}
	t.Cleanup(func() { unix.Unmount(dir, 0) })
	return dir
}

// tree lists every file below dir: type, mode, owner, time, links, contents.
func tree(t testing.TB, dir string) []string {
	t.Helper()
	var all []string
	inodes := make(map[uint64]string)
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		line := fmt.Sprintf("%q mode=%o owner=%d:%d mtime=%d.%09d", rel, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch d.Type() {
		case 0:
			body, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" links=%d size=%d %s", st.Nlink, len(body), digestOf(body))
			if first, ok := inodes[st.Ino]; ok {
				line += fmt.Sprintf(" same as %q", first)
			} else if st.Nlink > 1 {
				inodes[st.Ino] = rel
			}
		case fs.ModeDir:
			line += fmt.Sprintf(" links=%d", st.Nlink)
		case fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" -> %q", target)
		}
		all = append(all, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// fsck runs erofs-utils' checker where it is installed.
func fsck(t testing.TB, img *Image) {
	t.Helper()
	if p, err := exec.LookPath("fsck.erofs"); err == nil {
		command(t, p, img.Path)
	}
}

// TestKernelReadsWhatWasSealed unpacks a layer with tar and mounts its sealed form,
// and finds the same in both.
func TestKernelReadsWhatWasSealed(t *testing.T) {
	src := t.TempDir()
	write := func(name, body string, mode fs.FileMode, uid, gid int) {
		p := filepath.Join(src, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Chown(p, uid, gid), os.Chmod(p, mode)); err != nil {
			t.Fatal(err)
		}
	}
	// Sizes around the block's edges, and names that fill several directory blocks.
	for _, n := range []int{0, 1, 4031, 4032, 4033, 4095, 4096, 4097, 8192, 128 << 10, 1<<20 + 7} {
		write(fmt.Sprintf("sizes/%d", n), strings.Repeat("0123456789", n/10+1)[:n], 0o644, 0, 0)
	}
	for i := range 1000 {
		write(fmt.Sprintf("many/%04d-%s", i, strings.Repeat("n", i%200)), fmt.Sprint(i), 0o640, i, 2*i)
	}
	for i := range 60 { // directories whose listings end near a block's edge
		for j := range i {
			write(fmt.Sprintf("edge/%d/%0*d", i, 60, j), "", 0o600, 0, 0)
		}
	}
	write("bin/su", "suid", fs.ModeSetuid|0o755, 0, 0)
	write("bin/wall", "sgid", fs.ModeSetgid|0o755, 0, 5)
	write("big-owner", "x", 0o600, 4000000000, 3000000000)
	write("latin-\xe9", "not UTF-8", 0o644, 0, 0)
	write("ctl-\n\x01", "control", 0o644, 0, 0)
	write("hole", string(make([]byte, 1<<20))+"x", 0o644, 0, 0)
	err := errors.Join(
		os.Mkdir(filepath.Join(src, "tmp"), 0o755), os.Chmod(filepath.Join(src, "tmp"), fs.ModeSticky|0o777),
		os.Link(filepath.Join(src, "bin/su"), filepath.Join(src, "sizes/su")),
		os.Symlink("../x", filepath.Join(src, "link")), os.Symlink(strings.Repeat("l/", 2040), filepath.Join(src, "long")),
		unix.Mkfifo(filepath.Join(src, "fifo"), 0o622),
		unix.Lutimes(filepath.Join(src, "hole"), []unix.Timeval{{Sec: 1}, {Sec: 1234567890, Usec: 123456}}))
	if err != nil {
		t.Fatal(err)
	}
	s := openStore(t)
	raw := command(t, "tar", "--format=posix", "-C", src, "-cf", "-", ".")
	img := mustSeal(t, s, rawImage(t, rawLayer(raw, types.OCIUncompressedLayer), hashOf(raw)))
	fsck(t, img)
	if d := cmp.Diff(tree(t, src), tree(t, mount(t, img))); d != "" {
		t.Errorf("the folder (-) and the image (+) differ:\n%s", d)
	}
}

// TestDebianTree does the same with a real one.
func TestDebianTree(t *testing.T) {
	layer := filepath.Join(t.TempDir(), "layer.tar.gz")
	packages, err := os.ReadDir("/usr/share/doc")
	if err != nil {
		t.Fatal(err)
	}
	// The parents first, without what else is in them, so that their times are known.
	args := []string{"--format=posix", "-C", "/usr", "-I", "gzip -1", "-cf", layer,
		"--no-recursion", ".", "./share", "./share/doc", "--recursion"}
	for _, p := range packages[:min(len(packages), 100)] { // as many as the smallest system has
		args = append(args, "./share/doc/"+p.Name())
	}
	command(t, "tar", args...)
	body, err := os.ReadFile(layer)
	if err != nil {
		t.Fatal(err)
	}
	unpacked := t.TempDir()
	command(t, "tar", "-C", unpacked, "-xpf", layer)
	raw := command(t, "gzip", "-dc", layer)
	s := openStore(t)
	img := mustSeal(t, s, rawImage(t, rawLayer(body, types.OCILayer), hashOf(raw)))
	fsck(t, img)
	want, got := tree(t, unpacked), tree(t, mount(t, img))
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the folder (-) and the image (+) differ:\n%s", d)
	}
	t.Logf("%d files compared", len(want))
}
