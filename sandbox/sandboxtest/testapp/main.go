// Command testapp is the program that tests run in sandboxes: sandboxtest.App, and
// verbs that look at the kernel from inside.
//
//	serve PORT        an HTTP server that says how much it was sent, who asked, and then
//	                  as many bytes of "x" as the query says
//	dial ADDR         connects by TCP; prints "connected" or the error, code 0 or 1
//	send SRC DST      sends a UDP packet with a source address; prints the error or "sent"
//	raw               opens a raw socket; prints the error or "open"
//	alloc MB          takes memory, prints "allocated", and holds it
//	write FILE TEXT   writes a file
//	read FILE         prints a file
//	crash             kills itself with SIGKILL
//	cpus              prints the number of processors
//	api               tries what one may not do to the API's socket; prints what went wrong
//	id                prints user, group and supplementary groups
//	lstat PATH...     prints mode and owner of each file, and where a link leads
//	orphans N         leaves N ended processes to process 1; prints how many stay zombies
//	bomb              makes processes until it may make no more, prints "full", and keeps them
//	first             prints the name and the parent of this process, and the name of process 1
//	terminal          prints whether stdout is a terminal, and its size
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"bulkhead/sandbox"
	"bulkhead/sandbox/sandboxtest"
)

func main() {
	if len(os.Args) > 1 {
		if f, ok := verbs[os.Args[1]]; ok {
			if err := f(append(os.Args[2:], "", "")); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			return
		}
	}
	os.Exit(sandboxtest.App(os.Args[1:], sandboxtest.Process{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Handle: handle, Env: os.Getenv,
		Connect: func() (net.Conn, error) { return net.Dial("unix", sandbox.APISocket) }, File: describe,
	}))
}

// describe says what a file is.
func describe(name string) string {
	var st syscall.Stat_t
	if err := syscall.Stat(name, &st); err != nil {
		return err.Error()
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	return sandboxtest.DescribeFile(st.Mode&0o7777, st.Uid, st.Gid, b)
}

// handle makes signals arrive on a channel.
func handle(signals ...int) <-chan int {
	in, out := make(chan os.Signal, 1), make(chan int, 1)
	for _, s := range signals {
		signal.Notify(in, syscall.Signal(s))
	}
	go func() {
		for s := range in {
			out <- int(s.(syscall.Signal))
		}
	}()
	return out
}

var verbs = map[string]func(args []string) error{
	"api": func([]string) error { return attackAPI() },
	"serve": func(a []string) error {
		l, err := net.Listen("tcp", net.JoinHostPort("::", a[0]))
		if err != nil {
			return err
		}
		fmt.Println("ready")
		return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			got, _ := io.Copy(io.Discard, r.Body)
			fmt.Fprintf(w, "got %d from %s\n", got, r.RemoteAddr)
			n, _ := strconv.ParseInt(r.URL.RawQuery, 10, 32)
			io.Copy(w, io.LimitReader(xs{}, n))
		}))
	},
	"dial": func(a []string) error {
		c, err := net.DialTimeout("tcp", a[0], 1500*time.Millisecond)
		if err != nil {
			return err
		}
		c.Close()
		fmt.Println("connected")
		return nil
	},
	"send": func(a []string) error {
		src, err := net.ResolveUDPAddr("udp", a[0])
		if err != nil {
			return err
		}
		d := net.Dialer{LocalAddr: src, Control: freebind}
		c, err := d.Dial("udp", a[1])
		if err != nil {
			return err
		}
		if _, err = c.Write([]byte("spoofed")); err == nil {
			fmt.Println("sent")
		}
		return err
	},
	"raw": func([]string) error {
		if _, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_RAW, syscall.IPPROTO_TCP); err != nil {
			return err
		}
		fmt.Println("open")
		return nil
	},
	"alloc": func(a []string) error {
		mb, err := strconv.Atoi(a[0])
		if err != nil {
			return err
		}
		b := make([]byte, mb<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		fmt.Println("allocated")
		time.Sleep(time.Hour)
		runtime.KeepAlive(b)
		return nil
	},
	"write": func(a []string) error { return os.WriteFile(a[0], []byte(a[1]), 0o644) },
	"read": func(a []string) error {
		b, err := os.ReadFile(a[0])
		os.Stdout.Write(b)
		return err
	},
	"crash": func([]string) error {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		time.Sleep(time.Hour)
		return nil
	},
	"cpus": func([]string) error { fmt.Println(runtime.NumCPU()); return nil },
	"id": func([]string) error {
		g, err := os.Getgroups()
		fmt.Println(os.Getuid(), os.Getgid(), g)
		return err
	},
}

// xs is an endless stream of "x".
type xs struct{}

func (xs) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'x'
	}
	return len(b), nil
}

// freebind lets a socket have an address that is not the host's.
func freebind(network, address string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		const ipv6Freebind, ipFreebind = 78, 15
		syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IPV6, ipv6Freebind, 1)
		syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, ipFreebind, 1)
	})
}
