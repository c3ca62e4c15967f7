package world_test

import (
	"encoding/json"
	"fmt"
	"html"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/world"
)

// span is one bar of the picture.
type span struct {
	who, what string
	from, to  time.Duration // since the start of the API call
}

// BenchmarkTrace starts Machines on a platform whose roles log at debug level, and a
// bare sandbox that logs its phases, and draws the fastest start as
// docs/start-trace.svg. "make bench-start" runs it.
func BenchmarkTrace(b *testing.B) {
	s := newStartBench(b, world.StartFrom(b, filepath.Join(world.Root(), "build", "bin"), []string{"BULKHEAD_DEBUG=1"}))
	type start struct {
		id         string
		begin, end time.Time
	}
	var starts []start
	s.trace = func(id string, begin, end time.Time) { starts = append(starts, start{id, begin, end}) }
	for b.Loop() {
		s.platform()
	}
	slices.SortFunc(starts, func(x, y start) int { return int(x.end.Sub(x.begin) - y.end.Sub(y.begin)) })
	best := starts[0] // the one in which the machine's other work shows least
	spans := spansOf(s.w.Log(), best.id, best.begin, best.end)
	if len(spans) < 10 {
		b.Fatalf("only %d steps are in the logs of the roles", len(spans))
	}
	for _, sp := range spans {
		figure("trace_"+strings.ReplaceAll(sp.who+"_"+sp.what, " ", "_")+"_ms", float64((sp.to-sp.from).Microseconds())/1000)
	}
	phases := s.phases()
	path := filepath.Join(world.Root(), "docs", "start-trace.svg")
	if err := os.WriteFile(path, draw(spans, phases, best.end.Sub(best.begin)), 0o644); err != nil {
		b.Fatal(err)
	}
}

// spansOf reads the steps of one start from the roles' logs. Each step ends the
// span that the one before it in the same role began.
func spansOf(log, id string, begin, end time.Time) []span {
	type mark struct {
		at        time.Duration
		who, what string
	}
	var marks []mark
	for line := range strings.Lines(log) {
		var l struct {
			Time                               time.Time
			Msg, Role, Step, Why, Machine, App string
		}
		if json.Unmarshal([]byte(line), &l) != nil || l.Msg != "trace" || l.Time.Before(begin) || l.Time.After(end) {
			continue
		}
		if l.Machine == id || l.App == "web" {
			marks = append(marks, mark{l.Time.Sub(begin), l.Role, strings.TrimSpace(l.Step + " " + l.Why)})
		}
	}
	slices.SortStableFunc(marks, func(x, y mark) int { return int(x.at - y.at) })
	// Who hands over to whom: a span begins with the step before it, whoever did that.
	var out []span
	last := time.Duration(0)
	for _, m := range marks {
		if m.what == "asked" || m.what == "asked for the sandbox" || m.what == "placed" || m.what == "assigned" {
			m.what = "hears"
		}
		out = append(out, span{m.who, m.what, last, m.at})
		last = m.at
	}
	return append(out, span{"client", "first answer", last, end.Sub(begin)})
}

var phaseRE = regexp.MustCompile(`Timeline runsc boot(?:/root container)? reached midpoint (.*) at .*unix nanos: (\d+)`)

// phases starts one bare sandbox with gVisor's own log of its start, and returns the
// phases that took half a millisecond or longer.
func (s *startBench) phases() []span {
	dir := s.b.TempDir()
	if _, err := s.bare.sandbox(filepath.Join(s.w.Bin, "bulkhead-sandbox"), "--debug", "--debug-log="+dir+"/%COMMAND%.log"); err != nil {
		s.b.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "boot.log"))
	if err != nil {
		s.b.Fatal(err)
	}
	var out []span
	var first, last int64
	for _, m := range phaseRE.FindAllStringSubmatch(string(b), -1) {
		var at int64
		fmt.Sscan(m[2], &at)
		if first == 0 {
			first, last = at, at
		}
		if at-last >= int64(500*time.Microsecond) {
			out = append(out, span{"gVisor", m[1], time.Duration(last - first), time.Duration(at - first)})
		}
		last = max(last, at)
	}
	return out
}

// colours of the rows, by who works.
var colours = map[string]string{"controller": "#4c78a8", "worker": "#f58518", "warden": "#54a24b", "edge": "#b279a2", "client": "#9d755d", "gVisor": "#e45756"}

// draw makes the picture: a row for each span, the phases of a bare sandbox below on
// an axis of the same scale.
func draw(spans, phases []span, total time.Duration) []byte {
	const left, width, row = 270, 640, 17
	longest := total
	for _, p := range phases {
		longest = max(longest, p.to)
	}
	x := func(d time.Duration) float64 { return left + float64(d)/float64(longest)*width }
	var b strings.Builder
	y := 34
	height := (len(spans)+len(phases))*row + 110
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n", left+width+80, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	title := func(text string) {
		fmt.Fprintf(&b, `<text x="10" y="%d" font-weight="bold">%s</text>`+"\n", y-12, html.EscapeString(text))
	}
	bar := func(s span) {
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s: %s</text>`+"\n", left-8, y+11, html.EscapeString(s.who), html.EscapeString(s.what))
		fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", x(s.from), y, max(x(s.to)-x(s.from), 1), row-4, colours[s.who])
		fmt.Fprintf(&b, `<text x="%.1f" y="%d">%.1f ms</text>`+"\n", x(s.to)+4, y+11, float64((s.to-s.from).Microseconds())/1000)
		y += row
	}
	title(fmt.Sprintf("A start through the platform: %.0f ms from the API call to the first answer", float64(total.Microseconds())/1000))
	for _, s := range spans {
		bar(s)
	}
	y += 36
	title("Inside a bare sandbox's boot, in a run of its own with gVisor's debug log on: phases of 0.5 ms and more")
	for _, s := range phases {
		bar(s)
	}
	b.WriteString("</svg>\n")
	return []byte(b.String())
}
