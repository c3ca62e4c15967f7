package secret

import (
	"runtime"
	"sync"
	"time"
)

// forgetAfter is how long Forget waits, for what is on its way to be dropped, and for more
// that can be forgotten at the same time.
const forgetAfter = 2 * time.Second

var forgetting struct {
	sync.Mutex
	due bool
}

// Forget has all memory that this process does not refer to any more collected soon, within
// seconds and not when there is need of memory. In the programs that bulkheadd starts for
// the controller and the worker, what is collected is overwritten (GODEBUG clobberfree):
// strings, and the buffers of JSON, HTTP and gRPC, which no code of ours could clear. It is
// called when values of secrets have been let go.
func Forget() {
	forgetting.Lock()
	defer forgetting.Unlock()
	if forgetting.due {
		return
	}
	forgetting.due = true
	time.AfterFunc(forgetAfter, func() {
		forgetting.Lock()
		forgetting.due = false
		forgetting.Unlock()
		// What lies in a sync.Pool is let go by the first and collected by the second.
		runtime.GC()
		runtime.GC()
	})
}
