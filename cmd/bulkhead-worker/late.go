package main

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc"

	"bulkhead/fault"
)

// lateConn is a connection that may not be there yet: until set is called, calls
// are answered with Unavailable.
type lateConn struct {
	conn atomic.Pointer[grpc.ClientConn]
}

func (l *lateConn) set(c *grpc.ClientConn) { l.conn.Store(c) }

func (l *lateConn) get() (*grpc.ClientConn, error) {
	if c := l.conn.Load(); c != nil {
		return c, nil
	}
	return nil, fault.New(fault.Unavailable, "this node has no identity yet; the controller signs it")
}

// Invoke implements grpc.ClientConnInterface.
func (l *lateConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	c, err := l.get()
	if err != nil {
		return err
	}
	return c.Invoke(ctx, method, args, reply, opts...)
}

// NewStream implements grpc.ClientConnInterface.
func (l *lateConn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	c, err := l.get()
	if err != nil {
		return nil, err
	}
	return c.NewStream(ctx, desc, method, opts...)
}
