package rpc_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/reflect/protoreflect"

	"bulkhead/api/internalpb"
	"bulkhead/api/rpc"
	"bulkhead/fault"
	"bulkhead/internal/await"
	"bulkhead/pki"
	"bulkhead/pki/pkitest"
	"bulkhead/role"
)

// everyRole are the columns of the table: also one that is not built yet.
var everyRole = append(slices.Clone(role.All), "gateway")

// cells says a second time, and by hand, who may make which call. A call or a role that is
// added, and one that may more than before, is red until it is said here too.
const cells = `
                                   controller worker warden edge gateway
Controller.Sync                    -          yes    -      -    -
Controller.FetchManifest           -          yes    -      -    -
Controller.FetchBlob               -          yes    -      -    -
Controller.FetchSecrets            -          yes    -      -    -
Controller.WatchRoutes             -          -      -      yes  -
Controller.IssueServerCertificate  -          -      -      yes  -
Controller.MachineAPI              -          yes    -      -    -
Worker.Reserve                     yes        -      -      -    -
Worker.Signal                      yes        -      -      -    -
Worker.Exec                        yes        -      -      -    -
Worker.ExecStream                  yes        -      -      -    -
Worker.Processes                   yes        -      -      -    -
Worker.Logs                        yes        -      -      -    -
Worker.Wake                        -          -      -      yes  -
Worker.Idle                        -          -      -      yes  -
Membership.Renew                   -          yes    -      yes  -
Membership.WatchRevoked            -          yes    -      yes  -
Telemetry.Metrics                  yes        -      -      -    -
Edge.Try                           yes        -      -      -    -
`

// expected reads cells: the roles that may make each call.
func expected() (columns []string, may map[string][]string) {
	may = map[string][]string{}
	for line := range strings.Lines(strings.TrimSpace(cells)) {
		f := strings.Fields(line)
		if columns == nil {
			columns = f
			continue
		}
		may[f[0]] = []string{}
		for i, cell := range f[1:] {
			if cell == "yes" {
				may[f[0]] = append(may[f[0]], columns[i])
			}
		}
	}
	return columns, may
}

// short is a call's name in the table.
func (m method) short() string {
	return strings.ReplaceAll(strings.TrimPrefix(m.full, "/bulkhead.internal.v1."), "/", ".")
}

// missing returns the calls and roles that have no cells.
func missing(roles []string, all []method) (out []string) {
	columns, may := expected()
	if !slices.Equal(columns, roles) {
		out = append(out, fmt.Sprintf("the cells are of %q, and the roles are %q", columns, roles))
	}
	for _, m := range all {
		if may[m.short()] == nil {
			out = append(out, m.short()+" has no cells")
		}
	}
	if len(may) != len(all) {
		out = append(out, fmt.Sprintf("%d calls have cells, and there are %d", len(may), len(all)))
	}
	return out
}

// method is a row of the table.
type method struct {
	full   string
	stream bool
}

// methods lists what the protocol has, in its order: nothing can be left out.
func methods() (out []method) {
	services := internalpb.File_api_internalpb_internal_proto.Services()
	for i := range services.Len() {
		s := services.Get(i)
		for j := range s.Methods().Len() {
			var m protoreflect.MethodDescriptor = s.Methods().Get(j)
			out = append(out, method{fmt.Sprintf("/%s/%s", s.FullName(), m.Name()), m.IsStreamingClient() || m.IsStreamingServer()})
		}
	}
	return out
}

// TestEveryMethodHasAPolicy fails when a call is added without saying who may make it, and
// about what.
func TestEveryMethodHasAPolicy(t *testing.T) {
	all := methods()
	for _, m := range all {
		if len(rpc.Policy[m.full]) == 0 {
			t.Errorf("%s: nobody may call it; say who in api/rpc/policy.go", m.full)
		}
		if rpc.Objects[m.full] == "" {
			t.Errorf("%s: say in api/rpc/policy.go which objects a caller gets at", m.full)
		}
	}
	if got := missing(everyRole, all); len(got) != 0 {
		t.Errorf("in the cells of this test: %q", got)
	}
	if got := missing(append(everyRole, "builder"), append(all, method{full: "/bulkhead.internal.v1.Worker/New"})); len(got) != 3 {
		t.Errorf("control: a role and a call that are new: %q", got)
	}
	if len(all) != len(rpc.Policy) || len(all) != len(rpc.Objects) {
		t.Errorf("%d methods, %d in the policy, %d with objects: one of them is gone", len(all), len(rpc.Policy), len(rpc.Objects))
	}
}

// reached counts calls that get as far as a method, and refusals that the server tells of: of
// connections and of calls.
type reached struct{ n, connections, calls atomic.Int64 }

func (r *reached) refused(f rpc.Refusal) {
	if f.Method == "" {
		r.connections.Add(1)
	} else if f.Caller.Role != "" && fault.Is(f.Err, fault.Denied) {
		r.calls.Add(1)
	}
}

