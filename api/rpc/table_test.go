package rpc_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
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
	"bulkhead/pki"
	"bulkhead/pki/pkitest"
	"bulkhead/role"
)

var update = flag.Bool("update", false, "write docs/internal-calls.md anew")

// everyRole are the columns of the table: also one that is not built yet.
var everyRole = []string{role.Controller, role.Worker, role.Edge, role.Warden, "gateway"}

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
	if len(all) != len(rpc.Policy) || len(all) != len(rpc.Objects) {
		t.Errorf("%d methods, %d in the policy, %d with objects: one of them is gone", len(all), len(rpc.Policy), len(rpc.Objects))
	}
}

// reached counts calls that get as far as a method.
type reached struct{ n atomic.Int64 }

// everything answers every method of the protocol.
func everything(t *testing.T, id *pki.Identity) (socket string, got *reached) {
	t.Helper()
	got = &reached{}
	srv := rpc.NewServer(id, slog.New(slog.DiscardHandler), func(context.Context, pki.ID) error { got.n.Add(1); return nil })
	p := &probe{}
	internalpb.RegisterControllerServer(srv, p)
	internalpb.RegisterWorkerServer(srv, p)
	internalpb.RegisterMembershipServer(srv, p)
	internalpb.RegisterTelemetryServer(srv, p)
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

// TestPolicyIsEnforced makes every call as every role over mutual TLS: those of the policy
// reach the method, all others are refused before it.
func TestPolicyIsEnforced(t *testing.T) {
	ca := pkitest.CA(t, "c-1", "x.localhost")
	socket, got := everything(t, pkitest.Identity(t, ca, pki.ID{Cluster: "c-1", Role: role.Controller, Node: "n1"}))
	allowed, refused := 0, 0
	for _, as := range append(slices.Clone(everyRole), "nobody", "Controller", "worker2") {
		conn := dial(t, ca, as, socket)
		for _, m := range methods() {
			before := got.n.Load()
			err := call(conn, m)
			through := got.n.Load() > before
			if through != slices.Contains(rpc.Policy[m.full], as) || through == fault.Is(err, fault.Denied) {
				t.Errorf("%s as %s: let through is %v: %v", m.full, as, through, err)
			}
			if through {
				allowed++
			} else {
				refused++
			}
		}
	}
	t.Logf("%d methods, %d cells allowed, %d refused", len(methods()), allowed, refused)
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
		t.Errorf("docs/internal-calls.md is not what api/rpc/policy.go and the sockets say (%v); write it anew: go test ./api/rpc -run TestInternalCallsAreDocumented -update", err)
	}
}

func document(t *testing.T) []byte {
	var b bytes.Buffer
	b.WriteString(`# Internal calls

Who may call what inside a cluster. Written by ` + "`go test ./api/rpc -run TestInternalCallsAreDocumented -update`" + ` from ` + "`api/rpc/policy.go`" + `, and held against it by the same test.

## Between roles

gRPC over mutual TLS 1.3; the caller is known by its certificate (` + "`docs/cluster-identity.md`" + `). A cell that is empty is refused, and so is every role that has no column.
` + "`TestPolicyIsEnforced`" + ` makes every call of every cell, and ` + "`TestNoOtherCertificateCalls`" + ` makes each with thirteen certificates that are not good: of another authority or cluster,
expired, not yet valid, for servers only, of an app, with two identities or none, revoked. A method without a row fails ` + "`TestEveryMethodHasAPolicy`" + `.

| Call | Kind |`)
	for _, r := range everyRole {
		fmt.Fprintf(&b, " %s |", r)
	}
	b.WriteString(" Of what |\n|---|---|" + strings.Repeat("---|", len(everyRole)) + "---|\n")
	for _, m := range methods() {
		kind := "call"
		if m.stream {
			kind = "stream"
		}
		name := strings.ReplaceAll(strings.TrimPrefix(m.full, "/bulkhead.internal.v1."), "/", ".")
		fmt.Fprintf(&b, "| `%s` | %s |", name, kind)
		for _, r := range everyRole {
			cell := ""
			if slices.Contains(rpc.Policy[m.full], r) {
				cell = "yes"
			}
			fmt.Fprintf(&b, " %s |", cell)
		}
		fmt.Fprintf(&b, " %s |\n", rpc.Objects[m.full])
	}
	b.WriteString(`
## Over sockets of one machine

The caller is known by its user id, from the kernel; who connects as another user is refused, whatever the request. Files have mode 0600, or 0660 for the group of the roles.

| Socket | Operation | May | Test |
|---|---|---|---|
`)
	for _, s := range []struct{ socket, file, pattern, who, test string }{
		{"warden.sock", "../../warden/client/protocol.go", `Op\w+ +Op = "(\w+)"`, "the worker's user", "TestCaller"},
		{"enroll.sock", "", "", "each role's user: its own identity, and no other", "TestEnrollGivesARoleOnlyItsOwnIdentity"},
		{"admin.sock", "../../controller/admin.go", `mux.HandleFunc\("([A-Z]+ /[\w/-]*)`, "root", "TestNothingAnswersWithoutCredentials"},
		{"admin.sock", "../../pki/admin.go", `"((?:GET|POST) /[\w/-]*)"`, "root", "TestNothingAnswersWithoutCredentials"},
	} {
		ops := [][]string{{"", "POST /"}}
		if s.file != "" {
			src, err := os.ReadFile(s.file)
			if err != nil {
				t.Fatal(err)
			}
			if ops = regexp.MustCompile(s.pattern).FindAllStringSubmatch(string(src), -1); len(ops) < 3 {
				t.Fatalf("%s: %d operations found", s.file, len(ops))
			}
		}
		for _, op := range ops {
			fmt.Fprintf(&b, "| `%s` | `%s` | %s | `%s` |\n", s.socket, op[1], s.who, s.test)
		}
	}
	return b.Bytes()
}
