package route

import "time"

// epoch lies a day before the program's start, so that 0 on its clock is long ago.
var epoch = time.Now().Add(-24 * time.Hour)

// clock gives t in nanoseconds of the monotonic clock: who is left alone for seconds is
// not left alone for an hour because the machine's clock was set back meanwhile.
func clock(t time.Time) int64 { return int64(t.Sub(epoch)) }
