package worker

import (
	"context"
	"encoding/json"
	"path/filepath"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/privnet"
	"bulkhead/sandbox"
)

// A journal that is new, or stands in for one that was damaged or lost, carries a
// mark: which Machines the node has is not known. The worker tells the controller so,
// and makes its records, all in the one transaction that removes the mark, from the
// controller's Snapshot, what it last observed, and the sandboxes that there are.
// Until then nothing is started, and sandboxes, logs and images are left alone; a
// worker that dies in between begins again.

// noRebuild is what the board calls a journal that cannot be made anew yet.
const noRebuild = "the journal cannot be made anew from the controller's assignments; machines run on, none is started"

// Why an event says that a Machine is where it is after a rebuild.
const (
	rebuiltRuns    = "it runs on"
	rebuiltEnds    = "it is stopped, as was asked"
	rebuiltRestart = "it is started again"
	rebuiltJob     = "it is not known whether it has ended, and it is not to run twice: start it if it should run"
	rebuiltStays   = "it stays as it was"
	rebuiltGoes    = "it goes on being destroyed"
)

// notWhole is the answer to whoever asks about Machines before they are known.
func (w *Worker) notWhole() error {
	select {
	case <-w.whole:
		return nil
	default:
		return fault.New(fault.Unavailable, "the node's journal is made anew and waits for the controller; try again")
	}
}

// rebuild makes the journal whole, however often that takes, until ctx ends.
func (w *Worker) rebuild(ctx context.Context, snap *internalpb.Snapshot) error {
	for wait := retryFirst; ; wait = min(2*wait, retryMax) {
		err := w.rebuildOnce(ctx, snap)
		if err == nil {
			w.board.Over(noRebuild)
			return nil
		}
		w.board.Trouble(noRebuild, err)
		if err := sleep(ctx, wait); err != nil {
			return err
		}
		if err := w.life.Err(); err != nil {
			return err
		}
	}
}

func (w *Worker) rebuildOnce(ctx context.Context, snap *internalpb.Snapshot) error {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	census, err := w.runtime.List(call)
	if err != nil {
		return err
	}
	b := &rebuilder{now: w.now(), host: w.opt.Host, held: w.vault.get, boxes: map[key.MachineID]sandbox.Info{}, observed: map[key.MachineID]*internalpb.Observation{}, taken: map[privnet.Slot]bool{}}
	for _, info := range census {
		b.boxes[info.Machine] = info
		b.taken[info.Slot] = true
	}
	for _, o := range snap.GetObserved() {
		b.observed[key.MachineID(o.GetMachineId())] = o
	}
	if aside := w.journal.mark.Aside; aside != "" {
		if b.slots, err = salvage(filepath.Join(w.opt.Dir, aside)); err != nil {
			w.log.Warn("the machines' slots cannot be read from the damaged journal", "kept as", aside, "err", err)
		}
	}
	entries := b.entries(snap.GetAssignments(), func(asg *internalpb.Assignment, err error) {
		w.log.Error("an assignment is not taken over", "machine", asg.GetMachineId(), "err", err)
	})
	if err := w.journal.rebuild(entries); err != nil {
		return err
	}
	if len(entries) > 0 {
		w.log.Warn("the worker's journal is rebuilt", "machines", len(entries), "sandboxes", len(census), "observed", len(b.observed), "slots found", len(b.slots))
	}
	w.mu.Lock()
	for _, e := range entries {
		w.dirty[e.rec.Machine] = true
	}
	w.mu.Unlock()
	w.takeUpAll(entries)
	select {
	case w.changed <- struct{}{}:
	default:
	}
	return nil
}

// abandonUnknown ends the sandboxes of a node that was removed from the cluster
// before its journal was whole: all of them are strays.
func (w *Worker) abandonUnknown(ctx context.Context) {
	if w.notWhole() == nil {
		return
	}
	w.log.Error("this node was removed from the cluster while its journal was made anew: all its sandboxes are removed")
	if w.rebuild(ctx, &internalpb.Snapshot{}) != nil {
		return
	}
	select {
	case <-w.survey:
	case <-ctx.Done():
	case <-time.After(callTimeout):
	}
}

// rebuilder makes the records of a journal that was lost: a pure function of what is
// known.
type rebuilder struct {
	now      time.Time
	host     privnet.Host
	boxes    map[key.MachineID]sandbox.Info
	observed map[key.MachineID]*internalpb.Observation
	slots    map[key.MachineID]privnet.Slot // salvaged
	taken    map[privnet.Slot]bool
	free     privnet.Slot                       // none below it is free
	held     func(key.MachineID) (opened, bool) // the vault; nil for none
}

// entries makes a record for each assignment; bad is told of those that are none.
func (b *rebuilder) entries(all []*internalpb.Assignment, bad func(*internalpb.Assignment, error)) []entry {
	var out []entry
	reasons := map[key.MachineID]string{}
	for _, asg := range all {
		id, err := checkAssignment(asg)
		if err != nil {
			bad(asg, err)
			continue
		}
		r, why := b.record(id, asg)
		reasons[id] = why
		out = append(out, entry{r, asg})
	}
	b.places(out, reasons)
	for _, e := range out {
		e.rec.event(b.now, "rebuild", byPlatform, &machine.EventRequest{
			Reason: "the node's journal was damaged or lost, and was made anew: " + reasons[e.rec.Machine]})
	}
	return out
}

