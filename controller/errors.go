package controller

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"bulkhead/fault"
)

// httpStatus is the one translation of kinds to codes. What is not a kind is 500.
var httpStatus = map[fault.Kind]int{
	fault.Invalid:         http.StatusBadRequest,
	fault.Unauthenticated: http.StatusUnauthorized,
	fault.Denied:          http.StatusForbidden,
	fault.NotFound:        http.StatusNotFound,
	fault.Timeout:         http.StatusRequestTimeout,
	fault.Conflict:        http.StatusConflict,
	fault.Precondition:    http.StatusPreconditionFailed,
	fault.TooLarge:        http.StatusRequestEntityTooLarge,
	fault.Unprocessable:   http.StatusUnprocessableEntity,
	fault.TooMany:         http.StatusTooManyRequests,
	fault.Unavailable:     http.StatusServiceUnavailable,
	fault.Full:            http.StatusInsufficientStorage,
	fault.Internal:        http.StatusInternalServerError,
}

// statusCode are status words whose code says more than their kind's.
var statusCode = map[string]int{
	statusLongTarget:  http.StatusRequestURITooLong,
	statusManyHeaders: http.StatusRequestHeaderFieldsTooLarge,
	statusMediaType:   http.StatusUnsupportedMediaType,
}

// errorBody is the API's error form.
type errorBody struct {
	Error  string `json:"error"`
	Status string `json:"status,omitempty"`
	// Details tells programs why, where the API's contract has no status for it.
	Details *errorDetails `json:"details,omitempty"`
}

type errorDetails struct {
	Reason string `json:"reason"`
}

// reasonLeased is the reason of a call that somebody else's lease refuses. The contract
// allows a 409 no status of ours.
const reasonLeased = "leased"

// notSupported is the answer to a documented endpoint that Bulkhead does not have yet.
type notSupported struct{ what string }

func (e notSupported) Error() string {
	return e.what + " is not supported by this version of Bulkhead yet"
}

// statusOf is the code that an error is answered with.
func statusOf(err error) int {
	var ns notSupported
	if errors.As(err, &ns) {
		return http.StatusNotImplemented
	}
	if code, ok := httpStatus[fault.KindOf(err)]; ok {
		return code
	}
	return http.StatusInternalServerError
}

// writeError answers with an error, and logs what the caller is not told.
func writeError(w http.ResponseWriter, log *slog.Logger, err error) int {
	var ns notSupported
	if errors.As(err, &ns) {
		return writeJSON(w, http.StatusNotImplemented, errorBody{Error: ns.Error(), Status: "unknown"})
	}
	kind := fault.KindOf(err)
	code, body := errorAnswer(err)
	if f := (*fault.Error)(nil); errors.As(err, &f) {
		setRetryAfter(w, f.RetryAfter)
	}
	if code >= 500 && kind != fault.Full { // bulkheadd says once that the disk is full
		log.Error("request failed", "err", err)
	} else {
		log.Debug("request refused", "err", err)
	}
	return writeJSON(w, code, body)
}

// errorAnswer is the code and the body that an error is answered with.
func errorAnswer(err error) (int, errorBody) {
	code, body := statusOf(err), errorBody{Error: fault.MessageOf(err)}
	if f := (*fault.Error)(nil); errors.As(err, &f) {
		body.Status = f.Status
		if f.Status == reasonLeased {
			body.Status, body.Details = "", &errorDetails{reasonLeased}
		}
		if c := statusCode[f.Status]; c != 0 {
			code, body.Status = c, "" // the code says it
		}
	}
	return code, body
}

// setRetryAfter says in whole seconds when to come again.
func setRetryAfter(w http.ResponseWriter, d time.Duration) {
	if d > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10))
	}
}

// plainText is a body that is answered as it is.
type plainText string

// writeJSON answers with a body and returns the code. A nil body is no body.
func writeJSON(w http.ResponseWriter, code int, body any) int {
	switch b := body.(type) {
	case nil:
		w.WriteHeader(code)
		return code
	case plainText:
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(code)
		io.WriteString(w, string(b))
		return code
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(code)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.Encode(body) // an error here is the client's connection
	return code
}
