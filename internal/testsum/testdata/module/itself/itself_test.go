// Package itself has a test that panics itself, not in a goroutine.
package itself

import "testing"

func TestPanicsItself(t *testing.T) { panic("a panic of the test's own") }

func TestNeverRuns(t *testing.T) {}
