package secret

import (
	"runtime"
	"sync"
	"time"
)

// forgetAfter is how long Forget waits, for what is on its way to be dropped, and for more
// that can be forgotten at the same time.
const forgetAfter = 2 * time.Second

// forgetLate is how long after the last call Forget collects once more: on a busy machine a
// request may still refer to a value after forgetAfter.
const forgetLate = 15 * time.Second

var forgetting struct {
	sync.Mutex
	due  bool
	late *time.Timer
}

// Forget has all memory that this process does not refer to any more collected soon, within
// seconds and not when there is need of memory. In the programs that bulkheadd starts for
// the controller and the worker, what is collected is overwritten (GODEBUG clobberfree):
// strings, and the buffers of JSON, HTTP and gRPC, which no code of ours could clear. It is
// called when values of secrets have been let go.
func Forget() {
	forgetting.Lock()
	defer forgetting.Unlock()
	if forgetting.late == nil {
		forgetting.late = time.AfterFunc(forgetLate, collect)
	} else {
		forgetting.late.Reset(forgetLate)
	}
	if forgetting.due {
		return
	}
	forgetting.due = true
	time.AfterFunc(forgetAfter, func() {
		forgetting.Lock()
		forgetting.due = false
		forgetting.Unlock()
		collect()
	})
}

// collect collects twice: the first lets go of what a sync.Pool holds, the second frees it.
func collect() {
	runtime.GC()
	runtime.GC()
}
