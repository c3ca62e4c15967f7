package world

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"bulkhead/api/internalpb"
	"bulkhead/api/rpc"
	"bulkhead/pki"
	"bulkhead/role"
	"bulkhead/supervisor"
	"bulkhead/warden/router"
)

// farHost is another machine on the platform's network: a network namespace, which reaches
// this host over one cable and has no other way anywhere.
type farHost struct {
	t    testing.TB
	name string
	ns   *os.File
	// Host is this machine's address at the other end of the cable.
	Host string
}

// newFarHost makes it, and removes it with the test.
func newFarHost(t testing.TB) *farHost {
	t.Helper()
	n := os.Getpid() % 60
	f := &farHost{t: t, name: fmt.Sprintf("bhfar%d", os.Getpid()), Host: fmt.Sprintf("203.0.113.%d", 4*n+1)}
	t.Cleanup(func() {
		exec.Command("ip", "link", "del", f.name).Run()
		exec.Command("ip", "netns", "del", f.name).Run()
	})
	for _, args := range [][]string{
		{"netns", "add", f.name},
		{"link", "add", f.name, "type", "veth", "peer", "name", "eth0", "netns", f.name},
		{"addr", "add", f.Host + "/30", "dev", f.name},
		{"link", "set", f.name, "up"},
		{"-n", f.name, "addr", "add", fmt.Sprintf("203.0.113.%d/30", 4*n+2), "dev", "eth0"},
		{"-n", f.name, "link", "set", "eth0", "up"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v %s", args, err, out)
		}
	}
	var err error
	if f.ns, err = os.Open(filepath.Join("/run/netns", f.name)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.ns.Close() })
	return f
}

// Dial connects from there.
func (f *farHost) Dial(ctx context.Context, addr string) (c net.Conn, err error) {
	err = router.Do(f.ns, func() error {
		c, err = new(net.Dialer).DialContext(ctx, "tcp", addr)
		return err
	})
	return c, err
}

// bulkheadd runs a command there, with stdin, and returns what it wrote and its exit code.
func (f *farHost) bulkheadd(w *World, stdin string, args ...string) (stdout, stderr string, code int) {
	w.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", f.name, filepath.Join(w.Bin, "bulkheadd")}, args...)...)
	var o, e bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &o, &e
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		w.T.Fatalf("bulkheadd %v: %v", args, err)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

// identityJoin takes a server in another network namespace through its life in the cluster,
// with the programs that an operator has: a token, a join, calls as who it is and as nobody
// else, a renewal, a removal that cuts what is open.
func identityJoin(t *testing.T, w *World, far *farHost) {
	_, apiPort, _ := net.SplitHostPort(w.Ready.HTTPSAddr)
	api := net.JoinHostPort(far.Host, apiPort)
	token := func(args ...string) string {
		t.Helper()
		return strings.TrimSpace(w.MustCLI(append([]string{"node", "token", "--role", "worker"}, args...)...))
	}
	join := func(token, node, dir string) (string, string, int) {
		t.Helper()
		return far.bulkheadd(w, token+"\n", "join", "-", "--node", node, "--dir", dir, "--address", api)
	}
	dir := filepath.Join(t.TempDir(), "node")
	good := token("--node", "far")
	joinTokensRefused(t, w, good, token("--node", "far", "--expiry", "1s"), join)

	out, errs, code := join(good, "far", dir)
	if code != 0 || !strings.HasPrefix(out, "spiffe://") || !strings.HasSuffix(out, "/worker/far\n") {
		t.Fatalf("join: %d %s%s", code, out, errs)
	}
	for name, mode := range map[string]os.FileMode{"identity.pem": 0o600, "node.json": 0o644, ".": 0o700} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", name, st, err)
		}
	}
	if _, errs, code := join(good, "far", filepath.Join(t.TempDir(), "again")); code != 1 || !strings.Contains(errs, "was used at") || !strings.Contains(errs, "by node far") {
		t.Errorf("the token used twice: %d %s", code, errs)
	}
	if out := w.MustCLI("node", "list"); !strings.Contains(out, "far") || !strings.Contains(out, "joined") {
		t.Errorf("the operator does not see the node: %s", out)
	}

	n := openFar(t, far, dir)
	n.calls(t)
	before := n.id.ID()
	file := filepath.Join(dir, "identity.pem")
	was, _ := os.ReadFile(file)
	n.id.RenewSoon()
	w.Eventually(60*time.Second, func() string {
		if now, _ := os.ReadFile(file); bytes.Equal(now, was) {
			return "it does not renew over the cluster port"
		}
		return ""
	})
	if n.id.ID() != before {
		t.Errorf("renewed it is %v", n.id.ID())
	}
	joinedIsRemoved(t, w, n)
	if _, errs, code := join(token("--node", "far"), "far", filepath.Join(t.TempDir(), "back")); code != 1 || !strings.Contains(errs, "was removed from the cluster") {
		t.Errorf("a removed node joins again: %d %s", code, errs)
	}
	joinsAreAudited(t, w)
}

