// Package flapstest runs the life of a Machine with a real client of the Machines
// API that nobody here wrote: package flaps of fly-go, unmodified.
package flapstest

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	fly "github.com/superfly/fly-go"
	"github.com/superfly/fly-go/flaps"
	"github.com/superfly/fly-go/tokens"
)

// Config says where the API is and what to run on it.
type Config struct {
	BaseURL   string            // without /v1
	Token     string            // may do everything in Org
	Transport http.RoundTripper // trusts the API's certificate
	Org       string
	App       string // a name that is free
	Image     string // an image that keeps running until it is stopped
	// Exec is a command of the image and a word of its output.
	Exec, ExecOutput string
}

// Run creates an app and takes one Machine through its life: launch, wait, lease,
// update, exec, stop, start, destroy. It fails the test at the first wrong answer.
func Run(t *testing.T, c Config) {
	t.Setenv("FLY_FLAPS_BASE_URL", c.BaseURL)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	f, err := flaps.NewWithOptions(ctx, flaps.NewClientOpts{Tokens: tokens.Parse(c.Token), Transport: c.Transport, UserAgent: "bulkhead-test"})
	must(t, "make a client", err)
	l := &life{t: t, ctx: ctx, f: f, c: c}
	l.apps()
	l.secrets()
	l.launch()
	l.leases()
	l.update()
	l.inside()
	l.metadata()
	l.stopAndStart()
	l.destroy()
}

