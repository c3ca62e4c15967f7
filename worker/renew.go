package worker

import (
	"time"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	"bulkhead/api/internalpb"
	"bulkhead/machine"
)

// renew puts another grant in the place of the one that the Machine has, in the journal
// too. Nothing else changes, and nobody is told: a grant counts when a sandbox is
// started. Died before: the controller sends it again, to the next worker.
func (a *actor) renew() error {
	a.mu.Lock()
	young := a.young
	a.mu.Unlock()
	if young == nil || young.GetGeneration() > a.asg.GetGeneration() {
		return nil // nothing to do, or not before its generation is accepted
	}
	if young.GetGeneration() == a.asg.GetGeneration() && a.rec.State != machine.Destroyed {
		asg := proto.Clone(a.asg).(*internalpb.Assignment)
		asg.Grant, asg.GrantSignature = young.GetGrant(), young.GetGrantSignature()
		r := a.rec.clone()
		if r.State == machine.Failed && r.Retry {
			r.NextStart = time.Time{} // it may have failed for want of a grant: it is tried again at once
		}
		if err := a.w.journal.renew(r, asg); err != nil {
			return err
		}
		a.rec, a.asg = r, asg
		a.w.renewed(r, asg)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.young == young {
		a.young = nil
	}
	return nil
}

// renew is put for another grant of an assignment. A node's Machines get theirs at the
// same time: bbolt puts what comes within milliseconds into one transaction.
func (j *journal) renew(r *record, a *internalpb.Assignment) error {
	return j.writeBy(j.db.Batch, "renew", func(tx *bbolt.Tx) error { return putBoth(tx, r, a) })
}

// renewed takes over what a Machine's new grant changed, which nobody has to hear of.
func (w *Worker) renewed(r *record, a *internalpb.Assignment) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.setSeen(r, a)
}
