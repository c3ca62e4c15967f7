package controller

import (
	"testing"
	"time"

	"bulkhead/controller/record"
)

// TestLeaseAndTheClock: a lease holds for what it was taken for at most, also when the
// clock is set back meanwhile.
func TestLeaseAndTheClock(t *testing.T) {
	taken := time.Now()
	l := record.Lease{ExpiresAt: taken.Add(time.Minute), TTL: time.Minute}
	for after, want := range map[time.Duration]bool{
		0: true, 59 * time.Second: true, 61 * time.Second: false, -5 * time.Second: true, -time.Hour: false,
	} {
		if got := l.Live(taken.Add(after)); got != want {
			t.Errorf("%v after it was taken: live is %v", after, got)
		}
	}
	if old := (record.Lease{ExpiresAt: taken.Add(time.Minute)}); !old.Live(taken) {
		t.Error("a lease of an earlier version does not hold")
	}
}
