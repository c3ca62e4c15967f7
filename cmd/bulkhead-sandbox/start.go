package main

import (
	"context"
	"fmt"
	"os"

	"github.com/google/subcommands"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/cmd/util"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/container"
	"gvisor.dev/gvisor/runsc/flag"
	"gvisor.dev/gvisor/runsc/specutils"
)

// start is "run --detach" in two halves: it makes the sandbox at once, and starts the
// process in it when a byte comes out of a pipe. The network, which gVisor takes over
// when the process starts and not before, is made meanwhile.
type start struct {
	bundle, pidFile string
	readyFD, apiFD  int
	secretsFD       int
}

// tableFD is the descriptor with which the shim gave us a large table, which boot's is then
// too (see wideTable in cmd/bulkhead-shim). It is of no other use.
const tableFD = 255

func (*start) Name() string     { return "start" }
func (*start) Synopsis() string { return "make a sandbox and start its process when it is told to" }
func (*start) Usage() string    { return "start [flags] ID\n" }

func (s *start) SetFlags(f *flag.FlagSet) {
	f.StringVar(&s.bundle, "bundle", "", "directory of config.json")
	f.StringVar(&s.pidFile, "pid-file", "", "file for the sandbox's pid")
	f.IntVar(&s.secretsFD, "secrets-fd", -1, "file of what is secret of the environment and of files")
	f.IntVar(&s.readyFD, "ready-fd", -1, "pipe that says with a byte that the network stands, and with its end that nothing is to be started")
	f.IntVar(&s.apiFD, "api-fd", -1, "socket of the shim through which the worker's connections to the Machine's API come")
}

// FetchSpec implements util.SubCommand.
func (s *start) FetchSpec(conf *config.Config, f *flag.FlagSet) (string, *specs.Spec, error) {
	spec, err := specutils.ReadSpec(s.bundle, conf)
	return f.Arg(0), spec, err
}

// Execute implements subcommands.Command.
func (s *start) Execute(_ context.Context, f *flag.FlagSet, args ...any) subcommands.ExitStatus {
	unix.CloseOnExec(tableFD)
	conf := args[0].(*config.Config)
	id, spec, err := s.FetchSpec(conf, f)
	if err != nil {
		return util.Errorf("read the bundle: %v", err)
	}
	secrets, err := readSecrets(s.secretsFD)
	if err != nil {
		return util.Errorf("read the secrets: %v", err)
	}
	bundle, remove := s.bundle, func() {}
	if len(secrets.variables)+len(secrets.files) > 0 {
		if bundle, remove, err = secretBundle(s.bundle, spec, secrets); err != nil {
			return util.Errorf("take the secrets: %v", err)
		}
	}
	pass := map[int]*os.File{}
	if s.apiFD >= 0 {
		pass[apiGuestFD] = os.NewFile(uintptr(s.apiFD), "api")
	}
	program, read, write, err := openInit()
	if err != nil {
		return util.Errorf("open the machine's init: %v", err)
	}
	pass[reportGuestFD] = write
	c, err := container.New(conf, container.Args{ID: id, Spec: spec, BundleDir: bundle, PIDFile: s.pidFile, PassFiles: pass, ExecFile: program})
	remove()
	program.Close()
	write.Close()
	if err != nil {
		return util.Errorf("creating container: %v", err)
	}
	if err = s.wait(); err == nil {
		err = c.Start(conf)
	}
	if err == nil {
		if err := readReport(read); err != nil {
			c.Destroy()
			return util.Errorf("%v", err)
		}
	}
	if err != nil {
		c.Destroy()
		return util.Errorf("starting container: %v", err)
	}
	return subcommands.ExitSuccess
}

// wait returns nil when the network stands.
func (s *start) wait() error {
	ready := os.NewFile(uintptr(s.readyFD), "ready")
	if ready == nil {
		return fmt.Errorf("--ready-fd is missing")
	}
	defer ready.Close()
	if n, err := ready.Read(make([]byte, 1)); n != 1 {
		return fmt.Errorf("the start was given up: %w", err)
	}
	return nil
}
