package history

import (
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// at gives an operation its times.
func at(call, end int64, o Op) Op {
	o.Key, o.call, o.end = "k", call, end
	if o.Outcome == "" {
		o.Outcome = Done
	}
	if o.Outcome == Unknown {
		o.end = math.MaxInt64
	}
	return o
}

// TestCheck: histories that a register allows pass, and each kind of lie is found.
func TestCheck(t *testing.T) {
	for _, c := range []struct {
		name string
		ok   bool
		ops  []Op
	}{
		{"a write is read", true, []Op{at(1, 2, Op{Kind: Put, New: "a"}), at(3, 4, Op{Kind: Read, Got: "a"})}},
		{"an acknowledged write is lost", false, []Op{at(1, 2, Op{Kind: Put, New: "a"}), at(3, 4, Op{Kind: Read})}},
		{"a write without an answer may have happened", true, []Op{at(1, 2, Op{Kind: Put, New: "a", Outcome: Unknown}), at(3, 4, Op{Kind: Read, Got: "a"})}},
		{"or happens later", true, []Op{at(1, 2, Op{Kind: Put, New: "a", Outcome: Unknown}), at(3, 4, Op{Kind: Read}), at(5, 6, Op{Kind: Read, Got: "a"})}},
		{"but is not undone", false, []Op{at(1, 2, Op{Kind: Put, New: "a", Outcome: Unknown}), at(3, 4, Op{Kind: Read, Got: "a"}), at(5, 6, Op{Kind: Read})}},
		{"a read goes back in time", false, []Op{
			at(1, 2, Op{Kind: Put, New: "a"}), at(3, 9, Op{Kind: Put, New: "b"}),
			at(4, 5, Op{Kind: Read, Got: "b"}), at(6, 7, Op{Kind: Read, Got: "a"})}},
		{"reads beside a write see either", true, []Op{
			at(1, 2, Op{Kind: Put, New: "a"}), at(3, 9, Op{Kind: Put, New: "b"}),
			at(4, 5, Op{Kind: Read, Got: "a"}), at(6, 7, Op{Kind: Read, Got: "b"})}},
		{"two clients add the same", false, []Op{at(1, 9, Op{Kind: Add, New: "a"}), at(2, 8, Op{Kind: Add, New: "b"})}},
		{"one is refused", true, []Op{at(1, 9, Op{Kind: Add, New: "a"}), at(2, 8, Op{Kind: Add, New: "b", Outcome: Refused}), at(10, 11, Op{Kind: Read, Got: "a"})}},
		{"a refusal without a reason", false, []Op{at(1, 2, Op{Kind: Add, New: "a", Outcome: Refused})}},
		{"two swaps of one version", false, []Op{
			at(1, 2, Op{Kind: Put, New: "1|x"}), at(3, 9, Op{Kind: Swap, Old: "1|x", New: "2|y"}), at(4, 8, Op{Kind: Swap, Old: "1|x", New: "3|z"})}},
		{"a version that nobody learned is read", true, []Op{
			at(1, 2, Op{Kind: Put, New: "1|x"}), at(3, 4, Op{Kind: Swap, Old: "1|x", New: "?|y", Outcome: Unknown}),
			at(5, 6, Op{Kind: Read, Got: "2|y"}), at(7, 8, Op{Kind: Swap, Old: "2|y", New: "3|z"}), at(9, 10, Op{Kind: Read, Got: "3|z"})}},
		{"and does not change by itself", false, []Op{
			at(1, 2, Op{Kind: Put, New: "1|x"}), at(3, 4, Op{Kind: Swap, Old: "1|x", New: "?|y", Outcome: Unknown}),
			at(5, 6, Op{Kind: Read, Got: "2|y"}), at(7, 8, Op{Kind: Read, Got: "3|y"})}},
		{"removed twice", false, []Op{at(1, 2, Op{Kind: Add, New: "a"}), at(3, 9, Op{Kind: Remove}), at(4, 8, Op{Kind: Remove})}},
		{"removed what another holds", false, []Op{at(1, 2, Op{Kind: Add, New: "a"}), at(3, 4, Op{Kind: Remove, Old: "b"})}},
	} {
		err := Check(c.ops, 10*time.Second)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil && !strings.Contains(err.Error(), "client 0: ") {
			t.Errorf("%s: the error does not show the operations: %v", c.name, err)
		}
	}
}

// TestRecorder: what is written down carries its times, and an unanswered read is
// left out.
func TestRecorder(t *testing.T) { synctest.Test(t, testRecorder) }

func testRecorder(t *testing.T) {
	r := NewRecorder()
	r.Do(Op{Key: "k", Kind: Put, New: "a"}, func(o *Op) { time.Sleep(time.Millisecond); o.Outcome = Done })
	r.Do(Op{Key: "k", Kind: Read}, func(o *Op) { o.Outcome = Unknown })
	r.Do(Op{Key: "k", Kind: Put, New: "b"}, func(o *Op) { o.Outcome = Unknown })
	r.Do(Op{Key: "k", Kind: Read}, func(o *Op) { o.Got, o.Outcome = "a", Done })
	if n := r.Count(); n[Done] != 2 || n[Unknown] != 1 {
		t.Errorf("counted %v", n)
	}
	if o := r.ops[0]; o.end-o.call < int64(time.Millisecond) {
		t.Errorf("the operation took %d ns", o.end-o.call)
	}
	if err := r.Check(time.Second); err != nil {
		t.Error(err)
	}
}
