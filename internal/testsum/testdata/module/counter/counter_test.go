// Package counter raises a counter after the event that it counts.
package counter

import (
	"sync"
	"testing"
)

func TestCountsLate(t *testing.T) {
	var served sync.WaitGroup
	go served.Done()
	select {}
}
