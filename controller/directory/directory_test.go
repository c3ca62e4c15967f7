package directory

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"bulkhead/controller/record"
	"bulkhead/store"
)

// TestRemovalsAreAwaited: of every kind of record that the directory follows, a removal is
// acknowledged when it is in force, and not before.
func TestRemovalsAreAwaited(t *testing.T) {
	kinds := 0
	for prefix := range newTest().kinds {
		d := newTest()
		k := prefix + "one"
		if prefix == record.PrefixMember || prefix == record.PrefixPasskey {
			k += "/u_1"
		}
		op := store.Delete(k)
		d.take(prefix, store.Event{KV: store.KV{Key: k, Value: []byte("{}"), Revision: 5}})
		if !slices.Contains(d.keys(prefix), k) {
			t.Errorf("%s is not among the keys that are held: a list without it would not remove it", k)
		}
		short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if err := d.AwaitOp(short, op, 6); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the removal of %s is acknowledged before it is in force: %v", k, err)
		}
		cancel()
		d.take(prefix, store.Event{KV: store.KV{Key: k, Revision: 6}, Deleted: true})
		if err := d.AwaitOp(t.Context(), op, 6); err != nil || slices.Contains(d.keys(prefix), k) {
			t.Errorf("%s is removed: %v, held: %v", k, err, d.keys(prefix))
		}
		kinds++
	}
	t.Logf("%d kinds of records", kinds)
}

// keys are the keys of what is held of a kind.
func (d *Directory) keys(prefix string) (out []string) {
	for _, rest := range d.kinds[prefix].all() {
		out = append(out, prefix+rest)
	}
	return out
}

func newTest() *Directory {
	return New(time.Now, func(string, []byte) ([]byte, error) { return nil, errors.New("no key") })
}

// take is one event of the store's.
func (d *Directory) take(prefix string, e store.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.kinds[prefix].take(e)
	d.reached(prefix, e.Revision)
}
