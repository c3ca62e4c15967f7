package auditlog

import "time"

// SetWitnessLag shortens how long required witnesses may be missing, and returns what
// puts it back.
func SetWitnessLag(d time.Duration) func() {
	old := witnessLag.Swap(int64(d))
	return func() { witnessLag.Store(old) }
}
