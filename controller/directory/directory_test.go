package directory

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"bulkhead/controller/record"
	"bulkhead/key"
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

// TestUsersAreCountedByProvider: as users come, are written again, and go; those of nobody's
// provider count for none.
func TestUsersAreCountedByProvider(t *testing.T) {
	d := newTest()
	rev := int64(0)
	user := func(id, org string, gone bool) {
		rev++
		e := store.Event{KV: store.KV{Key: record.PrefixUser + id, Revision: rev}, Deleted: gone}
		if !gone {
			e.Value = record.Put(e.Key, record.User{ID: key.UserID(id), Name: id, Org: org}).Value
		}
		d.take(record.PrefixUser, e)
	}
	want := func(acme, other int) {
		t.Helper()
		if a, o, none := d.CameBy("acme"), d.CameBy("other"), d.CameBy("none"); a != acme || o != other || none != 0 {
			t.Errorf("acme has %d, other %d, none %d; want %d, %d and 0", a, o, none, acme, other)
		}
	}
	want(0, 0)
	user("u_1", "acme", false)
	user("u_2", "acme", false)
	user("u_3", "other", false)
	user("u_4", "", false)
	want(2, 1)
	user("u_1", "acme", false)
	want(2, 1)
	user("u_1", "", true)
	user("u_1", "", true)
	user("u_3", "", true)
	want(1, 0)
	if len(d.came) != 2 { // acme, and nobody's
		t.Errorf("counted are %v", d.came)
	}
}

// TestInvitationsAreCounted: as they come, are written again, and go; the installation's own
// token, which nobody gave, is none.
func TestInvitationsAreCounted(t *testing.T) {
	d := newTest()
	rev := int64(0)
	claim := func(id, org, by string, gone bool) {
		rev++
		e := store.Event{KV: store.KV{Key: record.ClaimKey(id), Revision: rev}, Deleted: gone}
		if !gone {
			e.Value = record.Put(e.Key, record.Claim{ID: id, Org: org, ByUser: key.UserID(by)}).Value
		}
		d.take(record.PrefixClaim, e)
	}
	want := func(acme, other int) {
		t.Helper()
		if a, o := d.InvitationsOf("acme"), d.InvitationsOf("other"); a != acme || o != other {
			t.Errorf("acme has %d, other %d; want %d and %d", a, o, acme, other)
		}
	}
	claim("c_1", "acme", "u_1", false)
	claim("c_2", "acme", "u_1", false)
	claim("c_3", "other", "u_1", false)
	claim("c_4", "acme", "", false)
	want(2, 1)
	claim("c_1", "acme", "u_1", false)
	claim("c_4", "", "", true)
	want(2, 1)
	claim("c_1", "", "", true)
	claim("c_1", "", "", true)
	claim("c_3", "", "", true)
	want(1, 0)
	if len(d.invited) != 1 {
		t.Errorf("counted are %v", d.invited)
	}
}
