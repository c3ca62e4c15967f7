package rpc

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"bulkhead/fault"
)

// NodeRemoved is the status word of the refusal that a node gets which an operator has
// removed from the cluster: what it still runs is no longer the cluster's.
const NodeRemoved = "node_removed"

// quickBackoff reconnects fast: the other end is on this machine or in this cell.
var quickBackoff = backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.3, MaxDelay: 2 * time.Second}

// grpcCode maps a kind to the nearest gRPC code, for tools that read only that.
var grpcCode = map[fault.Kind]codes.Code{
	fault.Invalid:         codes.InvalidArgument,
	fault.Unauthenticated: codes.Unauthenticated,
	fault.Denied:          codes.PermissionDenied,
	fault.NotFound:        codes.NotFound,
	fault.Timeout:         codes.DeadlineExceeded,
	fault.Conflict:        codes.Aborted,
	fault.Precondition:    codes.FailedPrecondition,
	fault.TooLarge:        codes.InvalidArgument,
	fault.Unprocessable:   codes.InvalidArgument,
	fault.TooMany:         codes.ResourceExhausted,
	fault.Unavailable:     codes.Unavailable,
	fault.Full:            codes.ResourceExhausted,
	fault.Internal:        codes.Internal,
}

// toStatus turns an error into a gRPC status that carries a *fault.Error's kind
// and status; the causes stay behind.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	var f *fault.Error
	if !errors.As(err, &f) {
		if _, ok := status.FromError(err); ok {
			return err
		}
		switch {
		case errors.Is(err, context.Canceled):
			return status.Error(codes.Canceled, "canceled")
		case errors.Is(err, context.DeadlineExceeded):
			return status.Error(codes.DeadlineExceeded, "deadline exceeded")
		}
		return status.Error(codes.Internal, fault.MessageOf(err))
	}
	s := status.New(grpcCode[f.Kind], f.Msg)
	detail, derr := structpb.NewStruct(map[string]any{"kind": string(f.Kind), "status": f.Status})
	if derr != nil {
		return s.Err()
	}
	if with, derr := s.WithDetails(detail); derr == nil {
		s = with
	}
	return s.Err()
}

// FromStatus turns the error of a call back into a *fault.Error. Errors of the
// connection itself become Unavailable; io.EOF and nil pass through.
func FromStatus(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	for _, d := range s.Details() {
		if st, ok := d.(*structpb.Struct); ok {
			f := fault.New(fault.Kind(st.GetFields()["kind"].GetStringValue()), "%s", s.Message())
			f.Status = st.GetFields()["status"].GetStringValue()
			return f
		}
	}
	switch s.Code() {
	case codes.Canceled:
		return context.Canceled
	case codes.DeadlineExceeded:
		return fault.New(fault.Timeout, "%s", s.Message())
	case codes.Unavailable:
		return fault.Wrap(fault.Unavailable, err, "the other side cannot be reached")
	}
	return fault.Wrap(fault.Internal, err, "%s", s.Message())
}

func clientUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := FromStatus(invoke(ctx, method, req, reply, cc, opts...))
	if errors.Is(err, context.Canceled) && ctx.Err() == nil {
		// Not this caller's doing: the connection was closed, or the other side ends.
		return fault.Wrap(fault.Unavailable, err, "the call was cut off; try again")
	}
	return err
}

func clientStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := streamer(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, FromStatus(err)
	}
	return faultStream{s}, nil
}

// faultStream gives a stream's errors their kind.
type faultStream struct{ grpc.ClientStream }

// RecvMsg is as the stream's own, with errors by FromStatus.
func (s faultStream) RecvMsg(m any) error { return FromStatus(s.ClientStream.RecvMsg(m)) }

// SendMsg is as the stream's own, with errors by FromStatus.
func (s faultStream) SendMsg(m any) error { return FromStatus(s.ClientStream.SendMsg(m)) }
