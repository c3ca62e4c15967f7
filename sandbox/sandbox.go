// Package sandbox is the port through which a worker runs Machines: what it may
// ask of the privileged side, and what it gets back.
//
// The real adapter is package warden/client, which speaks to the warden, which
// runs gVisor. Package sandbox/fake keeps the same contract in memory.
// Package sandbox/sandboxtest is the suite that both pass.
package sandbox

import (
	"context"
	"io"
	"net"
	"os"
	"time"

	"bulkhead/key"
	"bulkhead/privnet"
)

// Spec is everything a sandbox is started from. The privileged side checks every
// field against the grant; strings that a tenant wrote (Args, Env, Cwd) are
// bounded and passed on, never interpreted.
type Spec struct {
	Machine  key.MachineID  `json:"machine"`
	Instance key.InstanceID `json:"instance"`
	Slot     privnet.Slot   `json:"slot"`

	// Grant and GrantSignature prove that the controller wants this Machine on this
	// node, in this network, with these limits; see package grant.
	Grant          []byte `json:"grant"`
	GrantSignature []byte `json:"grant_signature"`

	// Image is the digest of the sealed image's manifest: the file of that name in
	// the worker's image store.
	Image key.Digest `json:"image"`

	// Upper is a tar archive of files that are put into the image's root, made by the
	// worker (hosts, resolv.conf, files of the config): at most MaxUpper bytes. Every name
	// starts with "./". Links of the image are followed inside its root, its directories
	// stay as they are, and missing ones are made.
	Upper []byte `json:"upper"`

	Args []string `json:"args"` // at least one; looked up in Env's PATH inside the sandbox
	Env  []string `json:"env"`  // NAME=value
	// Secrets are more of Env, and count over it. They travel apart, as an open file in
	// memory that the sandbox alone reads: they are in no message, record or config.
	Secrets []string `json:"-"`
	// SecretFiles are contents for empty files of Upper, which say path, mode and owner.
	// They travel as Secrets do.
	SecretFiles []SecretFile `json:"-"`

	Cwd      string   `json:"cwd"` // absolute
	UID      uint32   `json:"uid"`
	GID      uint32   `json:"gid"`
	Groups   []uint32 `json:"groups"`
	Hostname string   `json:"hostname"`
	TTY      bool     `json:"tty"` // the process runs on a terminal, whose output is Stdout
	// OwnInit makes the process the first of its sandbox. Otherwise bulkhead-init is, and
	// starts it, unless it is an init by its name (docs/api.md).
	OwnInit bool `json:"own_init"`
}

// Bounds on a Spec and on an ExecSpec.
const (
	MaxUpper   = 4 << 20  // bytes
	MaxStrings = 1 << 20  // bytes of Args and Env together, and again of what is secret, files in base64
	MaxMessage = 16 << 20 // bytes of one message to the warden
)

// SecretFile is a file inside a sandbox whose content is secret.
type SecretFile struct {
	Path    string // absolute
	Content []byte
}

// APISocket is the path of the platform's API inside a sandbox: a stream socket that
// every process there may connect to.
const APISocket = "/.fly/api"

// TokenFile is the path of a Machine's identity token inside a sandbox, when AWS_ROLE_ARN
// is among its variables: whoever reads it gets a fresh one.
const TokenFile = "/.fly/oidc_token"

// Exit says how a sandbox's first process ended.
type Exit struct {
	Code   int       `json:"code"`   // exit code; 128+signal when it was signalled; -1 when unknown
	Signal int       `json:"signal"` // 0 when it was not signalled
	OOM    bool      `json:"oom"`    // the memory limit was hit and something was killed for it
	At     time.Time `json:"at"`
}

// Sandbox is a running (or just ended) sandbox as its worker holds it. The
// sandbox does not depend on it: it lives on when the worker or the warden die.
type Sandbox interface {
	// Stdout and Stderr are the read ends of the process's output. They belong to
	// the Sandbox; what has been read is gone, and when nobody reads, the process
	// blocks after 64 KiB or more.
	Stdout() *os.File
	Stderr() *os.File
	// Wait returns when the first process has ended or ctx is done. It may be called
	// again and gives the same Exit. A sandbox that vanished without leaving its exit
	// status behind (a power cut, a kill from outside) gives Code -1.
	Wait(ctx context.Context) (Exit, error)
	// Close drops the handle, not the sandbox.
	Close() error
}

