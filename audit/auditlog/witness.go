package auditlog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/transparency-dev/tessera"
)

// witnessLag is how long required witnesses may be missing before changes are refused.
var witnessLag atomic.Int64

func init() { witnessLag.Store(int64(15 * time.Second)) }

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
