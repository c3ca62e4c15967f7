package controller

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"bulkhead/api/internalpb"
	"bulkhead/audit"
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

// ExecResult is the answer to an exec. Bytes that are no UTF-8 are replaced in the text; then
// the field in base64 has them as they were.
type ExecResult struct {
	ExitCode     int32  `json:"exit_code"`
	ExitSignal   int32  `json:"exit_signal"`
	Stdout       string `json:"stdout"`
	Stderr       string `json:"stderr"`
	StdoutBase64 []byte `json:"stdout_base64,omitempty"`
	StderrBase64 []byte `json:"stderr_base64,omitempty"`
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
	var err error
	if strings.HasSuffix(r.Pattern, "/exec/stream") {
		err = r.readBegin(&in)
	} else {
		err = r.read(&in, true)
	}
	if err != nil {
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

// execOf checks what is asked, and says where it runs and for how long.
func (c *Controller) execOf(r *call, limit, most time.Duration) (*record.Machine, time.Duration, error) {
	in := r.cmd
	if in == nil {
		return nil, 0, fault.New(fault.Internal, "an exec was not read before it was allowed")
	}
	if in.Container != "" {
		return nil, 0, fault.New(fault.Invalid, "container is %q, but a machine has no containers; leave it out", fault.Clip(in.Container))
	}
	if len(strings.Join(in.Command, ""))+len(in.Stdin) > maxCommand {
		return nil, 0, fault.New(fault.Invalid, "the command and its input are larger than %d MiB", maxCommand>>20)
	}
	if in.Timeout != 0 {
		if in.Timeout < 0 || in.Timeout > int(most.Seconds()) {
			return nil, 0, fault.New(fault.Invalid, "timeout is %d seconds; it must be 1 to %d", in.Timeout, int(most.Seconds()))
		}
		limit = time.Duration(in.Timeout) * time.Second
	}
	m, err := c.runningMachine(r)
	if err != nil {
		return nil, 0, err
	}
	_, _, err = c.checkLease(r.Context(), m, r.nonce())
	return m, limit, err
}

// noteIn puts the command's program into its audit record, and how many words follow. The
// words themselves may hold secrets.
func (in *execRequest) noteIn(rec *audit.Record) {
	rec.Target = "command=" + cutTokens(fault.Clip(in.Command[0]))
	rec.Detail = fmt.Sprintf("%d arguments", len(in.Command)-1)
}

// execMachine runs one command inside a Machine and answers its output.
func (c *Controller) execMachine(r *call) (int, any, error) {
	m, limit, err := c.execOf(r, defaultExec, maxExec)
	if err != nil {
		return 0, nil, err
	}
	in := r.cmd
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
	res := ExecResult{ExitCode: out.ExitCode, ExitSignal: out.ExitSignal}
	res.Stdout, res.StdoutBase64 = textOf(out.Stdout)
	res.Stderr, res.StderrBase64 = textOf(out.Stderr)
	return http.StatusOK, res, nil
}

// textOf gives bytes as text, and as they are when the text is not the same.
func textOf(b []byte) (string, []byte) {
	if utf8.Valid(b) {
		return string(b), nil
	}
	return strings.ToValidUTF8(string(b), "\uFFFD"), b
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
