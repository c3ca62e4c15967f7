package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestOverlay: this version of Go is patched, and one with another Now is refused.
func TestOverlay(t *testing.T) {
	if err := overlay(t.TempDir()); err != nil {
		t.Error(err)
	}
	if _, err := patch("func Now() Time {\n\treturn elsewhere()\n}\n"); err == nil || !strings.Contains(err.Error(), "another time.Now") {
		t.Errorf("an unknown version of Go: %v", err)
	}
}

// TestReleaseHasNoClock: no program that is released can have its clock set, and the
// roles that are built for it can.
func TestReleaseHasNoClock(t *testing.T) {
	for dir, want := range map[string]bool{"bin": false, "clock": true} {
		for _, role := range []string{"bulkheadd", "bulkhead-controller", "bulkhead-worker", "bulkhead-warden", "bulkhead-edge"} {
			b, err := os.ReadFile(filepath.Join("..", "..", "build", dir, role))
			if err != nil {
				t.Fatalf("%v: run \"make clock\"", err)
			}
			if got := bytes.Contains(b, []byte("time.clockShift")); got != want {
				t.Errorf("build/%s/%s has a clock that can be set: %v", dir, role, got)
			}
		}
	}
}
