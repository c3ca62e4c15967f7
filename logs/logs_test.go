package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"bulkhead/key"
)

const id = key.MachineID("0123456789abcd")

func open(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func line(s string) Line { return Line{Time: time.Now(), Stream: Stdout, Text: []byte(s)} }

func texts(lines []Line) []string {
	var out []string
	for _, l := range lines {
		out = append(out, string(l.Text))
	}
	return out
}

func TestAppendReadReopen(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	at := time.Unix(1700000000, 123456789)
	if err := s.Append(id, Line{at, Stderr, []byte("one")}, line("two")); err != nil {
		t.Fatal(err)
	}
	s.Release(id)
	if err := s.Append(id, line("")); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = open(t, dir, Options{})
	got, err := s.Read(id, 0)
	if err != nil || fmt.Sprint(texts(got)) != "[one two ]" {
		t.Fatalf("%q, %v", texts(got), err)
	}
	if !got[0].Time.Equal(at) || got[0].Stream != Stderr {
		t.Fatalf("first line came back as %+v", got[0])
	}
	if got, _ := s.Read(id, 1); len(got) != 1 {
		t.Fatalf("tail 1 gave %d lines", len(got))
	}
	if got, err := s.Read("ffffffffffffff", 0); err != nil || got != nil {
		t.Fatalf("a machine without logs: %v, %v", got, err)
	}
}

func TestLongLinesAreSplit(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	long := strings.Repeat("x", 2*MaxLine+10)
	if err := s.Append(id, line(long), line("next")); err != nil {
		t.Fatal(err)
	}
	got, _ := s.Read(id, 0)
	if len(got) != 4 || len(got[0].Text) != MaxLine || len(got[2].Text) != 10 || string(got[3].Text) != "next" {
		t.Fatalf("%d lines", len(got))
	}
}

// TestCapHolds prints far more than the ring keeps.
func TestCapHolds(t *testing.T) {
	dir := t.TempDir()
	limit := int64(1 << 20)
	s := open(t, dir, Options{Cap: limit, Rate: 1 << 40, Burst: 1 << 40})
	n := 0
	for range 500 {
		var batch []Line
		for range 20 {
			batch = append(batch, line(fmt.Sprintf("line %d %s", n, strings.Repeat("y", n%900))))
			n++
		}
		if err := s.Append(id, batch...); err != nil {
			t.Fatal(err)
		}
	}
	var total int64
	filepath.Walk(dir, func(_ string, i os.FileInfo, _ error) error {
		if !i.IsDir() {
			total += i.Size()
		}
		return nil
	})
	if total > limit || total < limit/2 {
		t.Fatalf("%d bytes on disk with a cap of %d", total, limit)
	}
	got, _ := s.Read(id, 0)
	for i := range got {
		if want := fmt.Sprintf("line %d ", n-len(got)+i); !strings.HasPrefix(string(got[i].Text), want) {
			t.Fatalf("line %d of %d is %.20q, want %q", i, len(got), got[i].Text, want)
		}
	}
}

// TestTornTail cuts the current segment at every byte: the whole lines before the
// cut stay, and appending goes on.
func TestTornTail(t *testing.T) {
	src := t.TempDir()
	s := open(t, src, Options{})
	s.Append(id, line("alpha"), line("beta"), line("gamma"))
	s.Close()
	whole, err := os.ReadFile(filepath.Join(src, string(id), current))
	if err != nil {
		t.Fatal(err)
	}
	frame := headerSize + 5
	for cut := 0; cut <= len(whole); cut++ {
		for _, garbage := range [][]byte{nil, make([]byte, 40), bytes.Repeat([]byte{0xff}, 40)} {
			dir := t.TempDir()
			os.MkdirAll(filepath.Join(dir, string(id)), 0o700)
			os.WriteFile(filepath.Join(dir, string(id), current), append(append([]byte(nil), whole[:cut]...), garbage...), 0o600)
			s, err := Open(dir, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Append(id, line("after")); err != nil {
				t.Fatal(err)
			}
			want := []string{"alpha", "beta", "gamma"}[:wholeFrames(cut, frame, len(whole))]
			got, err := s.Read(id, 0)
			if err != nil || fmt.Sprint(texts(got)) != fmt.Sprint(append(append([]string(nil), want...), "after")) {
				t.Fatalf("cut at %d of %d: %q, %v", cut, len(whole), texts(got), err)
			}
			s.Close()
		}
	}
}

// wholeFrames counts the lines alpha, beta, gamma before a cut.
func wholeFrames(cut, frame, whole int) int {
	switch {
	case cut == whole:
		return 3
	case cut >= 2*frame-1:
		return 2
	case cut >= frame:
		return 1
	}
	return 0
}

// TestFlippedBitIsSeen is the control of the checksum.
func TestFlippedBitIsSeen(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	s.Append(id, line("alpha"), line("beta"))
	s.Close()
	p := filepath.Join(dir, string(id), current)
	b, _ := os.ReadFile(p)
	b[len(b)-1] ^= 1
	os.WriteFile(p, b, 0o600)
	s = open(t, dir, Options{})
	if got, _ := s.Read(id, 0); fmt.Sprint(texts(got)) != "[alpha]" {
		t.Fatalf("%q", texts(got))
	}
}

func TestFollowSeesEveryLineOnce(t *testing.T) {
	s := open(t, t.TempDir(), Options{Rate: 1 << 40, Burst: 1 << 40})
	s.Append(id, line("n 0"))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	const n = 2000
	var wg sync.WaitGroup
	for f := range 3 {
		wg.Go(func() {
			next := 0
			err := s.Follow(ctx, id, 0, func(l Line) error {
				if string(l.Text) != fmt.Sprintf("n %d", next) {
					return fmt.Errorf("follower %d got %q, want line %d", f, l.Text, next)
				}
				if next++; next == n {
					return errors.New("enough")
				}
				return nil
			})
			if err == nil || err.Error() != "enough" {
				t.Error(err)
			}
		})
	}
	for i := 1; i < n; i++ {
		if err := s.Append(id, line(fmt.Sprintf("n %d", i))); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
}

// TestSlowFollowerIsTold: a follower that the ring overtakes goes on with the oldest
// line that is left, and is told.
func TestSlowFollowerIsTold(t *testing.T) {
	s := open(t, t.TempDir(), Options{Cap: segments * (MaxLine + headerSize), Rate: 1 << 40, Burst: 1 << 40})
	s.Append(id, line("first"))
	stop := errors.New("stop")
	var got []Line
	err := s.Follow(context.Background(), id, 0, func(l Line) error {
		got = append(got, l)
		if len(got) == 1 {
			for range 40 {
				s.Append(id, line(strings.Repeat("z", MaxLine)))
			}
		}
		if len(got) == 3 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || got[1].Stream != Platform || !strings.Contains(string(got[1].Text), "dropped") {
		t.Fatalf("%v, second line %.60q", err, got[1].Text)
	}
}

func TestRateLimit(t *testing.T) {
	s := open(t, t.TempDir(), Options{Rate: 1, Burst: 10 * (headerSize + 1)})
	for range 30 {
		s.Append(id, line("x"))
	}
	if got := s.Dropped(); got < 19 || got > 20 {
		t.Fatalf("%d lines dropped of 30 with room for 10", got)
	}
	r, _ := s.ring(id, false)
	r.mu.Lock()
	r.tokens = 1000
	r.mu.Unlock()
	s.Append(id, line("y"))
	got, _ := s.Read(id, 2)
	if got[0].Stream != Platform || !strings.Contains(string(got[0].Text), "lines were dropped") || string(got[1].Text) != "y" {
		t.Fatalf("%q", texts(got))
	}
}

func TestRemoveAndSweep(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	other := key.MachineID("ffffffffffffff")
	s.Append(id, line("a"))
	s.Append(other, line("b"))
	os.WriteFile(filepath.Join(dir, "stray"), nil, 0o600)
	done := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		done <- s.Follow(context.Background(), id, 0, func(Line) error { close(started); return nil })
	}()
	<-started
	if err := s.Sweep(func(m key.MachineID) bool { return m == other }); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatalf("the follower ended with %v", err)
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 1 || entries[0].Name() != string(other) {
		t.Fatalf("left: %v", entries)
	}
	if err := s.Remove(id); err != nil {
		t.Fatal(err)
	}
}

// TestRingAgainstModel: appends, reopenings and tails against a plain list.
func TestRingAgainstModel(t *testing.T) {
	root := t.TempDir()
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		dir := filepath.Join(root, fmt.Sprint(runs))
		s, err := Open(dir, Options{Cap: 1, Rate: 1 << 40, Burst: 1 << 40})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { s.Close(); os.RemoveAll(dir) }()
		var model []string
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "op") {
			case 0:
				s.Close()
				if s, err = Open(dir, Options{Cap: 1, Rate: 1 << 40, Burst: 1 << 40}); err != nil {
					t.Fatal(err)
				}
			case 1:
				s.Release(id)
			default:
				text := fmt.Sprintf("%d %s", len(model), strings.Repeat("x", rapid.IntRange(0, MaxLine-20).Draw(t, "len")))
				model = append(model, text)
				if err := s.Append(id, line(text)); err != nil {
					t.Fatal(err)
				}
			}
			tail := rapid.IntRange(0, 5).Draw(t, "tail")
			got, err := s.Read(id, tail)
			if err != nil {
				t.Fatal(err)
			}
			if len(model) > 0 && len(got) == 0 || tail > 0 && len(got) > tail || tail > 0 && len(got) < min(tail, len(model), 4) {
				t.Fatalf("tail %d of %d lines gave %d", tail, len(model), len(got))
			}
			for i, l := range got {
				if string(l.Text) != model[len(model)-len(got)+i] {
					t.Fatalf("line %d differs", i)
				}
			}
		}
	})
}

