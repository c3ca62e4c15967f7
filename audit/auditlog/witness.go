package auditlog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/transparency-dev/tessera"

	"bulkhead/fault"
)

// witnessLag is how long required witnesses may be missing before changes are refused.
var witnessLag atomic.Int64

func init() { witnessLag.Store(int64(15 * time.Second)) }

// CheckWitnesses says what is wrong with a policy; an empty one names nobody.
func CheckWitnesses(policy []byte) error {
	if len(policy) == 0 {
		return nil
	}
	if _, err := tessera.NewWitnessGroupFromPolicy(policy); err != nil {
		return fault.Wrap(fault.Invalid, err, "the policy of the audit log's witnesses (audit_witnesses) is not one; docs/audit.md shows how it looks")
	}
	return nil
}

// maxWitnessAnswer bounds what a witness may send: a signature has 200 bytes.
const maxWitnessAnswer = 16 << 10

// witnessClient asks witnesses: nobody else, in bounded time, for a bounded answer.
func witnessClient() *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy = nil
	return &http.Client{
		Timeout: witnessLimit, Transport: boundedAnswers{t},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// boundedAnswers cuts bodies short.
type boundedAnswers struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (b boundedAnswers) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxWitnessAnswer), resp.Body}
	}
	return resp, err
}

// watch looks at the published checkpoint: a witness that is missing is said, and is an
// error once it is required and has been missing for witnessLag.
func (l *Log) watch(t *tree) error {
	const what = "witnesses of the audit log are missing"
	if len(l.cfg.Witnesses) == 0 {
		return nil
	}
	group, err := tessera.NewWitnessGroupFromPolicy(l.cfg.Witnesses)
	if err != nil {
		return err
	}
	path := l.path("checkpoint")
	b, err := readFile(path)
	if err != nil {
		return nil // none is published yet; openTree says if none can be
	}
	size, behind := checkpointSize(b), false
	if st, err := os.Stat(path); err == nil {
		behind = size < t.size && time.Since(st.ModTime()) > time.Duration(witnessLag.Load())
	}
	switch {
	case !group.Satisfied(b):
		err = errors.New("the checkpoint lacks co-signatures that the policy asks for")
	case behind:
		err = fmt.Errorf("no checkpoint of the last %d records could be co-signed", t.size-size)
	}
	if err == nil {
		l.cfg.Board.Over(what)
		return nil
	}
	l.cfg.Board.Trouble(what, err, "required", l.cfg.WitnessRequired)
	if l.cfg.WitnessRequired && behind {
		return err
	}
	return nil
}

// checkpointSize is the size that a checkpoint of our own names.
func checkpointSize(b []byte) uint64 {
	lines := bytes.SplitN(b, []byte("\n"), 3)
	if len(lines) < 3 {
		return 0
	}
	n, _ := strconv.ParseUint(string(lines[1]), 10, 64)
	return n
}
