package controller_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	"google.golang.org/grpc"

	"bulkhead/api/internalpb"
	"bulkhead/api/rpc"
	"bulkhead/audit"
	"bulkhead/controller"
	"bulkhead/fault"
	"bulkhead/internal/await"
	"bulkhead/key"
	"bulkhead/pki"
	"bulkhead/role"
	"bulkhead/supervisor"
)

// frontDoor is the API's public address, as the edge serves it: each connection is passed
// on with a PROXY header.
func (e *env) frontDoor() string {
	e.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				up, err := net.Dial("unix", e.socks[role.SocketAPI])
				if err != nil {
					return
				}
				defer up.Close()
				if _, err := proxyproto.HeaderProxyFromAddrs(2, c.RemoteAddr(), c.LocalAddr()).WriteTo(up); err != nil {
					return
				}
				go io.Copy(up, c)
				io.Copy(c, up)
			}()
		}
	}()
	return l.Addr().String()
}

func (e *env) joinToken(body config) pki.JoinToken {
	e.t.Helper()
	var out controller.JoinToken
	e.want(200, "POST", "/v1/platform/join_tokens", body, &out)
	t, err := pki.ParseJoinToken(out.Token)
	if err != nil || t.Role != out.Role || t.ID != out.ID {
		e.t.Fatalf("%+v, %v", out, err)
	}
	return t
}

// farNode is a node on another machine: it has what "bulkheadd join" writes, and reaches the
// cluster by its two addresses alone.
type farNode struct {
	id   *pki.Identity
	conn *grpc.ClientConn

	found string // its identity file before the renewal at the start
}

var noLog = slog.New(slog.DiscardHandler)

// joinAs makes a node of a token, as "bulkheadd join" does; its key is made there and stays.
func (e *env) joinAs(door, file string, tok pki.JoinToken, n key.Node) (*farNode, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	dir := filepath.Dir(file)
	id, err := supervisor.Join{Token: tok.String(), Node: string(n), Dir: dir, Address: door}.Run(ctx)
	if err != nil {
		return nil, err
	}
	var about supervisor.JoinedNode
	b, err := os.ReadFile(filepath.Join(dir, "node.json"))
	if err == nil {
		err = json.Unmarshal(b, &about)
	}
	if err != nil || about.Address != e.clusterAddr || about.Controller != node || about.Node != id.Node || about.Role != tok.Role {
		return nil, fmt.Errorf("node.json: %+v, %w", about, err)
	}
	return e.comeBack(filepath.Join(dir, "identity.pem"))
}

// comeBack starts a joined node with what is on its disk.
func (e *env) comeBack(file string) (*farNode, error) {
	found, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := &farNode{found: string(found)}
	opened := make(chan struct{}) // the first renewal may come before r.id is set
	signer := rpc.Renewer(func() (*grpc.ClientConn, error) {
		<-opened
		return rpc.DialTCP(r.id, e.clusterAddr, role.Controller, node)
	})
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	if r.id, err = pki.OpenIdentity(ctx, file, signer, noLog); err != nil {
		return nil, err
	}
	close(opened)
	e.t.Cleanup(r.id.Close)
	if r.conn, err = rpc.DialTCP(r.id, e.clusterAddr, role.Controller, node); err != nil {
		return nil, err
	}
	e.t.Cleanup(func() { r.conn.Close() })
	return r, nil
}

