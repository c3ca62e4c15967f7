package wire

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Descriptors that the warden hands to a shim. From FDCgroups on there are
// ShimConfig.Cgroups open cgroup.procs files of the sandbox's cgroup.
const (
	FDGo         = 3  // pipe, read end: a byte when the shim is in its cgroup, another when the network stands
	FDReport     = 4  // pipe, write end: one Report
	FDExit       = 5  // file: the Exit
	FDControl    = 6  // listening unix socket for ShimRequests
	FDHoldStdout = 7  // FIFO, both ways: keeps it alive without a reader
	FDHoldStderr = 8  //
	FDStdout     = 9  // FIFO, write end, for the Machine's process
	FDStderr     = 10 //
	FDOOM        = 11 // the cgroup file that counts oom_kill
	FDMeter      = 12 // file: the sandbox's newest Meter
	FDSecrets    = 13 // file: what is secret of the environment, each variable ended by a zero byte; may be empty
	FDCgroups    = 14
)

// What a shim's root directory holds beside /proc of its own process namespace and
// /dev/null: nothing else of the host's. It lies in memory.
const (
	ShimProgram = "/bulkhead-sandbox"
	ShimHelper  = "/bulkhead-shim" // the shim's own program
	ShimInit    = "/bulkhead-init" // the first program of every Machine
	ShimImage   = "/image.erofs"
	ShimBundle  = "/bundle"
	ShimState   = "/state" // gVisor's own
	ShimPIDFile = ShimState + "/sandbox.pid"
)

// MaxLog bounds what a shim keeps of an error log, in bytes.
const MaxLog = 8 << 10

// ShimConfig is what a shim is started with, on its command line.
type ShimConfig struct {
	ID      string
	Program string   // path of bulkhead-sandbox on the host; ShimProgram in the shim's root
	Init    string   // path of bulkhead-init on the host; ShimInit
	Bundle  string   // directory of config.json on the host; ShimBundle
	Image   string   // sealed image on the host; ShimImage
	Cgroups int      // number of descriptors from FDCgroups on
	Flags   []string // before every command
}

// Args encodes the config.
func (c ShimConfig) Args() []string {
	return append([]string{c.ID, c.Program, c.Init, c.Bundle, c.Image, strconv.Itoa(c.Cgroups)}, c.Flags...)
}

// ParseShimConfig undoes Args.
func ParseShimConfig(args []string) (ShimConfig, error) {
	if len(args) < 6 {
		return ShimConfig{}, errors.New("the warden starts this program; it is of no use by hand")
	}
	n, err := strconv.Atoi(args[5])
	return ShimConfig{ID: args[0], Program: args[1], Init: args[2], Bundle: args[3], Image: args[4], Cgroups: n, Flags: args[6:]}, err
}

// Report tells the warden whether the sandbox runs.
type Report struct {
	OK  bool
	Log string // bulkhead-sandbox's error log when it does not run, at most MaxLog bytes
}

// Marshal encodes the report: a line, then the log.
func (r Report) Marshal() []byte { return fmt.Appendf(nil, "%t\n%s", r.OK, r.Log) }

// ParseReport undoes Marshal.
func ParseReport(b []byte) (r Report, err error) {
	line, log, ok := strings.Cut(string(b), "\n")
	if r.OK, err = strconv.ParseBool(line); err != nil || !ok {
		return r, fmt.Errorf("the shim's report of %d bytes cannot be read", len(b))
	}
	r.Log = log
	return r, nil
}

// Exit is the content of a Machine's exit file. Fields as in sandbox.Exit.
type Exit struct {
	Code   int
	Signal int
	OOM    bool
	At     time.Time
}

// Marshal encodes the exit as one line.
func (e Exit) Marshal() []byte {
	return fmt.Appendf(nil, "%d %d %t %d\n", e.Code, e.Signal, e.OOM, e.At.UnixNano())
}

// ParseExit undoes Marshal. An empty or torn file is an error.
func ParseExit(b []byte) (e Exit, err error) {
	var at int64
	if _, err := fmt.Sscanf(string(b), "%d %d %t %d\n", &e.Code, &e.Signal, &e.OOM, &at); err != nil {
		return Exit{}, fmt.Errorf("the exit status cannot be read: %w", err)
	}
	e.At = time.Unix(0, at)
	return e, nil
}

// ShimRequest asks a shim to run bulkhead-sandbox with Args after the config's
// flags. Its files are stdin, stdout, stderr and, when there is a fourth,
// descriptor 4. Closing the connection kills it. Arguments hold no zero byte.
type ShimRequest struct{ Args []string }

// ShimDoor is the request, as the one argument, to hand the one file that comes with
// it to the sandbox: a SOCK_SEQPACKET socket at whose other end the worker makes
// connections to the Machine's API (cmd/bulkhead-sandbox/api.go).
const ShimDoor = "door"

// Marshal encodes the request.
func (r ShimRequest) Marshal() []byte { return []byte(strings.Join(r.Args, "\x00")) }

// ParseShimRequest undoes Marshal.
func ParseShimRequest(b []byte) ShimRequest { return ShimRequest{strings.Split(string(b), "\x00")} }

// MaxShimReply bounds an encoded ShimReply, in bytes: who took a shim may send anything.
const MaxShimReply = MaxLog + 64

// ShimReply says how a request ended.
type ShimReply struct {
	// Status is the wait status of the process that was run in the sandbox; Known is
	// false when there was none.
	Status uint32
	Known  bool
	Code   int    // exit code of bulkhead-sandbox itself
	Log    string // its error log, at most MaxLog bytes
}

// Marshal encodes the reply: a line, then the log.
func (r ShimReply) Marshal() []byte {
	return fmt.Appendf(nil, "%d %t %d\n%s", r.Status, r.Known, r.Code, r.Log)
}

// ParseShimReply undoes Marshal.
func ParseShimReply(b []byte) (r ShimReply, err error) {
	line, log, ok := strings.Cut(string(b), "\n")
	if _, err := fmt.Sscanf(line, "%d %t %d", &r.Status, &r.Known, &r.Code); err != nil || !ok {
		return r, fmt.Errorf("the shim's reply of %d bytes cannot be read", len(b))
	}
	r.Log = log
	return r, nil
}
