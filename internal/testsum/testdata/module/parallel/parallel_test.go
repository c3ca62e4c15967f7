// Package parallel dies of a goroutine's panic while two of its tests run.
package parallel

import "testing"

var bothRun = make(chan struct{})

func TestDoneBefore(t *testing.T) {}

func TestRunsInParallel(t *testing.T) {
	t.Parallel()
	t.Log("what the test that runs in parallel wrote")
	close(bothRun)
	select {}
}

func TestPanics(t *testing.T) {
	t.Parallel()
	t.Run("inside", func(t *testing.T) {
		t.Log("what the test that panics wrote")
		<-bothRun
		go panic("a seeded panic")
		select {}
	})
}