// joinTokensRefused tries tokens that are no good: each is refused in words, and leaves
// nothing behind, on the server or of the token that is good.
func joinTokensRefused(t *testing.T, w *World, good, expired string, join func(token, node, dir string) (string, string, int)) {
	g, err := pki.ParseJoinToken(good)
	if err != nil {
		t.Fatal(err)
	}
	e, err := pki.ParseJoinToken(expired)
	if err != nil {
		t.Fatal(err)
	}
	changed := func(change func(*pki.JoinToken)) string {
		c := g
		change(&c)
		return c.String()
	}
	time.Sleep(1100 * time.Millisecond) // the life of the one that expires
	for _, c := range []struct{ what, token, node, says string }{
		{"no token", "hello", "far", "a join token begins with bhj_"},
		{"half a token", good[:len(good)/2], "far", "is not whole; copy it again"},
		{"garbage", "bhj_" + strings.Repeat("A", 200), "far", "is not whole; copy it again"},
		{"another secret", changed(func(c *pki.JoinToken) { c.Secret = strings.Repeat("A", len(c.Secret)) }), "far", "is not good"},
		{"an id that there is not", changed(func(c *pki.JoinToken) { c.ID = "j00000000000000000000000000" }), "far", "is not good"},
		{"another node", good, "other", "is for node far"},
		{"another role", changed(func(c *pki.JoinToken) { c.Role = role.Controller }), "far", "is for the role worker"},
		{"another cluster", changed(func(c *pki.JoinToken) { c.Cluster = "c-other" }), "far", "is for cluster"},
		{"another key at the API", changed(func(c *pki.JoinToken) { c.Pin = e.ID }), "far", "does not hold the key that the join token pins"},
		{"expired", expired, "far", "expired at"},
	} {
		dir := filepath.Join(t.TempDir(), "node")
		_, errs, code := join(c.token, c.node, dir)
		if code != 1 || !strings.Contains(errs, c.says) {
			t.Errorf("%s: exit code %d, %q does not say %q", c.what, code, errs, c.says)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 {
			t.Errorf("%s: it leaves %v", c.what, left)
		}
		for _, secret := range []string{g.Secret, e.Secret} {
			if strings.Contains(errs, secret) {
				t.Errorf("%s: the answer shows the secret: %s", c.what, errs)
			}
		}
	}
}

// farNode is a joined node as a role that is started with its identity will be.
type farNode struct {
	far  *farHost
	addr string // of the cluster port
	id   *pki.Identity
	conn *grpc.ClientConn
}

// openFar opens what "bulkheadd join" left, and calls the cluster port from there.
func openFar(t *testing.T, far *farHost, dir string) *farNode {
	t.Helper()
	var about supervisor.JoinedNode
	b, err := os.ReadFile(filepath.Join(dir, "node.json"))
	if err == nil {
		err = json.Unmarshal(b, &about)
	}
	if err != nil {
		t.Fatal(err)
	}
	n := &farNode{far: far, addr: about.Address}
	opened := make(chan struct{})
	var toController credentials.TransportCredentials
	renewer := rpc.Renewer(func() (*grpc.ClientConn, error) {
		<-opened
		return n.connect(toController)
	})
	n.id, err = pki.OpenIdentity(t.Context(), filepath.Join(dir, "identity.pem"), renewer, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.id.Close)
	toController = credentials.NewTLS(n.id.ClientTLS(role.Controller, about.Controller))
	close(opened)
	n.conn = n.dial(t, toController)
	return n
}

func (n *farNode) dial(t *testing.T, creds credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	conn, err := n.connect(creds)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func (n *farNode) connect(creds credentials.TransportCredentials) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+n.addr, grpc.WithTransportCredentials(creds), grpc.WithContextDialer(n.far.Dial))
}

