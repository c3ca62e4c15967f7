// Package await is how tests wait for what nothing announces: another process, a file
// that somebody writes, goroutines that end. A test that can have an event waits for it.
package await

import "time"

// limit is enough for a machine that has much else to do.
const limit = 40 * time.Second

// most is the longest pause between two looks.
const most = 20 * time.Millisecond

// test is a testing.TB, or a script's test.
type test interface {
	Fatalf(format string, args ...any)
}

// True calls ok until it returns true. After 40 seconds it fails the test and names what.
func True(t test, what string, ok func() bool) {
	if h, is := t.(interface{ Helper() }); is {
		h.Helper()
	}
	Within(t, limit, what, ok)
}

// Within is True with a limit of its own, for what takes many processes.
func Within(t test, limit time.Duration, what string, ok func() bool) {
	if h, is := t.(interface{ Helper() }); is {
		h.Helper()
	}
	deadline := time.Now().Add(limit)
	for next := time.Millisecond; !ok(); next = min(2*next, most) {
		if time.Now().After(deadline) {
			t.Fatalf("not so after %v: %s", limit, what)
		}
		<-time.After(next)
	}
}
