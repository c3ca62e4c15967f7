package audit

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	cosign "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
)

// Checkpoint is the log's signed word about itself: how many records it has, and the
// one hash that stands for all of them.
type Checkpoint struct {
	Origin string
	Size   uint64
	Root   []byte
	// Note is the checkpoint as signed (C2SP tlog-checkpoint).
	Note []byte
	// Others are the names of signatures besides the log's own: witnesses', if their keys
	// are known.
	Others []string
}

// ParseCheckpoint checks the log's signature by its key (a C2SP signed-note verifier
// key) and reads what was signed.
func ParseCheckpoint(b []byte, key string) (*Checkpoint, error) {
	v, err := note.NewVerifier(strings.TrimSpace(key))
	if err != nil {
		return nil, fmt.Errorf("the key of the audit log is not one: %w", err)
	}
	n, err := note.Open(b, note.VerifierList(v))
	if err != nil {
		return nil, fmt.Errorf("the checkpoint is not signed by the audit log's key: %w", err)
	}
	for _, s := range append(n.Sigs, n.UnverifiedSigs...) { // of several ways to write the same, one is right
		if raw, err := base64.StdEncoding.Strict().DecodeString(s.Base64); err != nil || base64.StdEncoding.EncodeToString(raw) != s.Base64 {
			return nil, fmt.Errorf("the signature of %q on the checkpoint is not written as signatures are", s.Name)
		}
	}
	lines := strings.SplitN(n.Text, "\n", 4)
	if len(lines) != 4 || lines[3] != "" {
		return nil, errors.New("the checkpoint has not the three lines of one")
	}
	size, serr := strconv.ParseUint(lines[1], 10, 64)
	root, rerr := base64.StdEncoding.DecodeString(lines[2])
	if serr != nil || rerr != nil || len(root) != 32 || lines[0] != v.Name() {
		return nil, errors.New("the checkpoint does not say which log it is of, how large that is, and its hash")
	}
	c := &Checkpoint{Origin: lines[0], Size: size, Root: root, Note: b}
	for _, s := range n.UnverifiedSigs {
		c.Others = append(c.Others, s.Name)
	}
	return c, nil
}

// Cosigned proves that a checkpoint has the signature of a witness (C2SP tlog-cosignature,
// version 1), by the witness's verifier key. One that is wrong counts as none.
func (c *Checkpoint) Cosigned(witness string) error {
	v, err := cosign.NewVerifierForCosignatureV1(strings.TrimSpace(witness))
	if err != nil {
		return fmt.Errorf("%q is not the key of a witness: %w", witness, err)
	}
	if _, err := note.Open(c.Note, note.VerifierList(v)); err != nil {
		return fmt.Errorf("the checkpoint of %d records has no good signature of the witness %s", c.Size, v.Name())
	}
	return nil
}

// keptHeader starts a kept checkpoint's file; the key follows.
const keptHeader = "bulkhead-audit-checkpoint 1 "

// Keep is a file that holds a checkpoint with the key to check it, and with that all
// it takes to check the log later.
func Keep(c *Checkpoint, key string) []byte {
	return append([]byte(keptHeader+key+"\n"), c.Note...)
}

// ParseKept reads what Keep made.
func ParseKept(b []byte) (c *Checkpoint, key string, err error) {
	head, rest, _ := bytes.Cut(b, []byte("\n"))
	key, ok := strings.CutPrefix(string(head), keptHeader)
	if !ok {
		return nil, "", errors.New(`this is no kept checkpoint; "bulkhead audit checkpoint > FILE" makes one`)
	}
	c, err = ParseCheckpoint(rest, key)
	return c, key, err
}