// life is one Machine's.
type life struct {
	t   *testing.T
	ctx context.Context
	f   *flaps.Client
	c   Config
	m   *fly.Machine
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func (l *life) apps() {
	t := l.t
	_, err := l.f.GetApp(l.ctx, l.c.App)
	if !isCode(err, http.StatusNotFound) {
		t.Fatalf("get of an app that does not exist: %v, want 404", err)
	}
	app, err := l.f.CreateApp(l.ctx, flaps.CreateAppRequest{Name: l.c.App, Org: l.c.Org})
	must(t, "create app", err)
	if app.Name != l.c.App || app.Organization.Slug != l.c.Org || app.ID == "" {
		t.Fatalf("create app gave %+v", app)
	}
	if _, err := l.f.CreateApp(l.ctx, flaps.CreateAppRequest{Name: l.c.App, Org: l.c.Org}); !isCode(err, http.StatusUnprocessableEntity) || string(*flaps.GetErrorStatusCode(err)) != "name_taken" {
		t.Fatalf("create of an app that exists: %v", err)
	}
	must(t, "wait for app", l.f.WaitForApp(l.ctx, l.c.App))
	apps, err := l.f.ListApps(l.ctx, flaps.ListAppsRequest{OrgSlug: l.c.Org})
	must(t, "list apps", err)
	found := false
	for _, a := range apps {
		found = found || a.Name == l.c.App
	}
	if !found {
		t.Fatalf("list of apps has no %s: %+v", l.c.App, apps)
	}
	regions, err := l.f.GetRegions(l.ctx)
	must(t, "regions", err)
	if len(regions.Regions) == 0 || regions.Nearest == "" || regions.Regions[0].Code == "" {
		t.Fatalf("regions: %+v", regions)
	}
	_, err = l.f.GetPlacements(l.ctx, &flaps.GetPlacementsRequest{Org: l.c.Org, ComputeRequirements: &fly.MachineGuest{CPUKind: "shared", CPUs: 1, MemoryMB: 256}})
	must(t, "placements", err)
	ips, err := l.f.GetIPAssignments(l.ctx, l.c.App)
	must(t, "ip assignments", err)
	if len(ips.IPs) != 0 {
		t.Fatalf("a new app has addresses: %+v", ips)
	}
}

func (l *life) config() *fly.MachineConfig {
	return &fly.MachineConfig{
		Image:    l.c.Image,
		Env:      map[string]string{"GREETING": "hello"},
		Guest:    &fly.MachineGuest{CPUKind: "shared", CPUs: 1, MemoryMB: 256},
		Restart:  &fly.MachineRestart{Policy: fly.MachineRestartPolicyOnFailure, MaxRetries: 3},
		Metadata: map[string]string{"fly_platform_version": "v2", "fly_process_group": "app"},
	}
}

func (l *life) launch() {
	m, err := l.f.Launch(l.ctx, l.c.App, fly.LaunchMachineInput{Config: l.config(), Name: "flaps-test"})
	must(l.t, "launch", err)
	if m.ID == "" || m.State != "created" || m.InstanceID == "" || m.Name != "flaps-test" {
		l.t.Fatalf("launch gave %+v", m)
	}
	must(l.t, "wait until started", l.f.Wait(l.ctx, l.c.App, m.ID, flaps.WithWaitStates("started"), flaps.WithWaitTimeout(time.Minute), flaps.WithWaitVersion(m.InstanceID)))
	l.m = m
	l.m = l.get()
	if l.m.State != "started" || l.m.PrivateIP == "" || l.m.HostStatus != fly.HostStatusOk || l.m.Config.Env["GREETING"] != "hello" {
		l.t.Fatalf("the started machine is %+v", l.m)
	}
	if _, err := l.m.MostRecentStartTimeAfterLaunch(); err != nil {
		l.t.Fatalf("the events do not show the start after the launch: %v: %+v", err, l.m.Events)
	}
	active, err := l.f.ListActive(l.ctx, l.c.App)
	must(l.t, "list active", err)
	all, err := l.f.List(l.ctx, l.c.App, "state=started")
	must(l.t, "list", err)
	ours, _, err := l.f.ListFlyAppsMachines(l.ctx, l.c.App)
	must(l.t, "list the platform's machines", err)
	if len(active) != 1 || len(all) != 1 || len(ours) != 1 {
		l.t.Fatalf("lists have %d, %d and %d machines, want 1 each", len(active), len(all), len(ours))
	}
}

func (l *life) get() *fly.Machine {
	l.t.Helper()
	m, err := l.f.Get(l.ctx, l.c.App, l.m.ID)
	must(l.t, "get machine", err)
	return m
}

func (l *life) leases() {
	t, ttl := l.t, 30
	if _, err := l.f.FindLease(l.ctx, l.c.App, l.m.ID); !isCode(err, http.StatusNotFound) {
		t.Fatalf("a lease that nobody took: %v, want 404", err)
	}
	lease, err := l.f.AcquireLease(l.ctx, l.c.App, l.m.ID, &ttl)
	must(t, "acquire lease", err)
	if lease.Status != "success" || lease.Data == nil || lease.Data.Nonce == "" || lease.Data.ExpiresAt < time.Now().Unix() {
		t.Fatalf("lease: %+v %+v", lease, lease.Data)
	}
	again, err := l.f.RefreshLease(l.ctx, l.c.App, l.m.ID, &ttl, lease.Data.Nonce)
	must(t, "refresh lease", err)
	if again.Data.Nonce != lease.Data.Nonce {
		t.Fatalf("a refreshed lease has another nonce: %q, %q", again.Data.Nonce, lease.Data.Nonce)
	}
	found, err := l.f.FindLease(l.ctx, l.c.App, l.m.ID)
	must(t, "find lease", err)
	if found.Data.Owner != lease.Data.Owner || found.Data.Nonce != "" { // only the taker sees the nonce
		t.Fatalf("found lease %+v", found.Data)
	}
	err = l.f.Stop(l.ctx, l.c.App, fly.StopMachineInput{ID: l.m.ID}, "")
	if !isCode(err, http.StatusConflict) || !strings.Contains(err.Error(), l.m.ID) {
		t.Fatalf("stop without the lease's nonce: %v, want 409", err)
	}
	must(t, "cordon with the lease's nonce", l.f.Cordon(l.ctx, l.c.App, l.m.ID, lease.Data.Nonce))
	must(t, "uncordon", l.f.Uncordon(l.ctx, l.c.App, l.m.ID, lease.Data.Nonce))
	must(t, "release lease", l.f.ReleaseLease(l.ctx, l.c.App, l.m.ID, lease.Data.Nonce))
}

func (l *life) update() {
	conf := l.config()
	conf.Env["GREETING"] = "good day"
	m, err := l.f.Update(l.ctx, l.c.App, fly.LaunchMachineInput{ID: l.m.ID, Config: conf, Region: l.m.Region}, "")
	must(l.t, "update", err)
	if m.InstanceID == l.m.InstanceID || m.ID != l.m.ID {
		l.t.Fatalf("update gave %+v, before it was version %s", m, l.m.InstanceID)
	}
	must(l.t, "wait until settled", l.f.Wait(l.ctx, l.c.App, m.ID, flaps.WithWaitStates("settled"), flaps.WithWaitTimeout(time.Minute), flaps.WithWaitVersion(m.InstanceID)))
	must(l.t, "wait until started", l.f.Wait(l.ctx, l.c.App, m.ID, flaps.WithWaitStates("started"), flaps.WithWaitTimeout(time.Minute), flaps.WithWaitVersion(m.InstanceID)))
	if l.m = l.get(); l.m.State != "started" || l.m.Config.Env["GREETING"] != "good day" {
		l.t.Fatalf("the updated machine is %+v", l.m)
	}
}

func (l *life) inside() {
	out, err := l.f.Exec(l.ctx, l.c.App, l.m.ID, &fly.MachineExecRequest{Cmd: l.c.Exec, Timeout: 20})
	must(l.t, "exec", err)
	if out.ExitCode != 0 || !strings.Contains(out.StdOut, l.c.ExecOutput) {
		l.t.Fatalf("exec of %q: %+v", l.c.Exec, out)
	}
	ps, err := l.f.GetProcesses(l.ctx, l.c.App, l.m.ID)
	must(l.t, "processes", err)
	if len(ps) == 0 || ps[0].Pid == 0 {
		l.t.Fatalf("processes: %+v", ps)
	}
}

func (l *life) metadata() {
	must(l.t, "set metadata", l.f.SetMetadata(l.ctx, l.c.App, l.m.ID, "colour", "blue"))
	md, err := l.f.GetMetadata(l.ctx, l.c.App, l.m.ID)
	must(l.t, "get metadata", err)
	if md["colour"] != "blue" || md["fly_process_group"] != "app" {
		l.t.Fatalf("metadata: %v", md)
	}
	must(l.t, "delete metadata", l.f.DeleteMetadata(l.ctx, l.c.App, l.m.ID, "colour"))
	if got := l.get(); got.InstanceID != l.m.InstanceID || got.Config.Metadata["colour"] != "" {
		l.t.Fatalf("after metadata changes: version %s, was %s, %v", got.InstanceID, l.m.InstanceID, got.Config.Metadata)
	}
}

func (l *life) waitFor(state string) {
	l.t.Helper()
	must(l.t, "wait until "+state, l.f.Wait(l.ctx, l.c.App, l.m.ID, flaps.WithWaitStates(state), flaps.WithWaitTimeout(time.Minute)))
}

func (l *life) stopAndStart() {
	must(l.t, "restart", l.f.Restart(l.ctx, l.c.App, fly.RestartMachineInput{ID: l.m.ID, Timeout: 10 * time.Second}, ""))
	l.waitFor("started")
	must(l.t, "stop", l.f.Stop(l.ctx, l.c.App, fly.StopMachineInput{ID: l.m.ID, Signal: "SIGTERM", Timeout: fly.Duration{Duration: 5 * time.Second}}, ""))
	l.waitFor("stopped")
	started, err := l.f.Start(l.ctx, l.c.App, l.m.ID, "")
	must(l.t, "start", err)
	if started.PreviousState != "stopped" {
		l.t.Fatalf("start gave %+v", started)
	}
	l.waitFor("started")
	must(l.t, "suspend", l.f.Suspend(l.ctx, l.c.App, l.m.ID, ""))
	must(l.t, "wait until suspended or stopped", l.f.Wait(l.ctx, l.c.App, l.m.ID, flaps.WithWaitStates("suspended", "stopped"), flaps.WithWaitTimeout(time.Minute)))
	_, err = l.f.Start(l.ctx, l.c.App, l.m.ID, "")
	must(l.t, "start", err)
	l.waitFor("started")
}

func (l *life) destroy() {
	if err := l.f.Destroy(l.ctx, l.c.App, fly.RemoveMachineInput{ID: l.m.ID}, ""); err == nil {
		l.t.Fatal("a running machine was destroyed without force")
	}
	must(l.t, "destroy", l.f.Destroy(l.ctx, l.c.App, fly.RemoveMachineInput{ID: l.m.ID, Kill: true}, ""))
	l.waitFor("destroyed")
	active, err := l.f.ListActive(l.ctx, l.c.App)
	must(l.t, "list active", err)
	if len(active) != 0 {
		l.t.Fatalf("a destroyed machine is listed: %+v", active)
	}
	must(l.t, "delete app", l.f.DeleteApp(l.ctx, l.c.App))
	if _, err := l.f.GetApp(l.ctx, l.c.App); !isCode(err, http.StatusNotFound) {
		l.t.Fatalf("get of a deleted app: %v, want 404", err)
	}
}

// isCode reports whether the API answered with a code.
func isCode(err error, code int) bool {
	var fe *flaps.FlapsError
	return errors.As(err, &fe) && fe.ResponseStatusCode == code
}