// everything answers every method of the protocol.
func everything(t *testing.T, id *pki.Identity) (socket string, got *reached) {
	t.Helper()
	got = &reached{}
	srv := rpc.NewServer(id, slog.New(slog.DiscardHandler), got.refused, func(context.Context, pki.ID) error { got.n.Add(1); return nil })
	p := &probe{}
	internalpb.RegisterControllerServer(srv, p)
	internalpb.RegisterWorkerServer(srv, p)
	internalpb.RegisterMembershipServer(srv, p)
	internalpb.RegisterTelemetryServer(srv, p)
	internalpb.RegisterEdgeServer(srv, p)
	served := 0
	for _, s := range srv.GetServiceInfo() {
		served += len(s.Methods)
	}
	if served != len(methods()) {
		t.Fatalf("%d methods are served, the protocol has %d: register the new service here", served, len(methods()))
	}
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve(l)
	t.Cleanup(srv.Stop)
	return socket, got
}

// call makes one call and returns its error; nil or "not implemented" is the method's own.
func call(conn *grpc.ClientConn, m method) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if !m.stream {
		return conn.Invoke(ctx, m.full, &internalpb.MetricsRequest{}, &internalpb.MetricsResponse{})
	}
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, m.full)
	if err == nil {
		s.SendMsg(&internalpb.MetricsRequest{})
		s.CloseSend()
		err = s.RecvMsg(&internalpb.MetricsResponse{})
	}
	return err
}

// TestPolicyIsEnforced makes every call as every role over mutual TLS: those of the cells
// reach the method, all others are refused before it. Controls: a row that lets one role more
// through, and one that lets one less, are found.
func TestPolicyIsEnforced(t *testing.T) {
	ca := pkitest.CA(t, "c-1", "x.localhost")
	socket, got := everything(t, pkitest.Identity(t, ca, pki.ID{Cluster: "c-1", Role: role.Controller, Node: "n1"}))
	conns := map[string]*grpc.ClientConn{}
	for _, as := range append(slices.Clone(everyRole), "nobody", "Controller", "worker2") {
		conns[as] = dial(t, ca, as, socket)
	}
	_, may := expected()
	try := func() (faults []string) {
		allowed, refused := 0, 0
		for as, conn := range conns {
			for _, m := range methods() {
				before := got.n.Load()
				err := call(conn, m)
				through := got.n.Load() > before
				if through != slices.Contains(may[m.short()], as) || through == fault.Is(err, fault.Denied) {
					faults = append(faults, fmt.Sprintf("%s as %s: let through is %v: %v", m.short(), as, through, err))
				}
				if through {
					allowed++
				} else {
					refused++
				}
			}
		}
		t.Logf("%d methods, %d cells allowed, %d refused, %d wrong", len(methods()), allowed, refused, len(faults))
		return faults
	}
	if faults := try(); len(faults) != 0 {
		t.Errorf("%s", strings.Join(faults, "\n"))
	}
	const secrets, logs = internalpb.Controller_FetchSecrets_FullMethodName, internalpb.Worker_Logs_FullMethodName
	for _, seeded := range []struct{ method, says string }{{secrets, "Controller.FetchSecrets as edge: let through is true"}, {logs, "Worker.Logs as controller: let through is false"}} {
		was := rpc.Policy[seeded.method]
		rpc.Policy[seeded.method] = map[string][]string{secrets: append(slices.Clone(was), role.Edge)}[seeded.method]
		if faults := try(); len(faults) != 1 || !strings.Contains(faults[0], seeded.says) {
			t.Errorf("control: %s: %q", seeded.says, faults)
		}
		rpc.Policy[seeded.method] = was
	}
}

