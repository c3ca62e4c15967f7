package fault_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"bulkhead/fault"
)

func TestKindsAndMessages(t *testing.T) {
	e := fault.Wrap(fault.NotFound, io.ErrUnexpectedEOF, "no app %q", "x")
	wrapped := fmt.Errorf("get: %w", e)
	if fault.KindOf(wrapped) != fault.NotFound || fault.MessageOf(wrapped) != `no app "x"` || !errors.Is(wrapped, io.ErrUnexpectedEOF) {
		t.Error(fault.KindOf(wrapped), fault.MessageOf(wrapped))
	}
	if e.Error() != `no app "x": unexpected EOF` {
		t.Error(e.Error())
	}
	// The text of anything else stays inside.
	if m := fault.MessageOf(errors.New("open /secret: denied")); m == "" || m == "open /secret: denied" {
		t.Error(m)
	}
	if fault.KindOf(nil) != "" || fault.KindOf(io.EOF) != fault.Internal || fault.Is(nil, fault.Internal) {
		t.Error("kinds of nil and of a stranger")
	}
	if f := fault.New(fault.Invalid, "read: %w", io.EOF); f.Error() != "read: EOF" || !errors.Is(f, io.EOF) {
		t.Error(f)
	}
	if s := e.WithStatus("gone"); s.Status != "gone" || e.Status != "" {
		t.Error("WithStatus changes its receiver")
	}
}