// calls makes every call of the cluster port: as the worker that it is the node reaches those
// of a worker, and of the objects behind them none that are another node's. Without its
// certificate it reaches nothing.
func (n *farNode) calls(t *testing.T) {
	allowed, refused := 0, 0
	plain := n.dial(t, insecure.NewCredentials())
	for method, may := range rpc.Policy {
		if strings.Contains(method, ".Worker/") || strings.Contains(method, ".Edge/") {
			continue // is served by workers or edges
		}
		if err := answerOf(t, plain, method); status.Code(err) != codes.Unavailable {
			t.Errorf("%s without TLS: %v", method, err)
		}
		if method == internalpb.Controller_Sync_FullMethodName || method == internalpb.Controller_MachineAPI_FullMethodName {
			continue // would make it a worker of the cluster
		}
		err := answerOf(t, n.conn, method)
		gate := status.Code(err) == codes.PermissionDenied && strings.Contains(err.Error(), "may not call")
		if gate == slices.Contains(may, role.Worker) {
			t.Errorf("%s as worker: %v", method, err)
		}
		if gate {
			refused++
		} else {
			allowed++
		}
	}
	if allowed < 4 || refused < 3 {
		t.Errorf("%d calls allowed, %d refused", allowed, refused)
	}
	t.Logf("from the far host: %d calls allowed, %d refused", allowed, refused)
	_, err := internalpb.NewControllerClient(n.conn).FetchManifest(t.Context(), &internalpb.FetchManifestRequest{MachineId: "00000000000000", Repository: "robots", Digest: "sha256:" + strings.Repeat("0", 64)})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("an image of a Machine that is not its own: %v", err)
	}
}

// joinedIsRemoved has the operator remove the node while it holds streams open: they end, and
// nothing that it tries afterwards reaches the cluster.
func joinedIsRemoved(t *testing.T, w *World, n *farNode) {
	ends := make(chan time.Time, 3)
	open := func() {
		t.Helper()
		s, err := internalpb.NewMembershipClient(n.conn).WatchRevoked(t.Context(), &internalpb.WatchRevokedRequest{})
		if err == nil {
			_, err = s.Recv()
		}
		if err != nil {
			t.Fatalf("a stream of the joined node: %v", err)
		}
		go func() {
			for err == nil {
				_, err = s.Recv()
			}
			ends <- time.Now()
		}()
	}
	for range cap(ends) {
		open()
	}
	select {
	case <-ends:
		t.Fatal("a stream ended before the removal")
	case <-time.After(200 * time.Millisecond):
	}
	began := time.Now()
	w.MustCLI("node", "remove", "far")
	answered, cut := time.Since(began), time.Duration(0)
	for range cap(ends) {
		select {
		case at := <-ends:
			cut = max(cut, at.Sub(began))
		case <-time.After(time.Minute):
			t.Fatal("a stream of a removed node is open")
		}
	}
	t.Logf("all %d streams had ended %v after the operator's command began, which took %v", cap(ends), cut, answered)
	if cut > answered+revokedWithin {
		t.Errorf("streams were open %v after the removal was acknowledged", cut-answered)
	}
	for _, method := range []string{internalpb.Membership_WatchRevoked_FullMethodName, internalpb.Membership_Renew_FullMethodName, internalpb.Controller_WatchRoutes_FullMethodName} {
		if err := answerOf(t, n.conn, method); !refusedAsRemoved(err) {
			t.Errorf("%s of a removed node: %v", method, err)
		}
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewCSR(k)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := internalpb.NewMembershipClient(n.conn).Renew(t.Context(), &internalpb.RenewRequest{CsrDer: csr}); !refusedAsRemoved(err) {
		t.Errorf("a removed node renews: %v", err)
	}
	if out := w.MustCLI("node", "list"); !strings.Contains(out, "removed") {
		t.Errorf("the operator sees: %s", out)
	}
}

// revokedWithin is how long what a removed node had open may last.
const revokedWithin = time.Second

// refusedAsRemoved is the answer to a removed node: in words, or a handshake that fails.
func refusedAsRemoved(err error) bool {
	switch status.Code(err) {
	case codes.PermissionDenied:
		return strings.Contains(err.Error(), "was removed from the cluster") || strings.Contains(err.Error(), "may not call")
	case codes.Unavailable:
		return true
	}
	return false
}

// joinsAreAudited looks for what happened in the cluster's audit log.
func joinsAreAudited(t *testing.T, w *World) {
	w.Eventually(60*time.Second, func() string { // refusals are written together
		ok := w.MustCLI("audit", "log", "--cluster", "--action", "POST /v1/join", "--result", "ok")
		refused := w.MustCLI("audit", "log", "--cluster", "--action", "POST /v1/join", "--result", "refused")
		if strings.Count(ok, "identity=worker/far") != 1 || !strings.Contains(refused, "identity=worker/far") || !strings.Contains(refused, "identity=worker/other") {
			return "joins that were made: " + ok + "refused: " + refused
		}
		return ""
	})
	if out := w.MustCLI("audit", "log", "--cluster", "--action", "DELETE /v1/platform/nodes", "--result", "ok"); !strings.Contains(out, "far") {
		t.Errorf("the removal is not in the audit log: %s", out)
	}
}