// record is what can be said of a Machine. It counts as launched, since nobody knows
// otherwise: what goes wrong with its next start must not destroy it.
func (b *rebuilder) record(id key.MachineID, asg *internalpb.Assignment) (r *record, why string) {
	o := b.observed[id]
	r = &record{
		// Of two words about a Machine that with the higher number counts, everywhere: the
		// clock is ahead of all numbers that the lost journal has counted to.
		Machine: id, Seq: max(b.now.UnixMilli(), o.GetSeq()+1), Since: b.now, UpdatedAt: b.now,
		State: machine.Stopped, Instance: instanceOf(asg), Launched: true,
		Wanted: machine.Desired(asg.GetDesired()), StartNonce: asg.GetStartNonce(), RestartNonce: asg.GetRestartNonce(),
	}
	for _, raw := range o.GetEvents() {
		var e machine.Event
		if json.Unmarshal(raw, &e) == nil {
			r.Events = append(r.Events, e)
		}
	}
	if ref, err := refOf(asg); err == nil {
		r.Image = ref.Digest
	}
	if o.GetWish() == asg.GetWish() {
		r.Local, r.Wish = machine.Desired(o.GetLocal()), o.GetWish()
		r.Wanted = r.wanted(asg)
	}
	switch machine.State(o.GetState()) {
	case machine.Destroying, machine.Destroyed, machine.LaunchFailed:
		r.SelfDestroy = true
	}
	box, runs := b.boxes[id]
	if runs {
		if r.Instance != box.Instance {
			r.Instance, r.Image = box.Instance, ""
		}
		r.State, r.Sandbox, r.Ran, r.StartedAt, r.Slot = machine.Started, box.Instance, true, b.now, box.Slot
		b.nonces(r, o)
		b.secrets(r, asg, o)
	}
	switch want := r.wanted(asg); {
	case r.SelfDestroy || want == machine.WantDestroyed:
		return r, rebuiltGoes
	case runs && want == machine.WantStarted:
		return r, rebuiltRuns
	case runs:
		return r, rebuiltEnds
	case want == machine.WantStopped:
		return r, rebuiltStays
	case once(asg):
		return r, rebuiltJob
	case b.rests(asg, o, machine.Stopped):
		return r, rebuiltStays
	case b.rests(asg, o, machine.Failed):
		// Whether it was to be tried again is not known: once more harms nobody.
		r.State, r.Error = machine.Failed, o.GetError()
		r.Retry, r.NextStart = true, b.now.Add(failedRetry)
		return r, rebuiltStays
	}
	r.State = machine.Restarting
	return r, rebuiltRestart
}

// nonces leaves a restart to be done that the controller has not heard of.
func (b *rebuilder) nonces(r *record, o *internalpb.Observation) {
	if o != nil && o.GetInstanceId() == string(r.Instance) && o.GetRestartNonce() < r.RestartNonce {
		r.RestartNonce = o.GetRestartNonce()
	}
}

// secrets says which secrets a process that runs was started with: those that are kept for
// it, or else those that the controller was told of last.
func (b *rebuilder) secrets(r *record, asg *internalpb.Assignment, o *internalpb.Observation) {
	if asg.GetSkipSecrets() {
		return
	}
	r.Secrets, r.HasSecrets = o.GetSecretsVersion(), asg.GetSecretsVersion() > 0
	if b.held == nil {
		return
	}
	if h, ok := b.held(r.Machine); ok {
		r.Secrets, r.HasSecrets = h.Version, h.values != nil
	}
}

// rests reports whether a Machine was last seen in a lasting state by the newest wish.
func (b *rebuilder) rests(asg *internalpb.Assignment, o *internalpb.Observation, s machine.State) bool {
	return o.GetState() == string(s) && o.GetInstanceId() == asg.GetInstanceId() &&
		o.GetStartNonce() == asg.GetStartNonce() && o.GetRestartNonce() == asg.GetRestartNonce()
}

// once reports whether a Machine is a job: its process may have ended for good.
func once(asg *internalpb.Assignment) bool {
	c, err := configOf(asg)
	return err != nil || c.AutoDestroy || c.Restart != nil && c.Restart.Policy == machine.RestartNo
}

// places gives each Machine its slot: that of its sandbox, the one it was last seen in
// or was salvaged with, or else the lowest that is free.
func (b *rebuilder) places(all []entry, reasons map[key.MachineID]string) {
	was := map[key.MachineID]privnet.Slot{}
	for _, e := range all {
		id := e.rec.Machine
		if was[id] = b.slots[id]; was[id] == 0 {
			was[id] = b.seenIn(b.observed[id], e.asg)
		}
		if s := was[id]; e.rec.Slot == 0 && s != 0 && !b.taken[s] {
			e.rec.Slot, b.taken[s] = s, true
		}
	}
	for _, e := range all {
		id := e.rec.Machine
		if e.rec.Slot == 0 {
			e.rec.Slot = b.lowest()
		}
		switch {
		case e.rec.Sandbox != "" || was[id] == e.rec.Slot:
		case was[id] == 0:
			reasons[id] += "; its private address may have changed"
		default:
			reasons[id] += "; its private address has changed"
		}
	}
}

// lowest is the lowest slot that nobody has, or 0.
func (b *rebuilder) lowest() privnet.Slot {
	for b.free++; b.free <= privnet.MaxSlot; b.free++ {
		if !b.taken[b.free] {
			b.taken[b.free] = true
			return b.free
		}
	}
	return 0
}

// seenIn is the slot whose address a Machine was last seen with, or 0.
func (b *rebuilder) seenIn(o *internalpb.Observation, asg *internalpb.Assignment) privnet.Slot {
	s, ok := privnet.SlotOf(o.GetPrivateIp())
	if !ok || privateIP(&record{Slot: s}, asg, b.host) != o.GetPrivateIp() {
		return 0
	}
	return s
}
