// Package localtest tries every cell of api/local's table: each call, made by each kind of
// caller that the kernel can tell apart.
package localtest

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"bulkhead/api/local"
	"bulkhead/role"
)

// cells says a second time, and by hand, who may make which call. A row or a role that is
// added, and one that may more than before, is red until it is said here too.
const cells = `
                               root controller worker edge
warden ping                    -    -          yes    -
warden start                   -    -          yes    -
warden ack                     -    -          yes    -
warden attach                  -    -          yes    -
warden signal                  -    -          yes    -
warden exec                    -    -          yes    -
warden processes               -    -          yes    -
warden listen                  -    -          yes    -
warden remove                  -    -          yes    -
warden list                    -    -          yes    -
warden metrics                 -    -          yes    -
enroll POST_/                  -    -          yes    yes
admin  POST_/token             yes  -          -      -
admin  GET_/login              yes  -          -      -
admin  POST_/secrets/rotate-key yes -          -      -
admin  GET_/ready              yes  -          -      -
admin  GET_/posture            yes  -          -      -
admin  GET_/ca                 yes  -          -      -
admin  GET_/ca/root-key        yes  -          -      -
admin  POST_/ca/root-key       yes  -          -      -
admin  POST_/ca/request        yes  -          -      -
admin  POST_/ca/install        yes  -          -      -
admin  POST_/ca/finish         yes  -          -      -
`

// call is one call of one socket.
type call struct{ socket, name string }

// expected reads cells: the callers that may make each call. Everybody else may none.
func expected() (columns []string, may map[call][]string) {
	may = map[call][]string{}
	for line := range strings.Lines(strings.TrimSpace(cells)) {
		f := strings.Fields(line)
		if columns == nil {
			columns = f
			continue
		}
		c := call{f[0], strings.ReplaceAll(f[1], "_", " ")}
		may[c] = []string{}
		for i, cell := range f[2:] {
			if cell == "yes" {
				may[c] = append(may[c], columns[i])
			}
		}
	}
	return columns, may
}

// Missing returns what local.Policy has and the cells have not, or the other way round: calls,
// and roles without a column.
func Missing() (out []string) {
	columns, may := expected()
	want := []string{local.Root}
	for _, r := range role.All {
		if r != role.Warden { // which is root
			want = append(want, r)
		}
	}
	slices.Sort(columns)
	if slices.Sort(want); !slices.Equal(columns, want) {
		out = append(out, fmt.Sprintf("the cells are of %v, and the callers are %v", columns, want))
	}
	seen := map[call]int{}
	for _, r := range local.Policy {
		c := call{r.Socket, r.Call}
		if seen[c]++; may[c] == nil {
			out = append(out, fmt.Sprintf("%s %s has no cells", r.Socket, r.Call))
		}
	}
	for c := range may {
		if seen[c] != 1 {
			out = append(out, fmt.Sprintf("%s %s has cells and %d rows", c.socket, c.name, seen[c]))
		}
	}
	return out
}

// Result is what came of trying the cells of a socket.
type Result struct {
	Faults           []string // cells that are not as they should be
	Allowed, Refused int
}

// Walk tries every call of a socket as every peer. try makes one and says whether it was let
// through; an error is a fault.
func Walk(t testing.TB, socket string, peers []Peer, try func(call string, p Peer) (through bool, err error)) (r Result) {
	t.Helper()
	_, may := expected()
	calls := 0
	for _, row := range local.Policy {
		if row.Socket != socket {
			continue
		}
		calls++
		for _, p := range peers {
			through, err := try(row.Call, p)
			if want := slices.Contains(may[call{socket, row.Call}], p.Name); err != nil || through != want {
				r.Faults = append(r.Faults, fmt.Sprintf("%s %s as %s (user %d): let through is %v, want %v: %v", socket, row.Call, p.Name, p.UID, through, want, err))
			}
			if through {
				r.Allowed++
			} else {
				r.Refused++
			}
		}
	}
	if calls == 0 || len(peers) < 8 {
		t.Fatalf("%s: %d calls, %d peers", socket, calls, len(peers))
	}
	t.Logf("%s: %d calls by %d kinds of callers: %d cells allowed, %d refused, %d wrong", socket, calls, len(peers), r.Allowed, r.Refused, len(r.Faults))
	return r
}

// WithRow runs f while one row lets one more caller through: the control of Walk.
func WithRow(t testing.TB, socket, name, caller string, f func()) {
	t.Helper()
	for i := range local.Policy {
		if r := &local.Policy[i]; r.Socket == socket && r.Call == name {
			was := r.May
			r.May = append(slices.Clone(was), caller)
			defer func() { r.May = was }()
			f()
			return
		}
	}
	t.Fatalf("%s %s has no row", socket, name)
}
