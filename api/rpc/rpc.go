// Package rpc carries the internal calls: gRPC over mutual TLS 1.3, where both
// ends are known by their SPIFFE identity, every call is checked against Policy,
// and errors keep their kind across the wire.
package rpc

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/pki"
)

// MaxMessage bounds one message, in bytes.
const MaxMessage = 16 << 20

// Admit is asked about every call that Policy allows, before its method runs: its
// error refuses the call.
type Admit func(ctx context.Context, caller pki.ID) error

// Refusal is a connection, or a call, that a server refused.
type Refusal struct {
	Caller pki.ID   // zero when no certificate of the cluster's came
	From   net.Addr // of the connection
	Method string   // of the call; empty for a connection
	Err    error
}

// Refused is told of every refusal, so that it can be counted and written down; it may be
// nil, and must not block. Connections that end by themselves are none.
type Refused func(Refusal)

// NewServer returns a server that speaks to roles of the same cluster only, and of
// these to those that every admit lets in. The caller registers services and serves
// it on any number of listeners.
func NewServer(id *pki.Identity, log *slog.Logger, refused Refused, admit ...Admit) *grpc.Server {
	if refused == nil {
		refused = func(Refusal) {}
	}
	a := authorizer{log: log, id: id, refused: refused, admit: admit}
	return grpc.NewServer(
		grpc.Creds(tracked{credentials.NewTLS(id.ServerTLS()), id, refused}),
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(MaxMessage),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.MaxConcurrentStreams(1000),
		// Stop returns when no method runs any more: what they use may then be closed.
		grpc.WaitForHandlers(true),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(a.unary),
		grpc.StreamInterceptor(a.stream),
	)
}

// Dial returns a connection to a role over its unix socket. It connects when it is
// first used and again whenever the connection is lost; node may be empty for any.
func Dial(id *pki.Identity, socketPath, wantRole string, wantNode key.Node) (*grpc.ClientConn, error) {
	return dial(id, "unix", socketPath, wantRole, wantNode)
}

// DialTCP is Dial for the cluster port of another machine, host:port.
func DialTCP(id *pki.Identity, address, wantRole string, wantNode key.Node) (*grpc.ClientConn, error) {
	return dial(id, "tcp", address, wantRole, wantNode)
}

func dial(id *pki.Identity, network, address, wantRole string, wantNode key.Node) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(tracked{credentials.NewTLS(id.ClientTLS(wantRole, wantNode)), id, nil}),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, addr)
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 5 * time.Second, Backoff: quickBackoff}),
		grpc.WithUnaryInterceptor(clientUnary),
		grpc.WithStreamInterceptor(clientStream),
	)
}

// Peer returns who makes the call that ctx belongs to. Inside a method of a server
// made by NewServer it always succeeds.
func Peer(ctx context.Context) (pki.ID, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return pki.ID{}, fault.New(fault.Unauthenticated, "the call has no peer")
	}
	return peerOf(p.AuthInfo)
}

func peerOf(auth credentials.AuthInfo) (pki.ID, error) {
	info, ok := auth.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return pki.ID{}, fault.New(fault.Unauthenticated, "the call has no certificate")
	}
	return pki.IDOf(info.State.PeerCertificates[0])
}

// authorizer checks every call against Policy before its method runs.
type authorizer struct {
	log     *slog.Logger
	id      *pki.Identity
	refused Refused
	admit   []Admit
}

// check refuses a call that its caller may not make, and tells of it.
func (a authorizer) check(ctx context.Context, method string) error {
	id, err := Peer(ctx)
	if err == nil {
		err = a.may(ctx, id, method)
	}
	if err != nil && fault.Is(err, fault.Denied) {
		r := Refusal{Caller: id, Method: method, Err: err}
		if p, ok := peer.FromContext(ctx); ok {
			r.From = p.Addr
		}
		a.refused(r)
	}
	return err
}

func (a authorizer) may(ctx context.Context, id pki.ID, method string) error {
	if !slices.Contains(Policy[method], id.Role) {
		a.log.Warn("internal call refused", "caller", id.String(), "method", method)
		return fault.New(fault.Denied, "%s may not call %s", id, method[strings.LastIndexByte(method, '/')+1:])
	}
	for _, admit := range a.admit {
		if err := admit(ctx, id); err != nil {
			return err
		}
	}
	if a.id.Revoked(id) {
		return fault.New(fault.Denied, "%s was removed from the cluster", id).WithStatus(NodeRemoved)
	}
	return nil
}

func (a authorizer) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	if err := a.check(ctx, info.FullMethod); err != nil {
		return nil, toStatus(err)
	}
	resp, err := h(ctx, req)
	return resp, a.finish(info.FullMethod, err)
}

func (a authorizer) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
	if err := a.check(ss.Context(), info.FullMethod); err != nil {
		return toStatus(err)
	}
	return a.finish(info.FullMethod, h(srv, ss))
}

// finish logs what the caller will not be told.
func (a authorizer) finish(method string, err error) error {
	ended := errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) // the caller's own doing
	if err != nil && !ended && fault.KindOf(err) == fault.Internal && status.Code(err) == codes.Unknown {
		a.log.Error("internal call failed", "method", method, "err", err)
	}
	return toStatus(err)
}
