package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
)

// NonceHeader carries the nonce of the lease under which a Machine is changed.
const NonceHeader = "fly-machine-lease-nonce"

// Reserved metadata keys and the values that mark a Machine as managed by deploy.
const (
	MetaPlatform    = "fly_platform_version"
	MetaGroup       = "fly_process_group"
	PlatformVersion = "v2"
)

// Machine is what the API says of a Machine.
type Machine struct {
	ID         key.MachineID     `json:"id"`
	Name       string            `json:"name,omitempty"`
	State      machine.State     `json:"state"`
	Region     string            `json:"region,omitempty"`
	ImageRef   *machine.ImageRef `json:"image_ref,omitempty"`
	InstanceID key.InstanceID    `json:"instance_id,omitempty"` // one per version
	PrivateIP  string            `json:"private_ip,omitempty"`
	CreatedAt  string            `json:"created_at,omitempty"`
	UpdatedAt  string            `json:"updated_at,omitempty"`
	Config     *machine.Config   `json:"config,omitempty"`
	Events     []machine.Event   `json:"events,omitempty"` // newest first
	Checks     []CheckStatus     `json:"checks,omitempty"`
	Nonce      string            `json:"nonce,omitempty"`
	HostStatus string            `json:"host_status,omitempty"`
	Cordoned   bool              `json:"cordoned,omitempty"`
}

// CheckStatus is the last result of a health check.
type CheckStatus struct {
	Name      string `json:"name"`
	Status    string `json:"status"` // passing, warning, critical
	Output    string `json:"output,omitempty"`
	UpdatedAt string `json:"updated_at,omitempty"`
}

// Group returns the process group a Machine belongs to, "" for one that deploy
// does not manage.
func (m Machine) Group() string {
	if m.Config == nil || m.Config.Metadata[MetaPlatform] != PlatformVersion {
		return ""
	}
	if g := m.Config.Metadata[MetaGroup]; g != "" {
		return g
	}
	return "app"
}

// LaunchInput is the body of a create and of an update.
type LaunchInput struct {
	Name       string          `json:"name,omitempty"`
	Region     string          `json:"region,omitempty"`
	Config     *machine.Config `json:"config"`
	SkipLaunch bool            `json:"skip_launch,omitempty"`
	// LeaseTTL, in seconds, makes the new Machine leased; its Nonce is answered.
	LeaseTTL int `json:"lease_ttl,omitempty"`
	// CurrentVersion makes an update fail unless this is still the instance id.
	CurrentVersion key.InstanceID `json:"current_version,omitempty"`
}

// launchTimeout bounds a create or update, in which the server resolves the image.
const launchTimeout = 3 * time.Minute

// Machines lists the Machines of an app, without destroyed ones.
func (c *Client) Machines(ctx context.Context, app string) ([]Machine, error) {
	var out []Machine
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"apps", app, "machines"}, out: &out})
	return out, err
}

// Machine returns one Machine.
func (c *Client) Machine(ctx context.Context, app string, id key.MachineID) (Machine, error) {
	var out Machine
	err := c.do(ctx, call{method: http.MethodGet, path: machinePath(app, id), out: &out})
	return out, err
}

// CreateMachine makes a Machine and, unless SkipLaunch, starts it. It is answered
// when the Machine is recorded, before it runs.
func (c *Client) CreateMachine(ctx context.Context, app string, in LaunchInput) (Machine, error) {
	var out Machine
	err := c.do(ctx, call{method: http.MethodPost, path: []string{"apps", app, "machines"}, in: in, out: &out, timeout: launchTimeout})
	return out, err
}

// UpdateMachine gives a Machine a new version of its config, whole, and restarts it.
func (c *Client) UpdateMachine(ctx context.Context, app string, id key.MachineID, in LaunchInput, nonce string) (Machine, error) {
	var out Machine
	err := c.do(ctx, call{method: http.MethodPost, path: machinePath(app, id), in: in, out: &out, nonce: nonce, timeout: launchTimeout})
	return out, err
}

// DestroyMachine destroys a Machine; a running one is refused without force.
func (c *Client) DestroyMachine(ctx context.Context, app string, id key.MachineID, force bool, nonce string) error {
	q := url.Values{}
	if force {
		q.Set("force", "true")
	}
	return c.do(ctx, call{method: http.MethodDelete, path: machinePath(app, id), query: q, nonce: nonce})
}

// StartMachine starts a stopped Machine.
func (c *Client) StartMachine(ctx context.Context, app string, id key.MachineID, nonce string) error {
	return c.do(ctx, call{method: http.MethodPost, path: machinePath(app, id, "start"), nonce: nonce})
}

// StopInput says how to stop a Machine; zero values mean what its config says.
type StopInput struct {
	Signal  string            `json:"signal,omitempty"`
	Timeout *machine.Duration `json:"timeout,omitempty"`
}

// StopMachine asks a Machine to stop. It is answered before the Machine has stopped.
func (c *Client) StopMachine(ctx context.Context, app string, id key.MachineID, in StopInput, nonce string) error {
	return c.do(ctx, call{method: http.MethodPost, path: machinePath(app, id, "stop"), in: in, nonce: nonce})
}

