package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead/api/internalpb"
	"bulkhead/key"
	"bulkhead/machine"
)

// rebuildStory loses the journal of a node with a server and a job, and lets the
// worker die while it makes it anew. cut says that the sandboxes are lost with it;
// lose is how the journal is.
func rebuildStory(cut bool, lose func(dir string) error) func(*driver, int) error {
	return func(d *driver, at int) error {
		if err := d.boot(0); err != nil {
			return err
		}
		job := d.n.asg(key.NewMachineID(), `{"image":"a","restart":{"policy":"no"}}`)
		jobID := key.MachineID(job.MachineId)
		if err := d.n.w.Assign(job); err != nil {
			return err
		}
		d.want(d.n.asg(d.id, `{"image":"a","restart":{"policy":"always"}}`))
		up := func(r *record) bool {
			s, err := d.n.w.get(jobID)
			return d.steady(machine.Started)(r) && err == nil && s.rec.State == machine.Started
		}
		if err := d.until("launch", up); err != nil {
			return err
		}
		if err := d.n.w.Close(); err != nil {
			return err
		}
		if err := lose(d.n.dir); err != nil {
			return err
		}
		if cut {
			d.n.host.PowerCut()
		}
		d.snap = &internalpb.Snapshot{Assignments: []*internalpb.Assignment{d.asg, job}}
		if err := d.boot(at); err != nil {
			return err
		}
		var jobNow *record
		if err := d.until("all as wanted", func(r *record) bool {
			s, err := d.n.w.get(jobID)
			if err != nil || machine.Passing(s.rec.State) {
				return false
			}
			jobNow = s.rec
			return d.steady(machine.Started)(r) && (s.rec.State == machine.Stopped || s.rec.Sandbox != "")
		}); err != nil {
			return err
		}
		// And it goes on: a user asks for a restart.
		d.want(d.n.next(d.asg, func(a *internalpb.Assignment) { a.RestartNonce++ }))
		if err := d.until("restart", d.steady(machine.Started)); err != nil {
			return err
		}
		want := 2
		if cut {
			want = 3
		}
		server, ran := d.n.host.Starts(d.id), d.n.host.Starts(jobID)
		if d.power && d.died { // what ran before the cut runs after it, and a start may have been under way
			if server > want+1 || ran > 2 {
				return fmt.Errorf("the server was started %d times and the job %d times", server, ran)
			}
		} else if server != want || ran != 1 {
			return fmt.Errorf("the server was started %d times, want %d, and the job %d times", server, want, ran)
		}
		if (jobNow.State == machine.Started) != (ran == 2 || !cut && !d.power) && !d.power {
			return fmt.Errorf("the job is %s", jobNow.State)
		}
		if list, _ := d.n.host.List(context.Background()); len(list) > 2 || !cut && !d.power && len(list) != 2 {
			return fmt.Errorf("sandboxes: %v", list)
		}
		if f := d.n.host.Faults(); len(f) > 0 {
			return fmt.Errorf("the worker did what it must not: %v", f)
		}
		return nil
	}
}

func garble(dir string) error {
	return os.WriteFile(filepath.Join(dir, "journal.db"), bytes.Repeat([]byte("x"), 1<<15), 0o600)
}

// TestRebuildIsKilledAtEveryStep: a worker that dies while the journal is made anew,
// or a node that loses its power then, begins again, and the end is the same.
func TestRebuildIsKilledAtEveryStep(t *testing.T) {
	for _, c := range []struct{ cut, power bool }{{false, false}, {false, true}, {true, false}, {true, true}} {
		t.Run(fmt.Sprintf("sandboxes lost %v, power cut %v", c.cut, c.power), func(t *testing.T) {
			deaths, err := everyPoint(t, c.power, nil, rebuildStory(c.cut, garble))
			t.Logf("%d crash points", deaths)
			if err != nil {
				t.Fatal(err)
			}
			if deaths < 3 {
				t.Fatalf("only %d crash points", deaths)
			}
		})
	}
}

// TestAnEmptyJournalIsNoticed is the control: a new journal without its mark, which
// is what moving the damaged one away was, runs jobs twice.
func TestAnEmptyJournalIsNoticed(t *testing.T) {
	_, _, err := onePoint(t, 0, false, nil, rebuildStory(true, func(dir string) error {
		if err := os.Remove(filepath.Join(dir, "journal.db")); err != nil {
			return err
		}
		j, err := openJournal(dir)
		if err != nil {
			return err
		}
		return errors.Join(j.rebuild(nil), j.close())
	}))
	if err == nil || !strings.Contains(err.Error(), "the job 2 times") {
		t.Fatalf("a worker that took every machine for a new one passed: %v", err)
	}
	t.Logf("noticed: %v", err)
}
