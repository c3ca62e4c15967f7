package world

import "time"

// Until asks f until it returns "" or the limit is over, and returns what f said last.
// It is for what nothing announces: a file, a process, a route. What the API announces,
// a test waits for there (World.Wait).
func Until(limit time.Duration, f func() string) (why string) {
	over := time.NewTimer(limit)
	defer over.Stop()
	const longest = 20 * time.Millisecond
	for pause := time.Millisecond; ; pause = min(2*pause, longest) {
		if why = f(); why == "" {
			return ""
		}
		select {
		case <-over.C:
			return f()
		case <-time.After(pause):
		}
	}
}