// RestartMachine stops and starts a Machine. The timeout is how long the process
// has to end; 0 means what the config says.
func (c *Client) RestartMachine(ctx context.Context, app string, id key.MachineID, timeout time.Duration, force bool, nonce string) error {
	q := url.Values{}
	if timeout > 0 {
		q.Set("timeout", timeout.String())
	}
	if force {
		q.Set("force_stop", "true")
	}
	return c.do(ctx, call{method: http.MethodPost, path: machinePath(app, id, "restart"), query: q, nonce: nonce, timeout: launchTimeout})
}

// Events lists what happened to a Machine, newest first, at most 50.
func (c *Client) Events(ctx context.Context, app string, id key.MachineID, limit int) ([]machine.Event, error) {
	var out []machine.Event
	q := url.Values{"limit": {strconv.Itoa(limit)}}
	err := c.do(ctx, call{method: http.MethodGet, path: machinePath(app, id, "events"), query: q, out: &out})
	return out, err
}

// maxWait is the longest wait that the API grants in one call.
const maxWait = 60 * time.Second

// Wait waits, for at most timeout (1 to 60 seconds), until the Machine's version is
// in state. Not in time is fault.Timeout; a Machine that can no longer get there is
// answered at once with the reason.
func (c *Client) Wait(ctx context.Context, app string, id key.MachineID, version key.InstanceID, state machine.State, timeout time.Duration) error {
	timeout = min(max(timeout, time.Second), maxWait)
	q := url.Values{"state": {string(state)}, "timeout": {strconv.Itoa(int((timeout + time.Second - 1) / time.Second))}}
	if version != "" {
		q.Set("version", string(version))
		q.Set("instance_id", string(version)) // the name older servers know
	}
	return c.do(ctx, call{method: http.MethodGet, path: machinePath(app, id, "wait"), query: q, timeout: timeout + 15*time.Second})
}

// Ports is what of a Machine's services can be reached.
type Ports struct {
	// Ports are those that the edge has a route to; none while it has no route.
	Ports []struct {
		Port    int  `json:"port"`
		Answers bool `json:"answers"`
	} `json:"ports"`
	// Listens are the addresses at which the Machine's processes listen, when a port does
	// not answer.
	Listens []string `json:"listens"`
}

// Ports has the ports of a Machine's services tried from the network.
func (c *Client) Ports(ctx context.Context, app string, id key.MachineID) (Ports, error) {
	var p Ports
	err := c.do(ctx, call{method: http.MethodGet, path: machinePath(app, id, "ports"), out: &p})
	return p, err
}

// ExecInput is a command to run inside a Machine.
type ExecInput struct {
	Command []string `json:"command"`
	Stdin   string   `json:"stdin,omitempty"`
	Timeout int      `json:"timeout,omitempty"` // seconds
}

// ExecResult is what became of an ExecInput.
type ExecResult struct {
	ExitCode   int    `json:"exit_code"`
	ExitSignal int    `json:"exit_signal,omitempty"`
	Stdout     string `json:"stdout"`
	Stderr     string `json:"stderr"`
	// The same bytes as they were, when they are no UTF-8.
	StdoutBase64 []byte `json:"stdout_base64,omitempty"`
	StderrBase64 []byte `json:"stderr_base64,omitempty"`
}

// Exec runs a command inside a started Machine and returns when it has ended.
func (c *Client) Exec(ctx context.Context, app string, id key.MachineID, in ExecInput) (ExecResult, error) {
	var out ExecResult
	t := time.Duration(in.Timeout)*time.Second + 15*time.Second
	err := c.do(ctx, call{method: http.MethodPost, path: machinePath(app, id, "exec"), in: in, out: &out, timeout: t})
	return out, err
}

// Lease is the sole right to change a Machine, until it expires.
type Lease struct {
	Nonce       string `json:"nonce"`
	ExpiresAt   int64  `json:"expires_at,omitempty"` // Unix seconds
	Owner       string `json:"owner,omitempty"`
	Description string `json:"description,omitempty"`
}

// AcquireLease leases a Machine for ttl, or refreshes the lease whose nonce is
// given. A Machine leased by someone else is fault.Conflict; the message names the
// holder.
func (c *Client) AcquireLease(ctx context.Context, app string, id key.MachineID, ttl time.Duration, description, nonce string) (Lease, error) {
	in := struct {
		Description string `json:"description,omitempty"`
		TTL         int    `json:"ttl"`
	}{description, int(ttl / time.Second)}
	// Servers differ in whether the lease is wrapped in an envelope; both are read.
	var out struct {
		Lease
		Data *Lease `json:"data"`
	}
	q := url.Values{"ttl": {strconv.Itoa(in.TTL)}}
	err := c.do(ctx, call{method: http.MethodPost, path: machinePath(app, id, "lease"), query: q, in: in, out: &out, nonce: nonce})
	if err != nil {
		return Lease{}, err
	}
	l := out.Lease
	if l.Nonce == "" && out.Data != nil {
		l = *out.Data
	}
	if l.Nonce == "" {
		return Lease{}, fault.New(fault.Internal, "%s answered a lease of Machine %s without a nonce", c.base.Host, id)
	}
	return l, nil
}

// ReleaseLease gives a lease back. One that is gone already is not an error.
func (c *Client) ReleaseLease(ctx context.Context, app string, id key.MachineID, nonce string) error {
	err := c.do(ctx, call{method: http.MethodDelete, path: machinePath(app, id, "lease"), nonce: nonce})
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// machinePath is the path of a Machine, or of something below it.
func machinePath(app string, id key.MachineID, below ...string) []string {
	return append([]string{"apps", app, "machines", string(id)}, below...)
}