// TestRetire: lines of a Machine that is no more can be read until their time is over, those
// of the newest Machines at most; its followers get everything and end.
func TestRetire(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	ids := []key.MachineID{key.NewMachineID(), key.NewMachineID(), key.NewMachineID()}
	for _, id := range ids {
		if err := s.Append(id, line("last words")); err != nil {
			t.Fatal(err)
		}
	}
	first := make(chan struct{})
	followed := make(chan int, 1)
	go func() {
		n := 0
		s.Follow(t.Context(), ids[0], 0, func(Line) error {
			if n++; n == 1 {
				close(first)
			}
			return nil
		})
		followed <- n
	}()
	<-first
	s.Append(ids[0], line("very last"))
	for i, id := range ids {
		if err := s.Retire(id); err != nil || !s.Retired(id) {
			t.Fatal(err)
		}
		at := time.Now().Add(time.Duration(i) * time.Minute)
		if err := os.Chtimes(filepath.Join(dir, string(id), retiredMark), at, at); err != nil {
			t.Fatal(err)
		}
	}
	if n := <-followed; n != 2 {
		t.Errorf("a follower got %d lines, want 2", n)
	}
	if err := s.Sweep(func(key.MachineID) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Read(ids[0], 0); err != nil || len(got) != 2 {
		t.Errorf("retired lines are %v, %v", got, err)
	}
	if err := s.SweepRetired(time.Now().Add(30*time.Second), 1); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{false, false, true} { // too old, one too many, kept
		if s.Retired(ids[i]) != want {
			t.Errorf("machine %d is kept: %t", i, !want)
		}
	}
	if err := s.Retire(key.NewMachineID()); err != nil {
		t.Errorf("a machine that wrote nothing: %v", err)
	}
}

// TestLongLinesEndBetweenCharacters: a line that is split is not split inside a character.
func TestLongLinesEndBetweenCharacters(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	id := key.NewMachineID()
	for _, char := range []string{"ä", "€", "😀", "\xff"} {
		text := "x" + strings.Repeat(char, MaxLine)
		if err := s.Append(id, line(text)); err != nil {
			t.Fatal(err)
		}
		lines, err := s.Read(id, 0)
		if err != nil {
			t.Fatal(err)
		}
		all := ""
		for _, l := range lines {
			if char != "\xff" && !utf8.Valid(l.Text) {
				t.Errorf("a part of %d bytes is cut inside %q", len(l.Text), char)
			}
			all += string(l.Text)
		}
		if all != text {
			t.Errorf("%d bytes became %d", len(text), len(all))
		}
		if err := s.Remove(id); err != nil {
			t.Fatal(err)
		}
	}
}
