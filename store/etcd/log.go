package etcd

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
)

// quietLogger gives etcd's warnings and errors to slog; its many notices about
// itself are dropped.
func quietLogger(log *slog.Logger) *zap.Logger { return zap.New(slogCore{log: log}) }

// slogCore is a zapcore.Core that writes to slog.
type slogCore struct{ log *slog.Logger }

// levelOf maps etcd's levels one step down where they cry wolf: its errors are about
// clients that hang up, also when it is closed in order.
func levelOf(l zapcore.Level) slog.Level {
	switch {
	case l >= zapcore.DPanicLevel:
		return slog.LevelError
	case l >= zapcore.ErrorLevel:
		return slog.LevelWarn
	case l >= zapcore.WarnLevel:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

// Enabled implements zapcore.LevelEnabler.
func (c slogCore) Enabled(l zapcore.Level) bool {
	return l >= zapcore.WarnLevel && c.log.Enabled(context.Background(), levelOf(l))
}

// With implements zapcore.Core.
func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	return slogCore{log: c.log.With(attrs(fields)...)}
}

// Check implements zapcore.Core.
func (c slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// closedServing is what etcd says of each of its listeners when it is closed in order.
const closedServing = "setting up serving from embedded etcd failed."

// closed are the errors of a listener or a server that was closed in order. Those of the
// multiplexer, a dependency of etcd alone, are known by their text.
var (
	closed    = []error{net.ErrClosed, http.ErrServerClosed, grpc.ErrServerStopped}
	muxClosed = []string{"mux: server closed", "mux: listener closed"}
)

// harmless says whether an entry tells of nothing but an end that was asked for.
func harmless(e zapcore.Entry, fields []zapcore.Field) bool {
	if e.Message != closedServing {
		return false
	}
	for _, f := range fields {
		err, ok := f.Interface.(error)
		if ok && (slices.ContainsFunc(closed, func(c error) bool { return errors.Is(err, c) }) || slices.Contains(muxClosed, err.Error())) {
			return true
		}
	}
	return false
}

// Write implements zapcore.Core.
func (c slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	if harmless(e, fields) {
		return nil
	}
	c.log.Log(context.Background(), levelOf(e.Level), "etcd: "+e.Message, attrs(fields)...)
	return nil
}

// Sync implements zapcore.Core.
func (c slogCore) Sync() error { return nil }

func attrs(fields []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	out := make([]any, 0, 2*len(enc.Fields))
	for k, v := range enc.Fields {
		out = append(out, k, v)
	}
	return out
}
