package rpc_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"bulkhead/api/local"
	"bulkhead/api/rpc"
	"bulkhead/role"
)

var update = flag.Bool("update", false, "write docs/internal-calls.md anew")

// TestInternalCallsAreDocumented holds docs/internal-calls.md against the policy.
func TestInternalCallsAreDocumented(t *testing.T) {
	const path = "../../docs/internal-calls.md"
	want := document(t)
	if *update {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("docs/internal-calls.md is not what api/rpc/policy.go and api/local/policy.go say (%v); write it anew: go test ./api/rpc -run TestInternalCallsAreDocumented -update", err)
	}
}

func document(t *testing.T) []byte {
	var b bytes.Buffer
	b.WriteString(`# Internal calls

Who may call what inside a cluster. Written by ` + "`go test ./api/rpc -run TestInternalCallsAreDocumented -update`" + ` from ` + "`api/rpc/policy.go`" + ` and ` + "`api/local/policy.go`" + `,
by which the code decides, and held against them by the same test. A call without a row is refused to everybody. Every cell, allowed and refused, is said a second time by hand in a
test and tried; a row, a role or a right that is added is red until it is said there too.

## Between roles

gRPC over mutual TLS 1.3; the caller is known by its certificate (` + "`docs/cluster-identity.md`" + `). A cell that is empty is refused, and so is every role that has no column.
` + "`TestPolicyIsEnforced`" + ` makes every call of every cell, and ` + "`TestNoOtherCertificateCalls`" + ` makes each with thirteen certificates that are not good: of another authority or cluster,
expired, not yet valid, for servers only, of an app, with two identities or none, revoked. A method without a row fails ` + "`TestEveryMethodHasAPolicy`" + `. The refused cells are tried once
more on the sockets of a running platform (` + "`TestIdentity`" + `).

| Call | Kind |`)
	heads(&b, everyRole)
	for _, m := range methods() {
		kind := "call"
		if m.stream {
			kind = "stream"
		}
		fmt.Fprintf(&b, "| `%s` | %s |", m.short(), kind)
		row(&b, everyRole, rpc.Policy[m.full])
		fmt.Fprintf(&b, " %s |\n", rpc.Objects[m.full])
	}
	b.WriteString(`
## Over sockets of one machine

The kernel says who calls (SO_PEERCRED: the user id with which somebody connected, whatever namespace or group they are in), and ` + "`api/local`" + ` whether they may: once before anything
that they send is read, and once for the call itself. Root, the controller's, the worker's and the edge's users have a column; everybody else is refused: other users of the host, also
those in the roles' group or in root's, nobody, the users of Machines, and root of any user namespace but the host's. A user id that two roles share is nobody's.

| Socket | Served by | Mode | Who decides | Tried by |
|---|---|---|---|---|
| ` + "`warden.sock` | the warden | 0600, the worker's | `warden/warden.go`, by the worker's user id | `TestCaller`" + ` |
| ` + "`enroll.sock` | the controller | 0660, root and the roles' group | `pki/enroll.go`; a role gets the identity of its own user, whatever it asks for; the warden, which is root, makes no internal calls and gets none | `TestEnrollCells`" + ` |
| ` + "`admin.sock` | the controller | 0600, root's | `controller/admin.go` | `TestAdminCells`" + ` |

Each of these tests opens the file to all, so that the listener alone decides, makes every call as eleven kinds of callers, and has a seeded row that is seen red.
` + "`TestIdentity`" + ` does it over the files and with the users of a running platform. A call or role without cells fails ` + "`TestEveryLocalCallHasCells`" + `.

| Socket | Call |`)
	callers := []string{local.Root, role.Controller, role.Worker, role.Edge, "everybody else"}
	heads(&b, callers)
	for _, r := range local.Policy {
		fmt.Fprintf(&b, "| `%s.sock` | `%s` |", r.Socket, r.Call)
		row(&b, callers, r.May)
		fmt.Fprintf(&b, " %s |\n", r.What)
	}
	return b.Bytes()
}

// heads writes the end of a table's head: a column for each role.
func heads(b *bytes.Buffer, roles []string) {
	for _, r := range roles {
		fmt.Fprintf(b, " %s |", r)
	}
	b.WriteString(" Of what |\n|---|---|" + strings.Repeat("---|", len(roles)) + "---|\n")
}

// row writes the cells of a call.
func row(b *bytes.Buffer, roles, may []string) {
	for _, r := range roles {
		cell := ""
		if slices.Contains(may, r) {
			cell = "yes"
		}
		fmt.Fprintf(b, " %s |", cell)
	}
}
