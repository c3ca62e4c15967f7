package await_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"bulkhead/internal/await"
)

// failing is a test that is expected to fail.
type failing struct{ said string }

func (f *failing) Fatalf(format string, args ...any) {
	f.said = fmt.Sprintf(format, args...)
	panic(f)
}

// TestTrue waits for a condition that comes true, and gives up on one that does not.
func TestTrue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		await.True(t, "a second has passed", func() bool { return time.Since(began) >= time.Second })
		if took := time.Since(began); took > time.Second+20*time.Millisecond {
			t.Errorf("it took %v to see it", took)
		}
		never := func() bool { return false }
		for limit, wait := range map[time.Duration]func(*failing){
			40 * time.Second: func(f *failing) { await.True(f, "never", never) },
			time.Hour:        func(f *failing) { await.Within(f, time.Hour, "never", never) },
		} {
			began = time.Now()
			f := &failing{}
			func() {
				defer func() { recover() }()
				wait(f)
			}()
			if took := time.Since(began); f.said != fmt.Sprintf("not so after %v: never", limit) || took < limit || took > limit+time.Second {
				t.Errorf("after %v it says %q", took, f.said)
			}
		}
	})
}
