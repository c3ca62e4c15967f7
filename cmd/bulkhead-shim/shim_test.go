package main

import (
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// reap is the one reaper of this process: another would collect its children.
var reap = sync.OnceValue(newReaper)

// TestWideTable starts a child with and without the wide table, and reads how many
// descriptors the kernel made room for, and that the descriptor is where it is expected.
func TestWideTable(t *testing.T) {
	child := func(wide bool) (slots int, fds []string) {
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		files := []uintptr{null.Fd(), w.Fd(), w.Fd()}
		if wide {
			files = wideTable(files, null.Fd())
		}
		_, done, err := reap().start([]string{"/bin/sh", "-c", "grep FDSize /proc/self/status; echo /proc/self/fd/*"}, files)
		w.Close()
		if err != nil {
			t.Fatal(err)
		}
		out, err := io.ReadAll(r)
		if status := <-done; err != nil || status != 0 {
			t.Fatalf("%v, status %#x: %s", err, status, out)
		}
		size, list, _ := strings.Cut(strings.TrimPrefix(string(out), "FDSize:"), "\n")
		if slots, err = strconv.Atoi(strings.TrimSpace(size)); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		return slots, strings.Fields(strings.ReplaceAll(list, "/proc/self/fd/", ""))
	}
	if slots, fds := child(true); slots <= tableFD || !slices.Contains(fds, "255") {
		t.Errorf("a table of %d slots with the descriptors %s", slots, fds)
	}
	if slots, fds := child(false); slices.Contains(fds, "255") {
		t.Errorf("control: a table of %d slots with the descriptors %s", slots, fds)
	}
}