// TestJoin is the life of a node: it joins with a token, calls the cluster port as who it
// is, renews, comes back after a restart, and is removed.
func TestJoin(t *testing.T) {
	e := newEnv(t)
	door, ctx := e.frontDoor(), bounded(t)
	file := filepath.Join(t.TempDir(), "identity.pem")
	w, err := e.joinAs(door, file, e.joinToken(config{"role": "worker"}), "n7")
	if err != nil {
		t.Fatal(err)
	}
	if got := w.id.ID().String(); got != "spiffe://"+cluster+"/worker/n7" {
		t.Fatalf("it is %s", got)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("its identity on disk: %v", err)
	}
	// It works as a worker, and as nothing else.
	fake := newFakeWorker("n7")
	run, stop := context.WithCancel(ctx)
	defer stop()
	go fake.sync(run, w.conn)
	e.waitNodeState("n7", "connected")
	if _, err := internalpb.NewControllerClient(w.conn).IssueServerCertificate(ctx, &internalpb.IssueServerCertificateRequest{App: "x"}); !fault.Is(err, fault.Denied) {
		t.Errorf("a worker gets a certificate of an app: %v", err)
	}
	// It renews: with a new key, also after a restart.
	for i := range 3 {
		before, _ := os.ReadFile(file)
		w.id.RenewSoon()
		await.True(e.t, "it renews", func() bool { now, _ := os.ReadFile(file); return string(now) != string(before) })
		if i == 1 {
			if w, err = e.comeBack(file); err != nil {
				t.Fatal(err)
			}
		}
	}
	// An edge of the same node needs a token of its own, for this node by name.
	if _, err := e.joinAs(door, filepath.Join(t.TempDir(), "e.pem"), e.joinToken(config{"role": "edge"}), "n7"); err == nil || !strings.Contains(err.Error(), "there is a node n7 already") {
		t.Errorf("the name of another: %v", err)
	}
	edge, err := e.joinAs(door, filepath.Join(t.TempDir(), "e.pem"), e.joinToken(config{"role": "edge", "node": "n7", "expires_in": 60}), "n7")
	if err != nil {
		t.Fatal(err)
	}
	routes, err := internalpb.NewControllerClient(edge.conn).WatchRoutes(ctx, &internalpb.WatchRoutesRequest{})
	if err == nil {
		_, err = routes.Recv()
	}
	if err != nil {
		t.Fatalf("its edge follows routes: %v", err)
	}

	e.want(200, "DELETE", "/v1/platform/nodes/n7?force=true", nil, nil)
	if _, err := routes.Recv(); err == nil {
		t.Error("the stream of a removed node is open")
	}
	_, err = internalpb.NewMembershipClient(edge.conn).Renew(ctx, &internalpb.RenewRequest{CsrDer: request(t)})
	if !refusedForGood(err) {
		t.Errorf("a removed node renews: %v", err)
	}
	if _, err := e.joinAs(door, filepath.Join(t.TempDir(), "x.pem"), e.joinToken(config{"role": "worker", "node": "n7"}), "n7"); err == nil || !strings.Contains(err.Error(), "was removed from the cluster") {
		t.Errorf("a removed node joins again: %v", err)
	}
}

// TestJoinedIsRemoved: a node that joined and was never heard of again, and one that has an
// edge alone, is seen by the operator, and can be removed: who holds its identity is cut off.
func TestJoinedIsRemoved(t *testing.T) {
	e := newEnvWithoutWorker(t)
	door, ctx := e.frontDoor(), bounded(t)
	for n, as := range map[key.Node]string{"n7": role.Edge, "n8": role.Worker} {
		w, err := e.joinAs(door, filepath.Join(t.TempDir(), "identity.pem"), e.joinToken(config{"role": as}), n)
		if err != nil {
			t.Fatal(err)
		}
		if got := e.nodes()[n].State; got != "joined" {
			t.Errorf("%s is %q, want joined", n, got)
		}
		s, err := internalpb.NewMembershipClient(w.conn).WatchRevoked(ctx, &internalpb.WatchRevokedRequest{})
		if err == nil {
			_, err = s.Recv()
		}
		if err != nil {
			t.Fatal(err)
		}
		e.want(200, "DELETE", "/v1/platform/nodes/"+string(n), nil, nil)
		if _, err := s.Recv(); err == nil {
			t.Errorf("a stream of %s is open", n)
		}
		if got := e.nodes()[n].State; got != "removed" {
			t.Errorf("%s is %q, want removed", n, got)
		}
		if _, err := internalpb.NewMembershipClient(w.conn).Renew(ctx, &internalpb.RenewRequest{CsrDer: request(t)}); !refusedForGood(err) {
			t.Errorf("%s renews: %v", n, err)
		}
	}
}

