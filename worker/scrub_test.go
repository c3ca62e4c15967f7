package worker

import (
	"testing"
	"time"

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
	for end := time.Now().Add(40 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		_, a := n.images.Lookup(digestA)
		_, b := n.images.Lookup(digestB)
		if !a {
			t.Fatal("a whole image was removed")
		}
		if !b {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the damage is not found")
		}
	}
}
