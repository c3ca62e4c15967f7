package machine

import (
	"testing"

	"bulkhead/fault"
)

// FuzzSignal: whatever a signal is called, it is one that there is, or a refusal of
// bounded length.
func FuzzSignal(f *testing.F) {
	for _, s := range []string{"SIGTERM", "term", "9", "0", "65", "-1", "SIGRTMIN+3", "RTMIN+99", "RTMIN+-1", "sigsigterm", "ſIGTERM", "SIG", "RTMIN+", "٩"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseSignal(s)
		if err == nil && (n < 1 || n > 64) || err != nil && (n != 0 || !fault.Is(err, fault.Invalid) || len(err.Error()) > 500) {
			t.Errorf("%q: %d, %v", s, n, err)
		}
	})
}
