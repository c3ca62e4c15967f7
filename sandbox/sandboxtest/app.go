package sandboxtest

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process is what App needs of whatever runs it: a real process, or a fake's.
type Process struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Done is closed when the process must end; nil for a real one, which just dies.
	Done <-chan struct{}
	// Handle makes signals arrive on a channel instead of ending the process.
	Handle func(signals ...int) <-chan int
	// Connect connects to sandbox.APISocket.
	Connect func() (net.Conn, error)
	// Env looks up an environment variable.
	Env func(name string) string
	// File describes a file as DescribeFile does, or says why it cannot.
	File func(path string) string
}

// DescribeFile is what the verb "file" prints.
func DescribeFile(mode, uid, gid uint32, content []byte) string {
	return fmt.Sprintf("%04o %d:%d %q", mode, uid, gid, content)
}

// App is the program that the suite runs in a sandbox: args[0] is a verb, and the
// result is the exit code. The program testapp is App with a main function and
// some verbs that only a real kernel can answer.
//
//	exit N            ends with code N
//	print WORD...     prints the words on stdout
//	complain WORD...  prints the words on stderr
//	sleep             prints "ready", runs until it is killed
//	term N            prints "ready", waits for SIGTERM, prints "terminated", ends with code N
//	cat               copies stdin to stdout
//	getenv NAME       prints the variable
//	file PATH...      prints mode, owner and content of each file
//	ask WORD N        sends the word over N connections to the API at once; prints each answer
//	flood N           prints N bytes of "x", then "end" on stderr
func App(args []string, p Process) int {
	verb, rest := "", args
	if len(args) > 0 {
		verb, rest = args[0], args[1:]
	}
	arg := func(i int) string {
		if i < len(rest) {
			return rest[i]
		}
		return ""
	}
	switch verb {
	case "exit":
		return number(arg(0))
	case "print":
		fmt.Fprintln(p.Stdout, strings.Join(rest, " "))
	case "complain":
		fmt.Fprintln(p.Stderr, strings.Join(rest, " "))
	case "sleep":
		fmt.Fprintln(p.Stdout, "ready")
		if p.Done == nil {
			for {
				time.Sleep(time.Hour)
			}
		}
		<-p.Done
	case "term":
		signals := p.Handle(int(syscall.SIGTERM))
		fmt.Fprintln(p.Stdout, "ready")
		select {
		case <-signals:
			fmt.Fprintln(p.Stdout, "terminated")
			return number(arg(0))
		case <-p.Done:
		}
	case "cat":
		if _, err := io.Copy(p.Stdout, p.Stdin); err != nil {
			return 1
		}
	case "file":
		for _, name := range rest {
			fmt.Fprintln(p.Stdout, p.File(name))
		}
	case "getenv":
		fmt.Fprintln(p.Stdout, p.Env(arg(0)))
	case "ask":
		return ask(p, arg(0), number(arg(1)))
	case "flood":
		if _, err := p.Stdout.Write([]byte(strings.Repeat("x", number(arg(0))))); err != nil {
			return 1
		}
		fmt.Fprintln(p.Stderr, "end")
	default:
		fmt.Fprintf(p.Stderr, "no verb %q\n", verb)
		return 64
	}
	return 0
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 65
	}
	return n
}