func request(t *testing.T) []byte {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewCSR(k)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// TestJoinTokensThatAreNoGood: each is refused, counted and noted, and spends nothing.
func TestJoinTokensThatAreNoGood(t *testing.T) {
	e := newEnvWithoutWorker(t)
	good := e.joinToken(config{"role": "worker", "node": "n8"})
	csr := request(t)
	ask := func(change func(*pki.JoinRequest)) answer {
		in := pki.JoinRequest{Cluster: good.Cluster, ID: good.ID, Secret: good.Secret, Role: "worker", Node: "n8", CSR: csr}
		change(&in)
		e.ctl.ForgetLimits()
		return e.do("POST", "/v1/join", in, "Authorization", "")
	}
	short := e.joinToken(config{"role": "worker", "node": "n8", "expires_in": 1})
	cases := map[string]struct {
		change func(*pki.JoinRequest)
		code   int
		says   string
	}{
		"another cluster":   {func(r *pki.JoinRequest) { r.Cluster = "c-other" }, 403, "is for cluster"},
		"another role":      {func(r *pki.JoinRequest) { r.Role = "edge" }, 403, "is for the role worker"},
		"the controller":    {func(r *pki.JoinRequest) { r.Role = "controller" }, 403, "is for the role worker"},
		"another node":      {func(r *pki.JoinRequest) { r.Node = "n9" }, 403, "is for node n8"},
		"the controller's":  {func(r *pki.JoinRequest) { r.Node = string(node) }, 403, "is for node n8"},
		"no name":           {func(r *pki.JoinRequest) { r.Node = "../n8" }, 400, ""},
		"another secret":    {func(r *pki.JoinRequest) { r.Secret += "x" }, 401, "not good"},
		"no secret":         {func(r *pki.JoinRequest) { r.Secret = "" }, 401, "not good"},
		"an id that is not": {func(r *pki.JoinRequest) { r.ID = "j00000000000000000000000000" }, 401, "not good"},
		"an id with a path": {func(r *pki.JoinRequest) { r.ID = "../org/personal" }, 401, "not good"},
		"an id of 100 KiB":  {func(r *pki.JoinRequest) { r.ID = strings.Repeat("j", 100<<10) }, 401, "not good"},
		"no request":        {func(r *pki.JoinRequest) { r.CSR = nil }, 400, "certificate request"},
		"garbage":           {func(r *pki.JoinRequest) { r.CSR = []byte("garbage") }, 400, "certificate request"},
		"expired":           {func(r *pki.JoinRequest) { r.ID, r.Secret = short.ID, short.Secret }, 403, "expired at"},
	}
	defer controller.Ahead(time.Second)() // the short one's life
	for name, c := range cases {
		if a := ask(c.change); a.code != c.code || !strings.Contains(string(a.body), c.says) {
			t.Errorf("%s: %d %s, want %d %q", name, a.code, a.body, c.code, c.says)
		}
	}
	if got := e.ctl.Members("join"); got["ok"] != 0 || got["denied"] == 0 || got["unauthenticated"] == 0 || got["invalid"] == 0 {
		t.Errorf("counted %v", got)
	}
	if a := ask(func(*pki.JoinRequest) {}); a.code != 200 {
		t.Fatalf("control: the good one: %d %s", a.code, a.body)
	}
	if a := ask(func(*pki.JoinRequest) {}); a.code != 403 || !strings.Contains(string(a.body), "was used at") {
		t.Errorf("used twice: %d %s", a.code, a.body)
	}
	for body, says := range map[*config]string{
		{"role": "controller"}:                    "as worker or edge",
		{"role": "worker", "expires_in": 86400}:   "at most 3600 seconds",
		{"role": "worker", "expires_in": -1}:      "at most 3600 seconds",
		{"role": "worker", "node": string(node)}:  "this controller's own",
		{"role": "worker", "node": "Not_A_Name!"}: "",
	} {
		e.refused(400, says, "POST", "/v1/platform/join_tokens", *body)
	}
	if r := e.find("", "the join", func(r audit.Record) bool { return r.Action == "POST /v1/join" && r.Result == audit.OK }); r.Name != "node n8" || r.Token != good.ID || r.Target != "identity=worker/n8" {
		t.Errorf("the record of the join: %+v", r)
	}
	e.awaitRecords("", "refusals", func(all []audit.Record) bool {
		return slices.ContainsFunc(all, func(r audit.Record) bool {
			return r.Action == "POST /v1/join" && r.Result == audit.Refused && r.Code == 403 && r.Token != "" && r.From != ""
		})
	})
	logs := e.logs.String()
	for _, secret := range []string{good.Secret, short.Secret, good.String()} {
		if strings.Contains(logs, secret) || strings.Contains(e.ctl.Values(t, "/"), secret) {
			t.Error("a join token's secret is in the log or the store")
		}
	}
	t.Logf("%d refused", len(cases)+6)
}

// TestJoinRace: of many who use one token at once, one joins.
func TestJoinRace(t *testing.T) {
	e := newEnvWithoutWorker(t)
	for range 5 {
		tok := e.joinToken(config{"role": "worker"})
		var wg sync.WaitGroup
		var mu sync.Mutex
		codes := map[int]int{}
		for i := range 8 {
			csr := request(t)
			wg.Go(func() {
				a := e.do("POST", "/v1/join", pki.JoinRequest{
					Cluster: tok.Cluster, ID: tok.ID, Secret: tok.Secret, Role: "worker", Node: "r" + strings.ToLower(tok.ID[len(tok.ID)-6:]) + string(rune('a'+i)), CSR: csr,
				}, "Authorization", "")
				mu.Lock()
				defer mu.Unlock()
				codes[a.code]++
			})
		}
		wg.Wait()
		if codes[200] != 1 || codes[403] != 7 {
			t.Errorf("%v, want one 200 and seven 403", codes)
		}
	}
}

// TestCopiedIdentity: of two who hold one identity the second to renew is refused, and it
// shows. An answer that was lost is no copy.
func TestCopiedIdentity(t *testing.T) {
	e := newEnvWithoutWorker(t)
	door, ctx := e.frontDoor(), bounded(t)
	dir := t.TempDir()
	file, stolen := filepath.Join(dir, "identity.pem"), filepath.Join(dir, "b.pem")
	w, err := e.joinAs(door, file, e.joinToken(config{"role": "worker"}), "n5")
	if err != nil {
		t.Fatal(err)
	}
	renew := func(r *farNode) error {
		_, err := internalpb.NewMembershipClient(r.conn).Renew(ctx, &internalpb.RenewRequest{CsrDer: request(t)})
		return err
	}
	// Its own renewal at the start arrives; then the answers are lost, again and again, while
	// it keeps a connection from before. It goes on with what it has.
	await.True(e.t, "the first renewal", func() bool { now, _ := os.ReadFile(file); return string(now) != w.found })
	lose := rpc.Renewer(func() (*grpc.ClientConn, error) { return rpc.DialTCP(w.id, e.clusterAddr, role.Controller, node) })
	for range 3 {
		if _, _, err := lose(ctx, request(t)); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stolen, b, 0o600); err != nil {
		t.Fatal(err)
	}
	before := string(b)
	w.id.RenewSoon()
	await.True(e.t, "the node renews", func() bool { now, _ := os.ReadFile(file); return string(now) != before })
	w.conn.Close()
	if w, err = e.comeBack(file); err != nil { // with the new one
		t.Fatal(err)
	}
	await.True(e.t, "and again", func() bool { now, _ := os.ReadFile(file); return string(now) != w.found })
	thief, err := e.comeBack(stolen)
	if err != nil {
		t.Fatal(err)
	}
	if err := renew(thief); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "not its newest") {
		t.Errorf("the copy renews: %v", err)
	}
	if got := e.ctl.Members("renew"); got["denied"] == 0 {
		t.Errorf("counted %v", got)
	}
	// Neither a role of the controller's machine nor who never joined renews here.
	for _, id := range []pki.ID{{Role: role.Worker, Node: node}, {Role: role.Worker, Node: "n66"}} {
		if _, err := internalpb.NewMembershipClient(e.dial(id.Role, id.Node)).Renew(ctx, &internalpb.RenewRequest{CsrDer: request(t)}); !fault.Is(err, fault.Denied) {
			t.Errorf("%v renews: %v", id, err)
		}
	}
}
