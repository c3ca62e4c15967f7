package warden

import (
	"testing"

	"bulkhead/sandbox"
	"bulkhead/sandbox/sandboxtest"
)

// TestConformance runs the suite of package sandboxtest on real sandboxes.
func TestConformance(t *testing.T) {
	sandboxtest.Run(t, func(t *testing.T) (sandbox.Runtime, func(...string) sandbox.Spec, sandboxtest.Grant) {
		w := newWorld(t).start()
		return w.client, w.spec, w.regrant
	})
}