// TestNoOtherCertificateCalls makes every call with certificates that are not good, each of
// a role that the policy lets through if it were: none reaches a method. Control: the same
// way with one that is good.
func TestNoOtherCertificateCalls(t *testing.T) {
	dir, otherDir := t.TempDir(), t.TempDir()
	open := func(dir, cluster string) *pki.CA {
		ca, err := pki.OpenCA(dir, cluster, "x.localhost")
		if err != nil {
			t.Fatal(err)
		}
		return ca
	}
	ca := open(dir, "c-1")
	open(otherDir, "c-1")
	foreign := t.TempDir()
	open(foreign, "c-2")
	server := pkitest.Identity(t, ca, pki.ID{Cluster: "c-1", Role: role.Controller, Node: "n1"})
	server.SetRevoked([]pki.Revocation{{Node: "gone"}, {Node: "half", Role: role.Worker}, {Node: "half", Role: role.Edge}, {Node: "half", Role: role.Controller}})
	socket, got := everything(t, server)
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	uri := func(s string) []*url.URL { return []*url.URL{pkitest.URL(t, s)} }
	now := time.Now()
	kinds := map[string]func(as string) *tls.Certificate{
		"another authority of the same name": func(as string) *tls.Certificate {
			c := pkitest.Forge(t, otherDir, "identity", x509.Certificate{URIs: uri("spiffe://c-1/" + as + "/n1"), ExtKeyUsage: both})
			return &c
		},
		"another cluster": func(as string) *tls.Certificate {
			c := pkitest.Forge(t, foreign, "identity", x509.Certificate{URIs: uri("spiffe://c-2/" + as + "/n1"), ExtKeyUsage: both})
			return &c
		},
		"another cluster's name by this authority": func(as string) *tls.Certificate {
			c := pkitest.Forge(t, dir, "identity", x509.Certificate{URIs: uri("spiffe://c-2/" + as + "/n1"), ExtKeyUsage: both})
			return &c
		},
		"expired": func(as string) *tls.Certificate {
			c := pkitest.Forge(t, dir, "identity", x509.Certificate{URIs: uri("spiffe://c-1/" + as + "/n1"), ExtKeyUsage: both, NotBefore: now.Add(-25 * time.Hour), NotAfter: now.Add(-time.Minute)})
			return &c
		},
		"not yet valid": func(as string) *tls.Certificate {
			c := pkitest.Forge(t, dir, "identity", x509.Certificate{URIs: uri("spiffe://c-1/" + as + "/n1"), ExtKeyUsage: both, NotBefore: now.Add(time.Hour), NotAfter: now.Add(25 * time.Hour)})
			return &c
		},
		"for servers only": func(as string) *tls.Certificate {
			c := pkitest.Forge(t, dir, "identity", x509.Certificate{URIs: uri("spiffe://c-1/" + as + "/n1"), ExtKeyUsage: both[:1]})
			return &c
		},
		"an identity by the intermediate for servers": func(as string) *tls.Certificate {
			c := pkitest.Forge(t, dir, "server", x509.Certificate{URIs: uri("spiffe://c-1/" + as + "/n1"), ExtKeyUsage: both})
			return &c
		},
		"an app's, which a tenant's edge shows": func(string) *tls.Certificate {
			c := pkitest.Forge(t, dir, "server", x509.Certificate{DNSNames: []string{"web.x.localhost"}, ExtKeyUsage: both[:1]})
			return &c
		},
		"two identities": func(as string) *tls.Certificate {
			c := pkitest.Forge(t, dir, "identity", x509.Certificate{URIs: append(uri("spiffe://c-1/"+as+"/n1"), uri("spiffe://c-1/controller/n1")...), ExtKeyUsage: both})
			return &c
		},
		"no identity": func(string) *tls.Certificate {
			c := pkitest.Forge(t, dir, "identity", x509.Certificate{DNSNames: []string{"web.x.localhost"}, ExtKeyUsage: both})
			return &c
		},
		"no certificate": func(string) *tls.Certificate { return &tls.Certificate{} },
		"revoked": func(as string) *tls.Certificate {
			c := pkitest.Forge(t, dir, "identity", x509.Certificate{URIs: uri("spiffe://c-1/" + as + "/gone"), ExtKeyUsage: both})
			return &c
		},
		"revoked by role": func(as string) *tls.Certificate {
			c := pkitest.Forge(t, dir, "identity", x509.Certificate{URIs: uri("spiffe://c-1/" + as + "/half"), ExtKeyUsage: both})
			return &c
		},
		"control": func(as string) *tls.Certificate {
			c := pkitest.Forge(t, dir, "identity", x509.Certificate{URIs: uri("spiffe://c-1/" + as + "/n1"), ExtKeyUsage: both})
			return &c
		},
	}
	refused := 0
	for kind, certificate := range kinds {
		conns := map[string]*grpc.ClientConn{}
		connections, calls := got.connections.Load(), got.calls.Load()
		for _, m := range methods() {
			as := rpc.Policy[m.full][0]
			if conns[as] == nil {
				conns[as] = dialWith(t, socket, certificate(as))
			}
			before := got.n.Load()
			err := call(conns[as], m)
			method := err == nil || strings.Contains(err.Error(), "not implemented") || strings.Contains(err.Error(), "EOF")
			revoked := strings.HasPrefix(kind, "revoked") // is seen behind admission, which counts
			if kind == "control" {
				if !method {
					t.Errorf("%s: control: %v", m.full, err)
				}
				continue
			}
			if method || !revoked && got.n.Load() > before || revoked && !strings.Contains(err.Error(), "was removed from the cluster") {
				t.Errorf("%s with %s: %v", m.full, kind, err)
			}
			refused++
		}
		// The server tells of what it refuses: of each call, or of a connection. (Of those that
		// clients try again, it tells when it comes to them.)
		calls = got.calls.Load() - calls
		switch {
		case kind == "control":
			if calls != 0 {
				t.Errorf("control: told of %d refused calls", calls)
			}
		case strings.HasPrefix(kind, "revoked"):
			if calls != int64(len(methods())) {
				t.Errorf("%s: told of %d refused calls, want all", kind, calls)
			}
		default:
			await.True(t, kind+": a refused connection is counted", func() bool { return got.connections.Load() > connections })
			if calls != 0 {
				t.Errorf("%s: told of %d refused calls", kind, calls)
			}
		}
		for _, c := range conns {
			c.Close()
		}
	}
	t.Logf("%d kinds of certificates, %d calls refused", len(kinds)-1, refused)
}

// dialWith connects with any certificate, and believes any server.
func dialWith(t *testing.T, socket string, cert *tls.Certificate) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+socket,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, NextProtos: []string{"h2"},
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil },
		})),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", addr)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}
