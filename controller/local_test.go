package controller_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/api/local"
	"bulkhead/api/local/localtest"
	"bulkhead/audit"
	"bulkhead/fault"
	"bulkhead/role"
)

// asPeer makes one call over a unix socket as a peer, and returns the answer.
func asPeer(p localtest.Peer, socket, call string, body []byte) (int, []byte, error) {
	c, err := p.Dial(socket)
	if err != nil {
		return 0, nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	method, path, _ := strings.Cut(call, " ")
	req, err := http.NewRequest(method, "http://x"+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Close = true
	if err := req.Write(c); err != nil {
		return 0, nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

// everybodyMay opens a socket's file to all, so that the listener alone is tried.
func (e *env) everybodyMay(socket string) {
	e.t.Helper()
	for path, mode := range map[string]os.FileMode{e.dir: 0o711, e.socks[socket]: 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			e.t.Fatal(err)
		}
	}
}

// TestAdminCells makes every call of the admin socket as every kind of caller that the kernel
// can tell apart, over a socket that all may open: root's are let through and all others
// refused, without a word of what there is. Control: with a row that lets the edge make an
// operator's token, that cell is found.
func TestAdminCells(t *testing.T) {
	e := newEnvWithoutWorker(t)
	e.everybodyMay(role.SocketAdmin)
	peers := localtest.Peers(t, e.cfg.Role.UIDs, 64100)
	try := func(call string, p localtest.Peer) (bool, error) {
		code, body, err := asPeer(p, e.socks[role.SocketAdmin], call, []byte("{}"))
		if err == nil && code == 403 && !strings.Contains(string(body), "may not") || strings.Contains(string(body), "not found") {
			err = fmt.Errorf("%d %s", code, body)
		}
		return code != 403, err
	}
	if r := localtest.Walk(t, role.SocketAdmin, peers, try); len(r.Faults) != 0 {
		t.Errorf("%s", strings.Join(r.Faults, "\n"))
	}
	for _, p := range peers[:2] {
		code, body, err := asPeer(p, e.socks[role.SocketAdmin], "GET /nothing", nil)
		if want := map[string]int{local.Root: 404}[p.Name]; err != nil || code != max(want, 403) {
			t.Errorf("a call that there is not, as %s: %d %s %v", p.Name, code, body, err)
		}
	}
	e.find("", "the refusal of the edge's user at the admin socket", func(r audit.Record) bool {
		return r.Action == "POST /token" && r.From == "admin socket" && r.Name == fmt.Sprint("user id ", e.cfg.Role.UIDs[role.Edge]) && r.Result == audit.Refused
	})
	var calls []string
	for _, r := range local.Policy {
		if r.Socket == role.SocketAdmin {
			calls = append(calls, r.Call)
		}
	}
	slices.Sort(calls)
	if served := e.ctl.AdminCalls(); !slices.Equal(served, calls) {
		t.Errorf("the socket has the calls %q, and the table %q", served, calls)
	}
	localtest.WithRow(t, role.SocketAdmin, "POST /token", role.Edge, func() {
		r := localtest.Walk(t, role.SocketAdmin, peers, try)
		if len(r.Faults) != 1 || !strings.Contains(r.Faults[0], "admin POST /token as edge") {
			t.Errorf("control: a row that lets the edge make tokens: %q", r.Faults)
		}
	})
}

// TestEnrollCells asks for an identity as every kind of caller: worker and edge get their own
// and no other, whatever they ask for, and everybody else none; root and the controller have
// no use for one. Control: with a row that lets the controller's user enroll, that is found.
func TestEnrollCells(t *testing.T) {
	e := newEnvWithoutWorker(t)
	e.everybodyMay(role.SocketEnroll)
	peers := localtest.Peers(t, e.cfg.Role.UIDs, 64100)
	try := func(call string, p localtest.Peer) (bool, error) {
		body, err := json.Marshal(map[string]any{"csr": request(t), "role": role.Controller, "node": "n9"})
		if err != nil {
			return false, err
		}
		code, answer, err := asPeer(p, e.socks[role.SocketEnroll], call, body)
		if err != nil || code != 200 {
			if err == nil && (code != 403 || !strings.Contains(string(answer), "runs no role of this node")) {
				err = fmt.Errorf("%d %s", code, answer)
			}
			return false, err
		}
		var out struct{ Chain [][]byte }
		if err := json.Unmarshal(answer, &out); err != nil {
			return true, err
		}
		leaf, err := x509.ParseCertificate(out.Chain[0])
		if err == nil && (len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://"+cluster+"/"+p.Name+"/"+string(node)) {
			err = fmt.Errorf("it is %v", leaf.URIs)
		}
		return true, err
	}
	if r := localtest.Walk(t, role.SocketEnroll, peers, try); len(r.Faults) != 0 {
		t.Errorf("%s", strings.Join(r.Faults, "\n"))
	}
	e.find("", "the refusal of the controller's user at the enroll socket", func(r audit.Record) bool {
		return r.From == "enroll socket" && r.Name == fmt.Sprint("user id ", e.cfg.Role.UIDs[role.Controller]) && r.Result == audit.Refused
	})
	e.stop()
	localtest.WithRow(t, role.SocketEnroll, "POST /", role.Controller, func() {
		e.startController()
		e.everybodyMay(role.SocketEnroll)
		r := localtest.Walk(t, role.SocketEnroll, peers, try)
		if len(r.Faults) != 1 || !strings.Contains(r.Faults[0], "enroll POST / as controller") {
			t.Errorf("control: a row that lets the controller's user enroll: %q", r.Faults)
		}
		e.stop()
	})
}

// TestInternalRefusalsAreWrittenDown: a role that calls what it may not, and somebody without
// a certificate at the internal socket, are in the audit log and counted; who goes on is
// counted and does not fill the log.
func TestInternalRefusalsAreWrittenDown(t *testing.T) {
	e := newEnvWithoutWorker(t)
	edge := internalpb.NewControllerClient(e.dial(role.Edge, node))
	for range 20 {
		stream, err := edge.Sync(t.Context())
		if err == nil {
			_, err = stream.Recv()
		}
		if !fault.Is(err, fault.Denied) {
			t.Fatalf("the edge syncs: %v", err)
		}
	}
	for range 20 {
		c, err := tls.Dial("unix", e.socks[role.SocketInternal], &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		if err == nil {
			c.SetDeadline(time.Now().Add(30 * time.Second))
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if err == nil {
			t.Fatal("somebody without a certificate is answered")
		}
	}
	who := "spiffe://" + cluster + "/edge/" + string(node)
	for action, f := range map[string]func(r audit.Record) bool{
		"internal Sync": func(r audit.Record) bool { return r.Name == who && r.Code == 403 },
		"internal connection": func(r audit.Record) bool {
			return r.Name == "" && r.Code == 401 && strings.Contains(r.Detail, "certificate")
		},
	} {
		n := 0
		e.awaitRecords("", action, func(all []audit.Record) bool {
			n = 0
			for _, r := range all {
				if r.Action == action {
					if n += max(r.Count, 1); !f(r) || r.From != "internal socket" || r.Result != audit.Refused {
						t.Fatalf("%+v", r)
					}
				}
			}
			return n > 0
		})
		if n > 10 {
			t.Errorf("%s: %d of 20 are written down", action, n)
		}
	}
	page := string(e.want(200, "GET", "/metrics?role=controller", nil, nil).body)
	for _, what := range []string{"call", "connection"} {
		if !regexp.MustCompile(`bulkhead_internal_refusals_total\{[^}]*what="` + what + `"[^}]*\} 20\n`).MatchString(page) {
			t.Errorf("the metrics do not count 20 refusals of what=%q", what)
		}
	}
}
