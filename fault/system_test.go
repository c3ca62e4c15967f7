package fault_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"bulkhead/fault"
)

// TestTroublesAreToldApart: each number has a sentence of its own, with the path,
// the number's name and a remedy, however it was wrapped on its way.
func TestTroublesAreToldApart(t *testing.T) {
	texts := map[string]syscall.Errno{}
	for _, c := range []struct {
		errno syscall.Errno
		name  string
		kind  fault.Kind
		word  string
	}{
		{syscall.ENOSPC, "ENOSPC", fault.Full, "disk_full"},
		{syscall.EDQUOT, "EDQUOT", fault.Full, "disk_quota"},
		{syscall.EROFS, "EROFS", fault.Unavailable, "disk_read_only"},
		{syscall.EIO, "EIO", fault.Unavailable, "disk_error"},
		{syscall.EMFILE, "EMFILE", fault.Unavailable, "no_file_descriptors"},
		{syscall.ENFILE, "ENFILE", fault.Unavailable, "no_file_descriptors"},
		{syscall.ENOMEM, "ENOMEM", fault.Unavailable, "no_memory"},
		{syscall.EACCES, "EACCES", fault.Internal, "forbidden_by_host"},
		{syscall.EPERM, "EPERM", fault.Internal, "forbidden_by_host"},
		{syscall.ENOSYS, "ENOSYS", fault.Internal, "no_kernel_feature"},
	} {
		for _, err := range []error{
			c.errno,
			&os.PathError{Op: "write", Path: "/d/f", Err: c.errno},
			fmt.Errorf("a library: %w", c.errno),
			fmt.Errorf("a library that makes a text of it: %s", c.errno.Error()),
		} {
			got := fault.System(err, "the thing %s cannot be written", "/d/f")
			var f *fault.Error
			if !errors.As(got, &f) || f.Kind != c.kind || f.Status != c.word {
				t.Errorf("%s: %#v", c.name, got)
				continue
			}
			if !strings.HasPrefix(f.Msg, "the thing /d/f cannot be written: ") || !strings.Contains(f.Msg, "("+c.name+")") || !strings.Contains(f.Msg, ";") && !strings.Contains(f.Msg, ": a") {
				t.Errorf("%s: %s", c.name, f.Msg)
			}
			if other, ok := texts[f.Msg]; ok && other != c.errno {
				t.Errorf("%s is told as %v is", c.name, other)
			}
			texts[f.Msg] = c.errno
		}
	}
	if got := fault.System(syscall.ENOENT, "the thing"); fault.KindOf(got) != fault.Internal || fault.MessageOf(got) != "the thing" {
		t.Errorf("an unknown one: %v", got)
	}
	said := fault.New(fault.Full, "the store is full").WithStatus(fault.DiskFull)
	if got := fault.System(fmt.Errorf("x: %w", said), "again"); fault.MessageOf(got) != "the store is full" {
		t.Errorf("said twice: %v", got)
	}
	if fault.System(nil, "x") != nil || fault.Clone(nil, "x") != nil {
		t.Error("nil is a trouble")
	}
}

// TestNoNamespaceIsNotAFullDisk: the kernel says ENOSPC for both, and only the call
// tells them apart.
func TestNoNamespaceIsNotAFullDisk(t *testing.T) {
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = f.Write([]byte("x"))
	if got := fault.System(err, "w"); !fault.Is(got, fault.Full) {
		t.Errorf("a full device: %v", got)
	}
	cloned := fault.Clone(syscall.ENOSPC, "the sandbox cannot be started")
	if !fault.Is(cloned, fault.Unavailable) || !strings.Contains(cloned.Error(), "max_net_namespaces") || strings.Contains(cloned.Error(), "disk") {
		t.Errorf("no namespace left: %v", cloned)
	}
	if got := fault.Clone(&os.PathError{Op: "open", Path: "/x", Err: syscall.EMFILE}, "c"); !strings.Contains(got.Error(), "EMFILE") {
		t.Errorf("descriptors while cloning: %v", got)
	}
	_, err = os.Open(filepath.Join(t.TempDir(), strings.Repeat("x", 10)))
	if got := fault.System(err, "o"); fault.KindOf(got) != fault.Internal {
		t.Errorf("a missing file: %v", got)
	}
}
