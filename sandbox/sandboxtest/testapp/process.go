package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	verbs["lstat"] = lstat
	verbs["orphans"] = orphans
	verbs["leave"] = func([]string) error { return exec.Command("/proc/self/exe", "exit", "0").Start() }
	verbs["first"] = first
	verbs["bomb"] = bomb
	verbs["terminal"] = terminal
}

// lstat describes files without following links.
func lstat(names []string) error {
	for _, name := range names {
		var st unix.Stat_t
		if name == "" {
			continue
		}
		if err := unix.Lstat(name, &st); err != nil {
			fmt.Println(name, err)
			continue
		}
		to, _ := os.Readlink(name)
		fmt.Printf("%s %o %d:%d %s\n", name, st.Mode, st.Uid, st.Gid, to)
	}
	return nil
}

// orphans makes processes whose parent ends before they do.
func orphans(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	for range n {
		if err := exec.Command("/proc/self/exe", "leave").Run(); err != nil {
			return err
		}
	}
	left := 0
	for until := time.Now().Add(5 * time.Second); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		if left = zombies(); left == 0 {
			break
		}
	}
	fmt.Println(left, "zombies")
	return nil
}

func zombies() (n int) {
	all, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range all {
		b, _ := os.ReadFile(name)
		if i := bytes.LastIndexByte(b, ')'); i >= 0 && bytes.HasPrefix(b[i:], []byte(") Z")) {
			n++
		}
	}
	return n
}

// bomb makes processes until it may make no more, and keeps them.
func bomb([]string) error {
	for exec.Command("/proc/self/exe", "sleep").Start() == nil {
	}
	fmt.Println("full")
	for {
		time.Sleep(time.Hour)
	}
}

func first([]string) error {
	b, err := os.ReadFile("/proc/1/comm")
	fmt.Println(os.Getpid(), os.Getppid(), string(bytes.TrimSpace(b)))
	return err
}

func terminal([]string) error {
	size, err := unix.IoctlGetWinsize(1, unix.TIOCGWINSZ)
	if err != nil {
		return err
	}
	fmt.Println(size.Col, size.Row)
	return nil
}
