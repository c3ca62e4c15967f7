package world

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"bulkhead/api/internalpb"
	"bulkhead/api/local"
	"bulkhead/api/local/localtest"
	"bulkhead/api/rpc"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/pki"
	"bulkhead/pki/pkitest"
	"bulkhead/role"
	"bulkhead/warden/client"
)

// identitySockets tries every cell of docs/internal-calls.md on the sockets of a running
// platform: with its users, its files' modes, and its authority.
func identitySockets(t *testing.T, w *World) {
	t.Run("Local", func(t *testing.T) { localSockets(t, w.In(t)) })
	t.Run("Mutual", func(t *testing.T) { mutualSockets(t, w.In(t)) })
}

// localSockets makes the calls of the three sockets on which the kernel says who calls, as
// every kind of caller. What root may and would change the platform is left to TestAdminCells.
func localSockets(t *testing.T, w *World) {
	users := local.Users{role.Warden: 0}
	for _, r := range []string{role.Controller, role.Worker, role.Edge} {
		u, err := user.Lookup("bulkhead-" + r)
		if err != nil {
			t.Fatal(err)
		}
		users[r] = number(t, u.Uid)
	}
	g, err := user.LookupGroup("bulkhead")
	if err != nil {
		t.Fatal(err)
	}
	peers := localtest.Peers(t, users, number(t, g.Gid))
	for socket, call := range map[string]func(net.Conn, string) (bool, error){
		role.SocketWarden: tryWarden, role.SocketAdmin: tryHTTP, role.SocketEnroll: tryHTTP,
	} {
		file := 0
		try := func(name string, p localtest.Peer) (bool, error) {
			c, err := p.Dial(filepath.Join(w.RunDir(), socket+".sock"))
			if errors.Is(err, os.ErrPermission) {
				file++
				return false, nil
			}
			if err != nil {
				return false, err
			}
			defer c.Close()
			if p.Name == local.Root && strings.HasPrefix(name, "POST ") && socket == role.SocketAdmin {
				return true, nil
			}
			c.SetDeadline(time.Now().Add(time.Minute))
			return call(c, name)
		}
		r := localtest.Walk(t, socket, peers, try)
		if len(r.Faults) != 0 {
			t.Errorf("%s", strings.Join(r.Faults, "\n"))
		}
		t.Logf("%s: %d of the refusals were the file's mode, %d the listener's", socket, file, r.Refused-file)
	}
}

func number(t *testing.T, s string) uint32 {
	t.Helper()
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

// tryWarden asks for an operation on a Machine that there is not.
func tryWarden(c net.Conn, op string) (bool, error) {
	u := c.(*net.UnixConn)
	sent := client.Send(u, client.Request{Op: client.Op(op), Machine: key.NewMachineID()})
	var resp client.Response
	files, err := client.Receive(u, &resp)
	for _, f := range files {
		f.Close()
	}
	if err != nil {
		return false, fmt.Errorf("no answer: %w; sent: %w", err, sent)
	}
	return !fault.Is(resp.Error.Err(), fault.Denied), nil
}

// tryHTTP makes a call of the admin or the enroll socket. A request for a certificate that is
// none is what comes behind the question who asks.
func tryHTTP(c net.Conn, call string) (bool, error) {
	method, path, _ := strings.Cut(call, " ")
	if _, err := fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}", method, path); err != nil {
		return false, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode != http.StatusForbidden, err
}

// mutualSockets makes the calls between roles that must be refused, as every role and as
// roles that there are not, with certificates of the cluster's own authority, on the socket
// of each role and on the cluster port.
func mutualSockets(t *testing.T, w *World) {
	var about struct{ Cluster, Node, Domain string }
	b, err := os.ReadFile(filepath.Join(w.DataDir, "cluster.json"))
	if err == nil {
		err = json.Unmarshal(b, &about)
	}
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.OpenCA(filepath.Join(w.DataDir, "controller", "ca"), about.Cluster, about.Domain)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for _, as := range append(slices.Clone(role.All), "gateway", "nobody") {
		id := pkitest.Identity(t, ca, pki.ID{Cluster: about.Cluster, Role: as, Node: key.Node(about.Node)})
		for socket, serves := range map[string][]string{
			role.Controller: {"Controller", "Membership", "Telemetry"}, role.Worker: {"Worker", "Telemetry"}, role.Edge: {"Edge", "Telemetry"},
		} {
			file := socket
			if socket == role.Controller {
				file = role.SocketInternal
			}
			conn, err := rpc.Dial(id, filepath.Join(w.RunDir(), file+".sock"), socket, key.Node(about.Node))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			for method, may := range rpc.Policy {
				service := strings.Split(method[strings.LastIndexByte(method, '.')+1:], "/")[0]
				if !slices.Contains(serves, service) || slices.Contains(may, as) {
					continue
				}
				refused++
				if err := answerOf(t, conn, method); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "may not call") {
					t.Errorf("%s as %s on the socket of the %s: %v", method, as, socket, err)
				}
			}
		}
		if as == role.Controller { // the control: the metrics of every role are the controller's to read
			conn, err := rpc.Dial(id, filepath.Join(w.RunDir(), "edge.sock"), role.Edge, key.Node(about.Node))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if _, err := internalpb.NewTelemetryClient(conn).Metrics(ctx, &internalpb.MetricsRequest{}); err != nil {
				t.Errorf("control: the edge's metrics for the controller: %v", err)
			}
		}
	}
	if refused < 80 {
		t.Errorf("only %d calls were tried", refused)
	}
	t.Logf("%d calls refused", refused)
}

// answerOf makes a call and returns the error of its first answer.
func answerOf(t *testing.T, conn *grpc.ClientConn, method string) error {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	s.SendMsg(&internalpb.MetricsRequest{})
	s.CloseSend()
	return s.RecvMsg(&internalpb.MetricsResponse{})
}
