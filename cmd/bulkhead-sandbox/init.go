package main

import (
	"fmt"
	"io"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/runsc/cmd/sandboxsetup"
	"gvisor.dev/gvisor/runsc/cmd/util"
	"gvisor.dev/gvisor/runsc/flag"
)

// initProgram is bulkhead-init in the shim's root: the first process of a Machine, and what
// becomes each command that is run in it later. gVisor executes it from this file, so it is
// in no file system of the Machine.
const initProgram = "/bulkhead-init"

// reportGuestFD is where bulkhead-init says why its command did not start. The shim's reader
// waits for its end: the command has started, or nothing ever will.
const reportGuestFD = 3

// maxReport bounds a report, in bytes.
const maxReport = 8 << 10

// openInit opens bulkhead-init and makes the pipe for its report.
func openInit() (program, read, write *os.File, err error) {
	if program, err = os.Open(initProgram); err != nil {
		return nil, nil, nil, err
	}
	if read, write, err = os.Pipe(); err != nil {
		program.Close()
		return nil, nil, nil, err
	}
	return program, read, write, nil
}

// readReport waits for the report, whose prefix package warden/runsc knows.
func readReport(r *os.File) error {
	b, err := io.ReadAll(io.LimitReader(r, maxReport))
	if err != nil {
		return err
	}
	if len(b) > 0 {
		return fmt.Errorf("init: %s", b)
	}
	return nil
}

// preparation is what boot does in a Machine before its first process does anything.
type preparation struct {
	files  int // descriptor of the archive; -1 for none
	report int // a copy of bulkhead-init's report; -1 for none
	api    int // the shim's socket; -1 for none
	token  bool
	cwd    string // made when it is missing, as other runtimes do
}

// takePreparation takes its descriptors out of boot's flags.
func takePreparation(f *flag.FlagSet) (p preparation, err error) {
	p.report = -1
	if mappings, ok := f.Lookup("pass-fd").Value.(*sandboxsetup.FDMappings); ok {
		for _, m := range *mappings {
			if m.Guest == reportGuestFD {
				unix.CloseOnExec(m.Host)
				if p.report, err = unix.FcntlInt(uintptr(m.Host), unix.F_DUPFD_CLOEXEC, 0); err != nil {
					return p, err
				}
			}
		}
	}
	p.api = takeAPI(f)
	p.files, err = takeFlag(f, "rootfs-upper-tar-fd")
	return p, err
}

// hook has the preparation done before the first system call of the first process.
func (p preparation) hook() {
	beforeFirstCall(func(t *kernel.Task) {
		if err := p.writeFiles(t); err != nil {
			if p.report >= 0 {
				unix.Write(p.report, []byte(err.Error()))
			}
			t.ThreadGroup().SendSignal(kernel.SignalInfoPriv(linux.SIGKILL))
		}
		if p.report >= 0 {
			unix.Close(p.report)
		}
		if p.api < 0 {
			return
		}
		if err := makeAPI(t, &doors{shim: p.api, door: -1}, p.token); err != nil && util.ErrorLogger != nil {
			fmt.Fprintf(util.ErrorLogger, "{\"msg\":%q,\"level\":\"error\"}\n", "make "+apiPath+": "+err.Error())
		}
	})
}

func (p preparation) writeFiles(t *kernel.Task) error {
	var archive []byte
	if p.files >= 0 {
		var err error
		if archive, err = readAll(p.files); err != nil {
			return err
		}
	}
	return writeFiles(t, archive, p.cwd)
}

// directoryOf is the working directory of a process that bulkhead-init starts.
func directoryOf(p *specs.Process) string {
	if p == nil || len(p.Args) < 4 || p.Args[0] != "bulkhead-init" {
		return ""
	}
	return p.Args[2]
}
