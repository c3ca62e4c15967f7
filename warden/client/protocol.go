// Package client is the worker's side of the warden: it implements sandbox.Runtime
// over the "warden" socket. It also holds the protocol's messages, which the warden
// takes from here.
//
// One connection carries one operation:
//
//	worker → Request, with the streams of an OpExec, and a file of secrets for some OpStart and OpExec
//	warden → Response, with files for OpStart and OpAttach
//	worker → Request{Op: OpAck}   after OpStart only
//
// The acknowledgement closes the gap in which a caller gives up while the answer is
// on its way: a start that is not acknowledged is undone.
package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/sandbox"
	"bulkhead/warden/wire"
)

// Op names an operation. The list is closed.
type Op string

// The operations, as in sandbox.Runtime.
const (
	OpPing      Op = "ping"
	OpStart     Op = "start"
	OpAck       Op = "ack"
	OpAttach    Op = "attach"
	OpSignal    Op = "signal"
	OpExec      Op = "exec"
	OpProcesses Op = "processes"
	OpListen    Op = "listen"
	OpRemove    Op = "remove"
	OpList      Op = "list"
	OpMetrics   Op = "metrics"
)

// Ops are all of them. Who may ask for each is said in api/local.
var Ops = []Op{OpPing, OpStart, OpAck, OpAttach, OpSignal, OpExec, OpProcesses, OpListen, OpRemove, OpList, OpMetrics}

// Known reports whether op is one of the operations.
func Known(op Op) bool { return slices.Contains(Ops, op) }

// Metrics is what the warden counts.
type Metrics struct {
	Operations map[Op]OpCount `json:"operations"`
	// Grants counts starts that were refused for their grant's sake, by the error's status.
	Grants   map[string]int64 `json:"grants,omitempty"`
	Machines int              `json:"machines"` // with a sandbox, running or ended
	Usage    []Usage          `json:"usage,omitempty"`
}

// Usage is what a Machine with a sandbox has used, since its start, and its limits as
// the kernel holds them. What is not known is 0.
type Usage struct {
	Machine          key.MachineID `json:"machine"`
	Memory           int64         `json:"memory"` // bytes, the sandbox's own among them
	MemoryLimit      int64         `json:"memory_limit"`
	CPU              time.Duration `json:"cpu"`
	Periods          int64         `json:"periods"` // scheduling periods in which it wanted to run
	ThrottledPeriods int64         `json:"throttled_periods"`
	Throttled        time.Duration `json:"throttled"`
	Tasks            int64         `json:"tasks"` // processes and threads on the host
	TasksLimit       int64         `json:"tasks_limit"`
	Inside           wire.Meter    `json:"inside"`
	Sent             Traffic       `json:"sent"`
	Received         Traffic       `json:"received"`
}

// Traffic is what went through a Machine's interface in one direction.
type Traffic struct {
	Bytes   uint64 `json:"bytes"`
	Packets uint64 `json:"packets"`
	Dropped uint64 `json:"dropped"` // packets beyond its rate
}

// OpCount counts one operation by how it ended: done, refused with a reason that
// the worker was told, or failed.
type OpCount struct {
	OK      int64 `json:"ok"`
	Refused int64 `json:"refused"`
	Failed  int64 `json:"failed"`
}

// Request is one operation with its arguments.
type Request struct {
	Op      Op                `json:"op"`
	Machine key.MachineID     `json:"machine,omitempty"`
	Spec    *sandbox.Spec     `json:"spec,omitempty"`   // OpStart
	Signal  int               `json:"signal,omitempty"` // OpSignal
	Exec    *sandbox.ExecSpec `json:"exec,omitempty"`   // OpExec
}

// Response is the answer to a Request.
type Response struct {
	Error     *Error              `json:"error,omitempty"`
	Exec      *sandbox.ExecResult `json:"exec,omitempty"`
	Processes []sandbox.Process   `json:"processes,omitempty"`
	List      []sandbox.Info      `json:"list,omitempty"`
	Metrics   *Metrics            `json:"metrics,omitempty"`
}

// The Response to OpListen has one file: a SOCK_SEQPACKET socket. Each byte that comes
// out of it is somebody inside who wants to connect; the answer is a byte with a stream
// socket riding on it, or one without, which is a no.

// ExecFiles are the files that accompany an OpExec before its secrets: stdin, stdout, stderr.
const ExecFiles = 3

// Files that accompany the Response to OpStart and OpAttach, in this order. The
// pidfd is missing when the sandbox has ended.
const (
	FileStdout = iota // FIFO, read end
	FileStderr
	FileExit // a wire.Exit; empty while the sandbox runs
	FilePID  // pidfd of the shim: readable when the sandbox has ended
)

// Error is a *fault.Error on the wire.
type Error struct {
	Kind   fault.Kind `json:"kind"`
	Status string     `json:"status,omitempty"`
	Msg    string     `json:"msg"`
}

// ToError makes the wire form of err. What is not a *fault.Error shows only its
// fixed sentence.
func ToError(err error) *Error {
	if err == nil {
		return nil
	}
	e := &Error{Kind: fault.KindOf(err), Msg: fault.MessageOf(err)}
	var f *fault.Error
	if errors.As(err, &f) {
		e.Status = f.Status
	}
	return e
}

// Err gives back the *fault.Error, or nil.
func (e *Error) Err() error {
	if e == nil {
		return nil
	}
	return &fault.Error{Kind: e.Kind, Status: e.Status, Msg: e.Msg}
}

// Send sends v as JSON in one frame.
func Send(c *net.UnixConn, v any, files ...*os.File) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return wire.Send(Conn{c}, body, files...)
}

// Receive reads one frame into v, strictly: an unknown field or bytes after the end
// are errors. The files are the caller's to close.
func Receive(c *net.UnixConn, v any) ([]*os.File, error) {
	body, files, err := wire.Receive(Conn{c})
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err = d.Decode(v); err != nil {
		err = fmt.Errorf("message cannot be read: %w", err)
	} else if _, terr := d.Token(); terr != io.EOF {
		err = errors.New("message has bytes after its end")
	}
	if err != nil {
		for _, f := range files {
			f.Close()
		}
		return nil, err
	}
	return files, nil
}

// Conn makes a *net.UnixConn a wire.Conn.
type Conn struct{ *net.UnixConn }

// ReadRights implements wire.Conn.
func (c Conn) ReadRights(b, oob []byte) (n, oobn int, truncated bool, err error) {
	n, oobn, flags, _, err := c.ReadMsgUnix(b, oob)
	if err == io.EOF {
		n, err = 0, nil
	}
	return n, oobn, flags&syscall.MSG_CTRUNC != 0, err
}

// WriteRights implements wire.Conn.
func (c Conn) WriteRights(b, oob []byte) error {
	n, _, err := c.WriteMsgUnix(b, oob, nil)
	if err != nil {
		return err
	}
	_, err = c.Write(b[n:])
	return err
}
