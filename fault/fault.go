// Package fault is the error vocabulary of Bulkhead.
//
// An error that a caller may act on is a *Error with a Kind. Kinds cross process
// boundaries (see package api for the gRPC form, package controller for the HTTP
// form); everything that is not a *Error is Internal at the rim, and its text is
// logged there and not shown.
//
// Messages are one lower-case sentence without a full stop that says what was
// wrong, where (field, value), and, where it is known, what to do.
package fault

import (
	"errors"
	"fmt"
	"time"
)

// Kind classifies an error by what its caller can do about it. The values cross
// the wire: never renumber or reuse one.
type Kind string

// The kinds, with the HTTP status that the public API gives them.
const (
	Invalid         Kind = "invalid"         // 400: the request is malformed
	Unauthenticated Kind = "unauthenticated" // 401: no or a bad credential
	Denied          Kind = "denied"          // 403: known caller, not allowed
	NotFound        Kind = "not_found"       // 404: no such object, or not visible to the caller
	Timeout         Kind = "timeout"         // 408: the awaited thing did not happen in time
	Conflict        Kind = "conflict"        // 409: the object is in a state that forbids it, or is leased
	Precondition    Kind = "precondition"    // 412: an optimistic lock or a capacity check failed
	TooLarge        Kind = "too_large"       // 413: the request is larger than is taken
	Unprocessable   Kind = "unprocessable"   // 422: well-formed, but cannot be done (name taken, unusable image)
	TooMany         Kind = "too_many"        // 429: slow down; RetryAfter says how much
	Unavailable     Kind = "unavailable"     // 503: a part that is needed is down; try again
	Full            Kind = "full"            // 507: there is no room to keep it; make room and try again
	Internal        Kind = "internal"        // 500: a fault of Bulkhead
)

// Error is an error with a Kind.
type Error struct {
	Kind Kind
	// Status is the machine-readable word of the public API's error body, such as
	// "name_taken"; empty where Kind says it all.
	Status string
	// Msg is shown to the caller.
	Msg string
	// RetryAfter is how long to wait before the same can be asked again; 0 if that is not
	// known. It reaches callers of the public API and does not cross internal calls.
	RetryAfter time.Duration
	// Err is the cause; it is logged and never shown.
	Err error
}

// New returns an error of kind k whose message is formatted as by fmt.Errorf. A
// %w operand becomes the cause as well as part of the message.
func New(k Kind, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: k, Msg: err.Error(), Err: errors.Unwrap(err)}
}

// WithStatus returns a copy of e with the machine-readable status set.
func (e *Error) WithStatus(status string) *Error {
	c := *e
	c.Status = status
	return &c
}

// WithRetryAfter returns a copy of e with the time to wait set.
func (e *Error) WithRetryAfter(d time.Duration) *Error {
	c := *e
	c.RetryAfter = d
	return &c
}

// RetryAfterOf returns how long the first *Error in err's chain asks to wait; 0 when it
// does not say.
func RetryAfterOf(err error) time.Duration {
	var e *Error
	if errors.As(err, &e) {
		return e.RetryAfter
	}
	return 0
}

// Wrap returns an error of kind k with a message for the caller and a cause for
// the log.
func Wrap(k Kind, cause error, format string, args ...any) *Error {
	return &Error{Kind: k, Msg: fmt.Sprintf(format, args...), Err: cause}
}

// Error gives the message for logs: with the cause, unless the message already ends with it.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Msg
	}
	if c := e.Err.Error(); len(e.Msg) >= len(c) && e.Msg[len(e.Msg)-len(c):] == c {
		return e.Msg
	}
	return e.Msg + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of the first *Error in err's chain, Internal when there
// is none, and "" for nil.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// MessageOf returns what may be shown to the caller: the message of the first
// *Error in err's chain, or a fixed sentence for everything else.
func MessageOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Msg
	}
	return "internal error; the request id finds it in the server's log"
}

// Is reports whether err is of kind k.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }

// Clip shortens what a caller sent, for a message that repeats it.
func Clip(s string) string {
	if len(s) > 120 {
		return s[:120] + "…"
	}
	return s
}
