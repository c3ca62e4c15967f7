package controller

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/controller/record"
	"bulkhead/fault"
)

// Limits of a command.
const (
	defaultExec = 60 * time.Second
	maxExec     = 5 * time.Minute
	execSlack   = 10 * time.Second // on top, for the calls on the way
	maxCommand  = 1 << 20          // bytes of the command and its input
)

// ExecResult is the answer to an exec.
type ExecResult struct {
	ExitCode   int32  `json:"exit_code"`
	ExitSignal int32  `json:"exit_signal"`
	Stdout     string `json:"stdout"`
	Stderr     string `json:"stderr"`
}

// execRequest is the body of an exec.
type execRequest struct {
	Cmd       string   `json:"cmd"` // as a shell would split it; deprecated
	Command   []string `json:"command"`
	Container string   `json:"container"`
	Stdin     string   `json:"stdin"`
	Timeout   int      `json:"timeout"` // seconds
}

// command reads the body of an exec, and gives its command: a token may be good for some
// only, so it is known before anything is decided.
func (r *call) command() ([]string, error) {
	var in execRequest
	if err := r.read(&in, true); err != nil {
		return nil, err
	}
	if len(in.Command) == 0 && in.Cmd != "" {
		words, err := splitCommand(in.Cmd)
		if err != nil {
			return nil, err
		}
		in.Command = words
	}
	if len(in.Command) == 0 {
		return nil, fault.New(fault.Invalid, "command is missing")
	}
	r.cmd = &in
	return in.Command, nil
}

// execMachine runs one command inside a Machine and answers its output.
func (c *Controller) execMachine(r *call) (int, any, error) {
	in := r.cmd
	if in == nil {
		return 0, nil, fault.New(fault.Internal, "an exec was not read before it was allowed")
	}
	if in.Container != "" {
		return 0, nil, fault.New(fault.Invalid, "container is %q, but a machine has no containers; leave it out", fault.Clip(in.Container))
	}
	if len(strings.Join(in.Command, ""))+len(in.Stdin) > maxCommand {
		return 0, nil, fault.New(fault.Invalid, "the command and its input are larger than %d MiB", maxCommand>>20)
	}
	limit := defaultExec
	if in.Timeout != 0 {
		if in.Timeout < 0 || in.Timeout > int(maxExec.Seconds()) {
			return 0, nil, fault.New(fault.Invalid, "timeout is %d seconds; it must be 1 to %d", in.Timeout, int(maxExec.Seconds()))
		}
		limit = time.Duration(in.Timeout) * time.Second
	}
	m, err := c.runningMachine(r)
	if err != nil {
		return 0, nil, err
	}
	if _, _, err := c.checkLease(r.Context(), m, r.nonce()); err != nil {
		return 0, nil, err
	}
	r.rc.SetWriteDeadline(time.Now().Add(limit + 2*execSlack))
	w, ctx, cancel, err := c.worker(r.Context(), m.Node, limit+execSlack)
	if err != nil {
		return 0, nil, err
	}
	defer cancel()
	out, err := w.Exec(ctx, &internalpb.ExecRequest{MachineId: string(m.ID), Command: in.Command, Stdin: []byte(in.Stdin), TimeoutMs: limit.Milliseconds()})
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, ExecResult{
		ExitCode: out.ExitCode, ExitSignal: out.ExitSignal,
		Stdout: strings.ToValidUTF8(string(out.Stdout), "\uFFFD"), Stderr: strings.ToValidUTF8(string(out.Stderr), "\uFFFD"),
	}, nil
}

// splitCommand splits a line as a POSIX shell splits words, without expanding
// anything.
func splitCommand(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	in, quote, escaped := false, rune(0), false
	for _, ch := range s {
		switch {
		case escaped:
			if quote == '"' && !strings.ContainsRune("\"\\$`", ch) {
				word.WriteByte('\\')
			}
			word.WriteRune(ch)
			escaped = false
		case ch == '\\' && quote != '\'':
			escaped, in = true, true
		case quote != 0:
			if ch == quote {
				quote = 0
			} else {
				word.WriteRune(ch)
			}
		case ch == '\'' || ch == '"':
			quote, in = ch, true
		case strings.ContainsRune(" \t\r\n", ch):
			if in {
				words = append(words, word.String())
				word.Reset()
				in = false
			}
		default:
			word.WriteRune(ch)
			in = true
		}
	}
	if quote != 0 || escaped {
		return nil, fault.New(fault.Invalid, "cmd ends inside a quotation; give the words as a list in command")
	}
	if in {
		words = append(words, word.String())
	}
	return words, nil
}

// ProcessStat is a process as the API answers it.
type ProcessStat struct {
	PID           int32          `json:"pid"`
	Stime         int64          `json:"stime"`
	Rtime         int64          `json:"rtime"`
	Command       string         `json:"command"`
	Directory     string         `json:"directory"`
	CPU           int64          `json:"cpu"`
	RSS           int64          `json:"rss"`
	ListenSockets []ListenSocket `json:"listen_sockets"`
}

// ListenSocket is a socket on which a process listens.
type ListenSocket struct {
	Proto   string `json:"proto"`
	Address string `json:"address"`
}

// listProcesses asks the worker.
func (c *Controller) listProcesses(r *call, m *record.Machine) ([]*internalpb.Process, error) {
	w, ctx, cancel, err := c.worker(r.Context(), m.Node, workerLimit)
	if err != nil {
		return nil, err
	}
	defer cancel()
	out, err := w.Processes(ctx, &internalpb.ProcessesRequest{MachineId: string(m.ID)})
	if err != nil {
		return nil, err
	}
	return out.Processes, nil
}

// processes lists the processes inside a Machine.
func (c *Controller) processes(r *call) (int, any, error) {
	m, err := c.runningMachine(r)
	if err != nil {
		return 0, nil, err
	}
	procs, err := c.listProcesses(r, m)
	if err != nil {
		return 0, nil, err
	}
	out := []ProcessStat{}
	for _, p := range procs {
		ps := ProcessStat{PID: p.Pid, Stime: p.Stime, Rtime: p.Rtime, Command: p.Command, Directory: p.Directory, CPU: p.Cpu, RSS: p.Rss, ListenSockets: []ListenSocket{}}
		for _, l := range p.ListenSockets {
			ps.ListenSockets = append(ps.ListenSockets, ListenSocket{Proto: l.Proto, Address: l.Address})
		}
		out = append(out, ps)
	}
	by, order := r.URL.Query().Get("sort_by"), r.URL.Query().Get("order")
	less, known := map[string]func(a, b ProcessStat) int{
		"": byPID, "pid": byPID,
		"stime": func(a, b ProcessStat) int { return cmp.Compare(a.Stime, b.Stime) },
		"rtime": func(a, b ProcessStat) int { return cmp.Compare(a.Rtime, b.Rtime) },
		"cpu":   func(a, b ProcessStat) int { return cmp.Compare(a.CPU, b.CPU) },
		"rss":   func(a, b ProcessStat) int { return cmp.Compare(a.RSS, b.RSS) },
	}[by]
	if !known {
		return 0, nil, fault.New(fault.Invalid, "sort_by is %q; use pid, stime, rtime, cpu or rss", fault.Clip(by))
	}
	slices.SortStableFunc(out, less)
	if order == "desc" {
		slices.Reverse(out)
	}
	return http.StatusOK, out, nil
}

func byPID(a, b ProcessStat) int { return cmp.Compare(a.PID, b.PID) }
