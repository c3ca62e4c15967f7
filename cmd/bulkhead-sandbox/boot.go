package main

import (
	"context"
	"fmt"
	"os"
	osexec "os/exec"
	"strconv"
	"strings"
	"time"
	_ "unsafe" // for go:linkname

	"github.com/google/subcommands"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/hostmm"
	"gvisor.dev/gvisor/pkg/timing"
	"gvisor.dev/gvisor/runsc/cmd/sandboxsetup"
	"gvisor.dev/gvisor/runsc/cmd/sentry/sentrycmd"
	"gvisor.dev/gvisor/runsc/cmd/util"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/flag"
	"gvisor.dev/gvisor/runsc/specutils"
	"gvisor.dev/gvisor/runsc/starttime"
)

// boot is the sandbox process itself.
type boot struct{ *sentrycmd.Boot }

// Execute sets the guest's size, runs the sandbox and reports the wait status.
func (b boot) Execute(ctx context.Context, f *flag.FlagSet, args ...any) subcommands.ExitStatus {
	time.AfterFunc(startsUp, collect)
	usePrecompiledFilters()
	limits, err := setSize(f)
	if err != nil {
		return util.Errorf("guest size: %v", err)
	}
	if f.Lookup("setup-root").Value.String() == "true" {
		if err := shutIn(f, args[0].(*config.Config)); err != nil {
			return util.Errorf("shut the sandbox in: %v", err)
		}
	}
	spec, err := readSpec(f, *args[0].(*config.Config))
	if err != nil {
		return util.Errorf("read the bundle: %v", err)
	}
	p, err := takePreparation(f)
	if err != nil {
		return util.Errorf("prepare the machine: %v", err)
	}
	p.token = spec.Process != nil && wantsToken(spec.Process.Env)
	p.cwd = directoryOf(spec.Process)
	p.hook()
	m := newMeter(limits)
	code := b.Boot.Execute(ctx, f, args...)
	m.end()
	report(code, args)
	return code
}

//go:linkname setUpChroot gvisor.dev/gvisor/runsc/cmd/sentry/sentrycmd.setUpChroot
func setUpChroot(*specs.Spec, *config.Config, *timing.Timer) error

// umounter is the pipe that tells the process that takes /proc away to do so. It is
// kept here because an os.File closes itself when nothing refers to it.
var umounter *os.File

// shutIn does what boot does with --setup-root, and takes the flag away: it moves
// into the empty root and drops all capabilities of all threads. boot would drop
// them of one thread and execute itself again so that no other thread is left, which
// takes 30 ms; "run" has started it as nobody already, so nothing else is left to
// change.
func shutIn(f *flag.FlagSet, conf *config.Config) error {
	timer := starttime.Timer("shut in")
	// These cannot be read from inside, and boot does without those that are missing.
	found := map[string]string{}
	if name, err := os.ReadFile("/sys/devices/virtual/dmi/id/product_name"); err == nil {
		found["product-name"] = strings.TrimSpace(string(name))
	}
	if conf.AppHugePages {
		for _, name := range []string{"shmem_enabled", "defrag"} {
			if v, err := hostmm.ReadTransparentHugepageEnum(name); err == nil {
				found["host-thp-"+strings.ReplaceAll(name, "_", "-")] = v
			}
		}
	}
	if err := setFlags(f, found); err != nil {
		return err
	}
	spec, err := readSpec(f, *conf)
	if err != nil {
		return err
	}
	helper, err := os.Open(shimProgram)
	if err != nil {
		helper = nil // nobody's shim has started us
	}
	if err := setUpChroot(spec, conf, timer); err != nil {
		return err
	}
	if os.Getuid() != nobody || os.Getgid() != nobody {
		return fmt.Errorf("it runs as user %d and group %d instead of %d", os.Getuid(), os.Getgid(), nobody)
	}
	if umounter, err = startUmounter(helper); err != nil {
		return fmt.Errorf("start the process that takes /proc away: %w", err)
	}
	if err := setFlags(f, map[string]string{"setup-root": "false", "proc-mount-sync-fd": strconv.Itoa(int(umounter.Fd()))}); err != nil {
		return err
	}
	return sandboxsetup.ApplyCapsAllThreads(&specs.LinuxCapabilities{}, timer)
}

// shimProgram is the shim's own program, in the shim's root.
const shimProgram = "/bulkhead-shim"

// startUmounter starts the process that takes /proc away when it reads a byte from
// the pipe: the shim's program, if we have it, which takes a tenth of the time that
// this one takes to begin.
func startUmounter(helper *os.File) (*os.File, error) {
	if helper == nil {
		_, w := sandboxsetup.ExecProcUmounter()
		return w, nil
	}
	defer helper.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := osexec.Command("/proc/self/fd/4", "umount", "/proc")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{r, helper}
	return w, cmd.Start() // boot waits for it
}

func setFlags(f *flag.FlagSet, values map[string]string) error {
	for name, value := range values {
		if err := f.Set(name, value); err != nil {
			return fmt.Errorf("flag --%s: %w", name, err)
		}
	}
	return nil
}

// nobody is whom "run" starts "boot" as.
const nobody = 65534

// readSpec reads the bundle's config.json; boot reads it again. conf is a copy since
// annotations may change it.
func readSpec(f *flag.FlagSet, conf config.Config) (*specs.Spec, error) {
	fd, err := strconv.Atoi(f.Lookup("spec-fd").Value.String())
	if err != nil {
		return nil, err
	}
	if fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "config.json")
	defer file.Close()
	return specutils.ReadSpecFromFile(f.Lookup("bundle").Value.String(), file, &conf)
}