// Info is one entry of a census.
type Info struct {
	Machine  key.MachineID  `json:"machine"`
	Instance key.InstanceID `json:"instance"`
	Slot     privnet.Slot   `json:"slot"`
	Running  bool           `json:"running"`
}

// ExecSpec is one command to run inside a running sandbox, and where its bytes come from
// and go to.
type ExecSpec struct {
	Args    []string      `json:"args"`
	Env     []string      `json:"env"`
	Secrets []string      `json:"-"` // as of a Spec
	Cwd     string        `json:"cwd"`
	UID     uint32        `json:"uid"`
	GID     uint32        `json:"gid"`
	Groups  []uint32      `json:"groups"`
	Timeout time.Duration `json:"timeout"` // then it is killed; 0 is MaxExec

	// Stdin is read until it or the command ends; a Read under way may outlast Exec. Nil is
	// an empty one. Writers get all that the command wrote, byte for byte; while they do not
	// return, the command waits. Nil drops it. What the command's children write after its
	// end may be lost.
	Stdin          io.Reader `json:"-"`
	Stdout, Stderr io.Writer `json:"-"`
}

// ExecResult is what an ExecSpec gave.
type ExecResult struct {
	Code   int `json:"code"`
	Signal int `json:"signal"`
}

// MaxExec bounds how long a command runs.
const MaxExec = 24 * time.Hour

// Process is one process inside a sandbox.
type Process struct {
	PID     int32         `json:"pid"`
	Command string        `json:"command"`
	CPU     time.Duration `json:"cpu"`
	Started time.Time     `json:"started"`
	RSS     int64         `json:"rss"` // bytes; 0 when unknown
}

// Runtime starts, watches and ends sandboxes. All methods may be called at the
// same time; those on one Machine are carried out one after the other. Errors are
// *fault.Error: Denied for a spec its grant does not cover, Invalid for a
// malformed one, NotFound for a Machine that has no sandbox, Unprocessable for an
// image or a command that cannot be run (the message is for the user),
// Unavailable when the privileged side cannot be reached.
type Runtime interface {
	// Start makes the Machine's network, cgroup and sandbox and starts its process.
	// When it returns an error, nothing of them is left. Conflict when the Machine has
	// a sandbox already, running or ended: Remove it first. Unavailable when the grant
	// has ended (grant.StatusEnded) or ends farther away than any (StatusAhead); Denied
	// when one of a newer generation was used on this node (StatusReplaced).
	Start(ctx context.Context, spec Spec) (Sandbox, error)
	// Attach finds a sandbox started earlier, also by an earlier worker or warden.
	Attach(ctx context.Context, id key.MachineID) (Sandbox, error)
	// Signal signals the first process.
	Signal(ctx context.Context, id key.MachineID, signal int) error
	// Exec runs a command and waits for it. When ctx ends, or a writer fails, the command is
	// killed.
	Exec(ctx context.Context, id key.MachineID, spec ExecSpec) (ExecResult, error)
	// Processes lists the processes.
	Processes(ctx context.Context, id key.MachineID) ([]Process, error)
	// Listen returns where the connections arrive that processes inside make to
	// APISocket. Accept ends with an error when the sandbox does. Of several listeners
	// of one Machine the newest counts. A connection is made when Accept is called: who
	// calls it no more lets those who connect wait, and be refused after a second. Bytes
	// go from process to listener untouched, and nothing but bytes.
	Listen(ctx context.Context, id key.MachineID) (net.Listener, error)
	// Remove kills the sandbox if it runs, and removes everything that Start made.
	// It is idempotent: removing what is not there succeeds.
	Remove(ctx context.Context, id key.MachineID) error
	// List is the census of everything that Start made and Remove has not removed.
	List(ctx context.Context) ([]Info, error)
}
