package doctor

import (
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
)

// judgeListeners says what of the listeners is not as it must be.
func judgeListeners(listeners []Listener) (out []Finding) {
	tried, sockets := 0, 0
	for _, l := range listeners {
		where := fmt.Sprintf("%s %s (%s)", l.Network, l.Addr, l.Namespace)
		if l.Expected == cardOf {
			continue // it takes the packets of its own Machine's interface
		}
		sockets++
		if l.Expected == "" {
			out = append(out, Finding{"listeners", Fail, fmt.Sprintf("%s listens, held by %s: it is none of the platform's sockets", where, strings.Join(l.Processes, ", ")),
				"find out who opened it: this is what a program that was taken over looks like; docs/sockets.md lists what may listen"})
		}
		if len(l.Trials) == 0 && l.Expected != "" {
			out = append(out, Finding{"listeners", Fail, where + " was not tried", "report this: the doctor knows no way to try it"})
		}
		for _, t := range l.Trials {
			tried++
			if !t.Refused && l.Expected != "" {
				out = append(out, Finding{"listeners", Fail, fmt.Sprintf("%s (%s) does not refuse %s: %s", where, l.Expected, t.What, t.Got),
					"close the host to the network and report this"})
			}
		}
	}
	if out == nil {
		out = []Finding{{"listeners", OK, fmt.Sprintf("%d sockets listen, all of them known; %d attempts without credentials were refused", sockets, tried), ""}}
	}
	return out
}

// leftSockets finds socket files in the runtime directory at which none of the
// platform's processes listens.
func leftSockets(p Platform, listeners []Listener) (out []Finding) {
	known := map[string]bool{}
	for _, l := range listeners {
		known[l.Addr] = true
	}
	filepath.WalkDir(p.RunDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&fs.ModeSocket == 0 || known[path] {
			return nil
		}
		c, err := net.DialTimeout("unix", path, patience)
		if err != nil {
			return nil // a file that is left, or that was of the moment
		}
		c.Close()
		out = append(out, Finding{"listeners", Fail, path + " is answered by a process that is not the platform's",
			"find out who (ss -xlp): callers of the platform would talk to it"})
		return nil
	})
	return out
}
