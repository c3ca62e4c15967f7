// Command bulkhead-sandbox is gVisor as Bulkhead uses it: the few commands of runsc
// that a Machine's shim calls, and one of our own.
//
// It never runs as root of the host: the shim starts it inside the Machine's user
// namespace. It lives in a Go module of its own, so that gVisor's pinned
// dependencies stay out of Bulkhead's.
//
// Differences from runsc:
//   - "boot" takes the memory and the number of processors that the guest sees from
//     the bundle's annotations (limits.go). runsc takes them from a cgroup that it
//     manages itself, which a process without privileges on the host cannot do.
//   - "boot" bounds the inodes of the writable layer and the number of processes, and
//     tells in the error log how much of each limit is used and how often one was hit
//     (limits.go). runsc has neither.
//   - "boot" and "exec" write the exact wait status of the process they ran to the
//     error log (--log); runsc folds it into an exit code, in which 143 and SIGTERM
//     are the same.
//   - "boot" makes the socket /.fly/api, whose connections come from the worker
//     (api.go). runsc's way to a socket of the host is a gofer. Beside it, for a Machine
//     with AWS_ROLE_ARN, it makes a file that holds a fresh identity token (role.go).
//   - "boot" moves into its empty root and drops its capabilities in one process
//     instead of executing itself in between, and has its system-call filter
//     ready-made: both make a start faster and the sandbox no different.
//   - "start" is "run --detach" that makes the sandbox while its network is made.
//   - "start" and "exec" take what is secret of the environment, and "start" contents of
//     files too, from a file of its own (secrets.go); runsc has the first in config.json
//     and in its state file, and the second in no way.
//   - "processes" lists processes as JSON, with times and names.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/google/subcommands"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/cli"
	"gvisor.dev/gvisor/runsc/cmd"
	"gvisor.dev/gvisor/runsc/cmd/sentry/sentrycmd"
	"gvisor.dev/gvisor/runsc/cmd/util"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/container"
	"gvisor.dev/gvisor/runsc/flag"
)

func main() {
	putOffCollection()
	cli.Run(nil, map[util.SubCommand]string{
		new(start):                 "",
		new(cmd.Run):               "",
		&exec{Exec: new(cmd.Exec)}: "",
		new(cmd.Kill):              "",
		new(processes):             "",
		boot{new(sentrycmd.Boot)}:  "internal",
		new(cmd.Gofer):             "internal",
		new(sentrycmd.Umount):      "internal",
	}, nil)
}

// report writes the wait status to the error log as {"status":N}.
func report(code subcommands.ExitStatus, args []any) {
	if ws, ok := args[1].(*unix.WaitStatus); ok && code == subcommands.ExitSuccess && util.ErrorLogger != nil {
		fmt.Fprintf(util.ErrorLogger, "{\"status\":%d}\n", uint32(*ws))
	}
}

// processes lists the processes of a sandbox.
type processes struct{}

func (*processes) Name() string           { return "processes" }
func (*processes) Synopsis() string       { return "list the processes of a sandbox as JSON" }
func (*processes) Usage() string          { return "processes ID\n" }
func (*processes) SetFlags(*flag.FlagSet) {}

// FetchSpec implements util.SubCommand.
func (*processes) FetchSpec(*config.Config, *flag.FlagSet) (string, *specs.Spec, error) {
	return "", nil, nil
}

// Execute implements subcommands.Command.
func (*processes) Execute(_ context.Context, f *flag.FlagSet, args ...any) subcommands.ExitStatus {
	conf, id := args[0].(*config.Config), f.Arg(0)
	c, err := container.Load(conf.RootDir, container.FullID{SandboxID: id, ContainerID: id}, container.LoadOpts{Exact: true, SkipCheck: true})
	if err != nil {
		return util.Errorf("load sandbox %q: %v", id, err)
	}
	list, err := c.Processes()
	if err != nil {
		return util.Errorf("list processes: %v", err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(list); err != nil {
		return util.Errorf("list processes: %v", err)
	}
	return subcommands.ExitSuccess
}
