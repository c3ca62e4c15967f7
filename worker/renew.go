package worker

import (
	"bytes"
	"time"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	"bulkhead/api/internalpb"
	"bulkhead/machine"
)

// renew replaces the Machine's grant and lease, in the journal too. Nothing else changes:
// a grant counts when a sandbox is started, a lease when traffic would start or stop the
// Machine. The controller hears of a new lease, since its taker waits for that. After a
// crash before the write the controller sends both again, to the next worker.
func (a *actor) renew() error {
	a.mu.Lock()
	young := a.young
	a.mu.Unlock()
	if young == nil || young.GetGeneration() > a.asg.GetGeneration() {
		return nil // nothing to do, or not before its generation is accepted
	}
	if young.GetGeneration() == a.asg.GetGeneration() && a.rec.State != machine.Destroyed {
		asg := proto.Clone(a.asg).(*internalpb.Assignment)
		regranted := !bytes.Equal(asg.GetGrant(), young.GetGrant())
		leased := asg.GetLeaseRevision() != young.GetLeaseRevision()
		asg.Grant, asg.GrantSignature = young.GetGrant(), young.GetGrantSignature()
		asg.LeaseUntilMs, asg.LeaseTtlMs, asg.LeaseRevision = young.GetLeaseUntilMs(), young.GetLeaseTtlMs(), young.GetLeaseRevision()
		r := a.rec.clone()
		if regranted && r.State == machine.Failed && r.Retry {
			r.NextStart = time.Time{} // a missing grant may be why it failed: try again at once
		}
		if err := a.w.journal.renew(r, asg); err != nil {
			return err
		}
		a.rec, a.asg = r, asg
		if leased {
			a.w.publish(r, asg)
		} else {
			a.w.renewed(r, asg)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.young == young {
		a.young = nil
	}
	return nil
}

// renew is put for another grant or lease of an assignment. A node's Machines get theirs at the
// same time: bbolt puts what comes within milliseconds into one transaction.
func (j *journal) renew(r *record, a *internalpb.Assignment) error {
	return j.writeBy(j.db.Batch, "renew", func(tx *bbolt.Tx) error { return putBoth(tx, r, a) })
}

// renewed takes over a Machine's new grant, which the controller need not hear of.
func (w *Worker) renewed(r *record, a *internalpb.Assignment) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.setSeen(r, a)
}
