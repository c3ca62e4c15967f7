package machine

import (
	"flag"
	"os"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bulkhead/fault"
)

var update = flag.Bool("update", false, "rewrite docs/machine-states.md from the table")

const picturePath = "../docs/machine-states.md"

// TestPictureIsCurrent keeps docs/machine-states.md equal to the table.
func TestPictureIsCurrent(t *testing.T) {
	if *update {
		if err := os.WriteFile(picturePath, []byte(Picture()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(picturePath)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != Picture() {
		t.Fatalf("%s is not what the table draws; run: go test ./machine -update", picturePath)
	}
}

func TestTableIsWellFormed(t *testing.T) {
	states, inputs := map[State]bool{}, map[Input]bool{}
	for _, s := range States() {
		states[s] = true
	}
	for _, i := range Inputs() {
		inputs[i] = false
	}
	seen := map[[2]string]bool{}
	for _, r := range Rules() {
		if !states[r.From] || !states[r.To] {
			t.Errorf("rule %v names an unknown state", r)
		}
		if _, ok := inputs[r.On]; !ok {
			t.Errorf("rule %v names an unknown input", r)
		}
		inputs[r.On] = true
		k := [2]string{string(r.From), string(r.On)}
		if seen[k] {
			t.Errorf("rule %v is given twice", r)
		}
		seen[k] = true
		if got, err := Next(r.From, r.On); err != nil || got != r.To {
			t.Errorf("Next(%s, %s) = %s, %v; the table says %s", r.From, r.On, got, err, r.To)
		}
	}
	for i, used := range inputs {
		if !used {
			t.Errorf("no rule uses input %q", i)
		}
	}
}

func TestPassingStates(t *testing.T) {
	want := map[State]bool{Creating: true, Starting: true, Stopping: true, Restarting: true, Updating: true, Destroying: true, LaunchFailed: true, Replacing: true}
	for _, s := range States() {
		if Passing(s) != want[s] {
			t.Errorf("Passing(%s) = %v", s, Passing(s))
		}
		if Passing(s) && (Deadline(s) <= 0 || !Can(s, InTimeout)) {
			t.Errorf("%s has deadline %v and timeout rule %v; a passing state needs both", s, Deadline(s), Can(s, InTimeout))
		}
		if !Passing(s) && (Deadline(s) != 0 || Can(s, InTimeout)) {
			t.Errorf("%s lasts, but has a deadline or a timeout rule", s)
		}
		if s != Destroyed && s != Destroying && !Can(s, InDestroy) {
			t.Errorf("%s cannot be destroyed", s)
		}
	}
	for _, s := range []State{Stopping, Restarting, Updating, Destroying} {
		if Deadline(s) < MaxStopTimeout+MaxBackoff {
			t.Errorf("the deadline of %s, %v, ends before the longest stop", s, Deadline(s))
		}
	}
}

// TestReachable: every state is reached from created, but for the two that this
// version does not enter.
func TestReachable(t *testing.T) {
	seen := map[State]bool{Created: true}
	for grown := true; grown; {
		grown = false
		for _, r := range Rules() {
			if seen[r.From] && !seen[r.To] {
				seen[r.To], grown = true, true
			}
		}
	}
	for _, s := range States() {
		if want := s != Suspended && s != Replacing; seen[s] != want {
			t.Errorf("%s reachable: %v, want %v", s, seen[s], want)
		}
	}
}

func TestSequences(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.SampledFrom(States()).Draw(t, "from")
		for _, in := range rapid.SliceOfN(rapid.SampledFrom(Inputs()), 0, 40).Draw(t, "inputs") {
			to, err := Next(s, in)
			if err != nil {
				if to != s || !fault.Is(err, fault.Conflict) {
					t.Fatalf("a refused input moved %s to %s (%v)", s, to, err)
				}
				continue
			}
			if s == Destroyed {
				t.Fatalf("%q led out of destroyed to %s", in, to)
			}
			if to == s {
				t.Fatalf("%q keeps %s where it is: that is no transition", in, s)
			}
			s = to
		}
		// Left alone, it comes to rest by its deadlines.
		for n := 0; Passing(s); n++ {
			if n > 3 {
				t.Fatalf("deadlines alone never bring it to rest; now %s", s)
			}
			to, err := Next(s, InTimeout)
			if err != nil {
				t.Fatalf("no way out of %s", s)
			}
			s = to
		}
		// And from rest it can be destroyed in two steps.
		if s != Destroyed {
			d, err := Next(s, InDestroy)
			if err != nil {
				t.Fatal(err)
			}
			if g, err := Next(d, InGone); err != nil || g != Destroyed {
				t.Fatalf("from %s: %s, %v", s, g, err)
			}
		}
	})
}

func TestDecide(t *testing.T) {
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	end := func(code int, ran time.Duration) End { return End{Code: code, Started: t0.Add(-ran), At: t0} }
	vanished := End{Code: -1, Unknown: true, Started: t0.Add(-time.Hour), At: t0}
	full := History{Streak: DefaultMaxRetries}
	for name, c := range map[string]struct {
		policy *Restart
		end    End
		h      History
		act    Action
		after  time.Duration
	}{
		"default, clean":             {nil, end(0, time.Second), History{}, ActStop, 0},
		"default, crash":             {nil, end(1, time.Second), History{}, ActRestart, FirstBackoff},
		"empty policy is on-failure": {&Restart{}, end(137, time.Second), History{Streak: 2}, ActRestart, 4 * FirstBackoff},
		"no, crash":                  {&Restart{Policy: RestartNo}, end(1, time.Second), History{}, ActStop, 0},
		"no, vanished":               {&Restart{Policy: RestartNo}, vanished, History{}, ActRestart, 0},
		"vanished again and again":   {nil, End{Code: -1, Unknown: true, Started: t0, At: t0}, full, ActGiveUp, 0},
		"always, clean":              {&Restart{Policy: RestartAlways}, end(0, time.Second), History{}, ActRestart, FirstBackoff},
		"always never gives up":      {&Restart{Policy: RestartAlways}, end(1, time.Second), History{Streak: 500}, ActRestart, MaxBackoff},
		"on-failure gives up":        {nil, end(1, time.Second), full, ActGiveUp, 0},
		"healthy run resets":         {nil, end(1, HealthyAfter), full, ActRestart, FirstBackoff},
		"the clock was set back":     {nil, End{Code: -1, Unknown: true, Started: t0.Add(time.Hour), At: t0}, History{Streak: DefaultMaxRetries, Recent: []time.Time{t0.Add(time.Hour)}}, ActRestart, 0},
		"an end a moment early":      {nil, end(1, -time.Second), full, ActGiveUp, 0},
		"own number":                 {&Restart{MaxRetries: 1}, end(1, 0), History{Streak: 1}, ActGiveUp, 0},
		"window counts, healthy or not": {&Restart{MaxRetries: 2}, end(1, 2*time.Minute),
			History{Recent: []time.Time{t0.Add(-4 * time.Minute), t0.Add(-2 * time.Minute)}}, ActGiveUp, 0},
		"outside the window": {&Restart{MaxRetries: 2}, end(1, 2*time.Minute),
			History{Recent: []time.Time{t0.Add(-9 * time.Minute), t0.Add(-2 * time.Minute)}}, ActRestart, FirstBackoff},
	} {
		t.Run(name, func(t *testing.T) {
			d := Decide(c.policy, c.end, c.h)
			if d.Action != c.act || d.After != c.after {
				t.Fatalf("got %s after %v, want %s after %v", d.Action, d.After, c.act, c.after)
			}
		})
	}
}

// TestCrashLoop: whatever the pattern of runs, on-failure gives up a loop of short
// crashes after max_retries, waits never shrink within a streak, and history stays small.
func TestCrashLoop(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(1, 40).Draw(t, "max")
		policy := rapid.SampledFrom([]string{RestartOnFailure, RestartAlways}).Draw(t, "policy")
		now, h, last, restarts := time.Unix(1e9, 0), History{}, time.Duration(0), 0
		for range 100 {
			start := now
			now = now.Add(time.Duration(rapid.IntRange(0, int(HealthyAfter/time.Millisecond)-1).Draw(t, "ran")) * time.Millisecond)
			d := Decide(&Restart{Policy: policy, MaxRetries: most}, End{Code: 1, Started: start, At: now}, h)
			if d.Action == ActGiveUp {
				if policy == RestartAlways {
					t.Fatal("always gave up")
				}
				break
			}
			if restarts++; policy == RestartOnFailure && restarts > most {
				t.Fatalf("restarted %d times with max_retries %d", restarts, most)
			}
			if d.After < last || d.After > MaxBackoff {
				t.Fatalf("waits %v after %v", d.After, last)
			}
			if len(d.History.Recent) > 64 {
				t.Fatalf("history grew to %d", len(d.History.Recent))
			}
			last, h, now = d.After, d.History, now.Add(d.After)
		}
	})
}
