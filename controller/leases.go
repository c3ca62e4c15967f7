package controller

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"time"

	"bulkhead/controller/access"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/store"
)

// Times of a lease.
const (
	defaultLease = 60 * time.Second
	maxLease     = 24 * time.Hour
	maxLeaseNote = 512 // bytes of a lease's description
)

// Lease is a lease as the API answers it.
type Lease struct {
	Nonce       string `json:"nonce,omitempty"`
	ExpiresAt   int64  `json:"expires_at,omitempty"` // Unix seconds
	Owner       string `json:"owner,omitempty"`
	Description string `json:"description,omitempty"`
	Version     string `json:"version,omitempty"`
}

// leaseBody is both forms that clients read: the envelope, and the fields bare.
type leaseBody struct {
	Status string `json:"status"`
	Data   Lease  `json:"data"`
	Lease
}

func bodyOf(l *record.Lease) leaseBody {
	b := Lease{Nonce: l.Nonce, ExpiresAt: l.ExpiresAt.Unix(), Owner: l.Owner, Description: l.Description, Version: l.Version}
	return leaseBody{Status: "success", Data: b, Lease: b}
}

func newLease(who access.Caller, m *record.Machine, description string, ttl time.Duration) *record.Lease {
	var b [8]byte
	rand.Read(b[:])
	return &record.Lease{
		Nonce: hex.EncodeToString(b[:]), Owner: who.Name, Description: description,
		ExpiresAt: time.Now().Add(ttl).UTC(), TTL: ttl, Version: string(m.Instance),
	}
}

// liveLease returns the Machine's lease unless it has expired, and the revision of
// its record, which may be there although it has.
func (c *Controller) liveLease(ctx context.Context, a key.AppName, id key.MachineID) (*record.Lease, int64, error) {
	l, rev, err := record.Get[record.Lease](ctx, c.store, record.LeaseKey(a, id))
	if err != nil || l == nil || !l.Live(time.Now()) {
		return nil, rev, err
	}
	return l, rev, nil
}

// holds reports whether nonce is the lease's.
func holds(l *record.Lease, nonce string) bool {
	return subtle.ConstantTimeCompare([]byte(l.Nonce), []byte(nonce)) == 1
}

// checkLease refuses a change of a Machine that somebody else holds. The revision
// that it returns belongs into the change's transaction: the lease that was looked
// at is then the one that counts.
func (c *Controller) checkLease(ctx context.Context, m *record.Machine, nonce string) (*record.Lease, int64, error) {
	l, rev, err := c.liveLease(ctx, m.App, m.ID)
	if err != nil || l == nil {
		return nil, rev, err
	}
	if !holds(l, nonce) {
		return nil, rev, fault.New(fault.Conflict, "failed to get lease on machine %s: lease currently held by %s, expires at %s", m.ID, l.Owner, l.ExpiresAt.Format(time.RFC3339)).WithStatus(reasonLeased)
	}
	return l, rev, nil
}

// leaseToWorker returns the write that makes the controller send a Machine's lease to its
// worker: traffic must not start or stop a leased Machine. It is empty for a Machine that
// traffic neither starts nor stops. The Machine's record and its generation stay as they
// are: a lease is no new assignment, and whatever the worker does for the Machine goes on.
func leaseToWorker(m *record.Machine) []store.Op {
	if m.Gone != nil || !underTraffic(m) {
		return nil
	}
	return []store.Op{record.Put(record.NodeKey(m.Node, m.ID), m.Assigned())}
}

// underTraffic reports whether requests or idleness start or stop the Machine.
func underTraffic(m *record.Machine) bool {
	may := m.Config.Traffic()
	return may.Autostart || may.Autostop
}

func (c *Controller) showLease(r *call) (int, any, error) {
	m, _, err := c.getMachine(r.Context(), r.app(), r.machine())
	if err != nil {
		return 0, nil, err
	}
	l, _, err := c.liveLease(r.Context(), m.App, m.ID)
	if err != nil {
		return 0, nil, err
	}
	if l == nil {
		return 0, nil, fault.New(fault.NotFound, "lease not found")
	}
	if !holds(l, r.nonce()) { // the nonce is the right to change the Machine: only its taker gets it
		l.Nonce = ""
	}
	return http.StatusOK, bodyOf(l), nil
}

// takeLease takes a lease, or with a live one's nonce makes it longer.
func (c *Controller) takeLease(r *call) (int, any, error) {
	var in struct {
		Description string `json:"description"`
		TTL         int    `json:"ttl"` // seconds
	}
	if err := r.read(&in, false); err != nil {
		return 0, nil, err
	}
	if len(in.Description) > maxLeaseNote {
		return 0, nil, fault.New(fault.Invalid, "description is longer than %d bytes", maxLeaseNote)
	}
	seconds, err := r.number("ttl", in.TTL, 1, 1<<30)
	if err != nil {
		return 0, nil, err
	}
	ttl, err := leaseTTL(seconds, seconds != 0)
	if err != nil {
		return 0, nil, err
	}
	var out *record.Lease
	var m *record.Machine
	var sent bool // to the worker, whose word must be waited for
	var rev int64 // of the lease
	err = retry(r.Context(), func() error {
		var mrev int64
		var err error
		m, mrev, err = c.getMachine(r.Context(), r.app(), r.machine())
		if err != nil {
			return err
		}
		if m.Gone != nil {
			return fault.New(fault.Precondition, "failed_precondition: machine %s is destroyed", m.ID)
		}
		held, lrev, err := c.checkLease(r.Context(), m, r.nonce())
		if err != nil {
			return err
		}
		out = newLease(r.who, m, in.Description, ttl)
		if held != nil {
			out.Nonce, out.Owner = held.Nonce, held.Owner
			if in.Description == "" {
				out.Description = held.Description
			}
		}
		lk := record.LeaseKey(m.App, m.ID)
		conds := []store.Cond{record.At(lk, lrev), record.At(record.MachineKey(m.App, m.ID), mrev)}
		ops := leaseToWorker(m)
		// A longer lease waits for nobody: until the worker hears of it, the shorter one holds.
		sent = len(ops) > 0 && held == nil
		rev, err = c.store.Txn(r.Context(), conds, append(ops, record.Put(lk, out)))
		return err
	})
	if err != nil {
		return 0, nil, err
	}
	if sent { // traffic does nothing to it from here on
		c.awaitReport(r.Context(), m, func(s *seen) bool { return s.Lease >= rev })
	}
	return http.StatusCreated, bodyOf(out), nil
}

func (c *Controller) releaseLease(r *call) (int, any, error) {
	err := retry(r.Context(), func() error {
		m, mrev, err := c.getMachine(r.Context(), r.app(), r.machine())
		if err != nil {
			return err
		}
		held, rev, err := c.checkLease(r.Context(), m, r.nonce())
		if err != nil {
			return err
		}
		if held == nil {
			return fault.New(fault.NotFound, "lease not found")
		}
		lk := record.LeaseKey(m.App, m.ID)
		conds := []store.Cond{record.At(lk, rev), record.At(record.MachineKey(m.App, m.ID), mrev)}
		_, err = c.store.Txn(r.Context(), conds, append(leaseToWorker(m), store.Delete(lk)))
		return err
	})
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, struct {
		Status string `json:"status"`
		Data   okBody `json:"data"`
	}{"success", okBody{OK: true}}, nil
}
