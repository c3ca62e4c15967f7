package worker

import (
	"context"

	"bulkhead/failpoint"
	"bulkhead/key"
	"bulkhead/sandbox"
)

// marked is a runtime with a place for tests (package failpoint) around each call
// that changes something. Programs as they are released do without it.
type marked struct{ sandbox.Runtime }

func (m marked) Start(ctx context.Context, spec sandbox.Spec) (box sandbox.Sandbox, err error) {
	err = failpoint.Write("worker/runtime/start", func() error {
		box, err = m.Runtime.Start(ctx, spec)
		return err
	})
	return held(box, err)
}

func (m marked) Attach(ctx context.Context, id key.MachineID) (box sandbox.Sandbox, err error) {
	err = failpoint.Write("worker/runtime/attach", func() error {
		box, err = m.Runtime.Attach(ctx, id)
		return err
	})
	return held(box, err)
}

// held is what a call gives that may have been made and is reported as failed.
func held(box sandbox.Sandbox, err error) (sandbox.Sandbox, error) {
	if err != nil && box != nil {
		box.Close()
		box = nil
	}
	return box, err
}

func (m marked) Signal(ctx context.Context, id key.MachineID, n int) error {
	return failpoint.Write("worker/runtime/signal", func() error { return m.Runtime.Signal(ctx, id, n) })
}

func (m marked) Remove(ctx context.Context, id key.MachineID) error {
	return failpoint.Write("worker/runtime/remove", func() error { return m.Runtime.Remove(ctx, id) })
}

func (m marked) List(ctx context.Context) (all []sandbox.Info, err error) {
	err = failpoint.Write("worker/runtime/list", func() error {
		all, err = m.Runtime.List(ctx)
		return err
	})
	return all, err
}
