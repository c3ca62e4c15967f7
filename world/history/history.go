// Package history writes down what clients of a platform did and saw, and decides
// whether one register per key could have answered so: linearizability (Herlihy and
// Wing, 1990), checked by Porcupine.
package history

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// Kind is what an operation does to its register. The empty value means that there
// is nothing.
type Kind string

// The kinds of operations.
const (
	Read   Kind = "read"   // Got is what is there
	Put    Kind = "put"    // sets New, whatever was there
	Add    Kind = "add"    // sets New if nothing is there
	Swap   Kind = "swap"   // sets New if Old is there
	Remove Kind = "remove" // takes Old away if it is there; any value when Old is empty
)

// Outcome is how an operation ended for its client.
type Outcome string

// The outcomes.
const (
	Done    Outcome = "done"    // acknowledged
	Refused Outcome = "refused" // answered that its condition does not hold: nothing was changed
	Unknown Outcome = "unknown" // no answer: it may have happened, may never, may still
)

// Op is one operation of one client.
type Op struct {
	Client   int
	Key      string
	Kind     Kind
	Old, New string
	// Got is what a Read saw. Versions that a server makes up are part of a value: the
	// part before "|". A writer that does not know it writes "?".
	Got     string
	Outcome Outcome

	call, end int64 // nanoseconds since the recorder began
}

// String shows the operation on one line.
func (o Op) String() string {
	s := fmt.Sprintf("client %d: %s %s", o.Client, o.Kind, o.Key)
	if o.Old != "" {
		s += " if " + o.Old
	}
	if o.New != "" {
		s += " to " + o.New
	}
	if o.Kind == Read {
		s += fmt.Sprintf(" saw %q", o.Got)
	}
	return fmt.Sprintf("%s (%s) at %v..%v", s, o.Outcome, time.Duration(o.call).Round(time.Millisecond), time.Duration(o.end).Round(time.Millisecond))
}

// Recorder collects a history. It is safe for concurrent use.
type Recorder struct {
	began time.Time
	mu    sync.Mutex
	ops   []Op
}

// NewRecorder returns an empty history whose clock starts now.
func NewRecorder() *Recorder { return &Recorder{began: time.Now()} }

// Do runs f, which makes the call of op and fills in how it ended, and writes it down.
// Reads without an answer say nothing and are left out.
func (r *Recorder) Do(op Op, f func(op *Op)) Op {
	op.call = int64(time.Since(r.began))
	f(&op)
	op.end = int64(time.Since(r.began))
	if op.Outcome != Done && op.Outcome != Refused {
		if op.Kind == Read {
			return op
		}
		op.Outcome, op.end = Unknown, math.MaxInt64
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, op)
	return op
}

// Count says how many operations there are by outcome.
func (r *Recorder) Count() map[Outcome]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := map[Outcome]int{}
	for _, o := range r.ops {
		n[o.Outcome]++
	}
	return n
}

// Check returns nil when the history of every key is linearizable, and otherwise an
// error with the operations of the first key that is not. limit bounds each key.
func (r *Recorder) Check(limit time.Duration) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Check(r.ops, limit)
}

// Check is Recorder.Check for a history that is already there.
func Check(ops []Op, limit time.Duration) error {
	byKey := map[string][]porcupine.Operation{}
	for _, o := range ops {
		byKey[o.Key] = append(byKey[o.Key], porcupine.Operation{ClientId: o.Client, Input: o, Output: o, Call: o.call, Return: o.end})
	}
	keys := make([]string, 0, len(byKey))
	for k := range byKey {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		switch porcupine.CheckOperationsTimeout(register, byKey[k], limit) {
		case porcupine.Illegal:
			return fmt.Errorf("the history of %s is not linearizable:\n%s", k, describe(ops, k))
		case porcupine.Unknown:
			return fmt.Errorf("the history of %s (%d operations) could not be decided within %v", k, len(byKey[k]), limit)
		}
	}
	return nil
}

// describe lists a key's operations in the order of their calls.
func describe(ops []Op, k string) string {
	var mine []Op
	for _, o := range ops {
		if o.Key == k {
			mine = append(mine, o)
		}
	}
	slices.SortFunc(mine, func(a, b Op) int { return cmp.Compare(a.call, b.call) })
	var b strings.Builder
	for _, o := range mine {
		fmt.Fprintf(&b, "  %v\n", o)
	}
	return b.String()
}

// register is the model of one key: its state is the value that is there, a string.
var register = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, _ any) (bool, any) {
		now, o := state.(string), input.(Op)
		if o.Kind == Read {
			if same(now, o.Got) {
				return true, o.Got // a version that was not known is known now
			}
			return false, state
		}
		may, next := apply(now, o)
		switch o.Outcome {
		case Done:
			return may, next
		case Refused:
			return !may, state
		}
		if may {
			return true, next
		}
		return true, state
	},
}

// apply says whether a writing operation's condition holds, and what is there after.
func apply(now string, o Op) (bool, string) {
	switch o.Kind {
	case Put:
		return true, o.New
	case Add:
		return now == "", o.New
	case Swap:
		return now != "" && same(now, o.Old), o.New
	case Remove:
		return now != "" && (o.Old == "" || same(now, o.Old)), ""
	}
	panic("history: an operation of kind " + string(o.Kind))
}

// same compares two values, of which one may have a version that its writer did not
// learn.
func same(a, b string) bool {
	if a == b {
		return true
	}
	va, ra, oka := strings.Cut(a, "|")
	vb, rb, okb := strings.Cut(b, "|")
	return oka && okb && ra == rb && (va == "?" || vb == "?")
}
