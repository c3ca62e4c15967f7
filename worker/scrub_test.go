package worker

import (
	"testing"
	"time"

	"bulkhead/internal/await"
	"bulkhead/key"
	"bulkhead/machine"
)

// TestScrubFindsDamage: without anybody's start, damage is found after the worker's
// own, and an image that is whole is left alone.
func TestScrubFindsDamage(t *testing.T) {
	n := newNode(t)
	for _, d := range []key.Digest{digestA, digestB} {
		if _, err := n.images.Ensure(t.Context(), "", machine.ImageRef{Digest: d}); err != nil {
			t.Fatal(err)
		}
	}
	n.images.broken = map[key.Digest]bool{digestB: true}
	n.opt.ScrubAfter = time.Millisecond
	n.boot()
	await.True(t, "the damage is found", func() bool {
		if _, whole := n.images.Lookup(digestA); !whole {
			t.Fatal("a whole image was removed")
		}
		_, there := n.images.Lookup(digestB)
		return !there
	})
}
