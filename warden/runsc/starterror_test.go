package runsc

import (
	"encoding/json"
	"strings"
	"testing"

	"bulkhead/fault"
)

// TestStartError compares reports of bulkhead-init and messages of gVisor with what the user
// reads. TestUnusableCommand in package warden makes real ones.
func TestStartError(t *testing.T) {
	for _, c := range []struct {
		msg  string
		kind fault.Kind
		want string
	}{
		{"init: command 2 /bin/x", fault.Unprocessable, `the command "/bin/x" does not exist in the image`},
		{"init: command 8 /bin/x", fault.Unprocessable, "architecture"},
		{"init: command 13 /bin/x", fault.Unprocessable, "not an executable"},
		{"init: command 12 /bin/x", fault.Unprocessable, "no memory left"},
		{"init: interpreter 2 /bin/sh\r", fault.Unprocessable, `needs the interpreter "/bin/sh\r": its first line ends with a carriage return`},
		{"init: interpreter 2 /usr/bin/my bash", fault.Unprocessable, `needs the interpreter "/usr/bin/my bash", which is missing in the image`},
		{"init: interpreter 13 /bin/sh", fault.Unprocessable, "may not run"},
		{"init: loader 2 /lib/ld-musl-x86_64.so.1", fault.Unprocessable, `needs the program loader "/lib/ld-musl-x86_64.so.1", which is missing`},
		{"init: directory 2 /srv", fault.Unprocessable, `the working directory "/srv"`},
		{"init: directory 13 /srv", fault.Unprocessable, "may not enter"},
		{"init: systemd 38 /sbin/init", fault.Unprocessable, "systemd cannot run in a machine"},
		{"init: terminal 2 /dev/ptmx", fault.Unprocessable, "init.tty"},
		{"init: process 11 /bin/x", fault.Unprocessable, "cannot be started"},
		{"init: file 40 /etc/x", fault.Unprocessable, `the file "/etc/x" cannot be put into the machine: its path goes through too many links`},
		{"init: file 18 /a/b c", fault.Unprocessable, `the file "/a/b c" cannot be put into the machine: a link of the image leads to the platform's own files`},
		{"init: file 21 /a", fault.Unprocessable, "it is a directory in the image"},
		{"init: file 5 /a", fault.Unprocessable, "input/output error"},
		{"init: nonsense 5 /a", fault.Internal, "did not start"},
		{"init: command x", fault.Internal, "did not start"},
		{"creating container: cannot create sandbox: EOF", fault.Internal, "did not start"},
		{"", fault.Internal, "did not start"},
	} {
		log, err := json.Marshal(map[string]string{"msg": c.msg, "level": "error"})
		if err != nil {
			t.Fatal(err)
		}
		if got := StartError(string(log)+"\n", "/bin/x"); got.Kind != c.kind || !strings.Contains(got.Msg, c.want) {
			t.Errorf("%q became %q, %q", c.msg, got.Kind, got.Msg)
		}
	}
	long := strings.Repeat("x", 10000)
	if err := StartError(`{"msg":"init: interpreter 2 `+long+`"}`, long); err.Kind != fault.Unprocessable || len(err.Msg) > 600 {
		t.Errorf("the message has %d bytes", len(err.Msg))
	}
	if err := StartError("panic: something\n\ngoroutine 1 [running]:\n", "/bin/x"); err.Kind != fault.Internal {
		t.Errorf("a panic became %q", err.Kind)
	}
}
