package machine

import "time"

// leaseSkew is how far the clock may be set back without ending a lease.
const leaseSkew = 10 * time.Second

// LeaseHolds reports whether a lease that ends at until and was taken for ttl holds
// now. With more than ttl to go it was taken by a clock that has been set back since,
// and counts as over: nobody can say for how long it would hold otherwise. ttl 0 says
// that it is not known.
func LeaseHolds(until time.Time, ttl time.Duration, now time.Time) bool {
	left := until.Sub(now)
	return left > 0 && (ttl == 0 || left <= ttl+leaseSkew)
}
