package auditlog

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"bulkhead/fault"
)

// OpenKey reads the key that signs checkpoints, or makes it, in a file of mode 0600. It
// returns the signer and the verifier key, which is public. origin names the log in all
// its checkpoints for good; a key that was made keeps its own.
func OpenKey(path, origin string) (note.Signer, string, error) {
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		secret, public, err := note.GenerateKey(rand.Reader, origin)
		if err != nil {
			return nil, "", fmt.Errorf("make the audit log's key: %w", err)
		}
		b = []byte(secret + "\n" + public + "\n")
		if err := replaceFile(path, b); err != nil {
			return nil, "", fault.System(err, "the audit log's key %s cannot be written", path)
		}
	case err != nil:
		return nil, "", fault.System(err, "the audit log's key %s cannot be read", path)
	}
	secret, public, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	signer, err := note.NewSigner(secret)
	if err == nil {
		_, err = note.NewVerifier(public)
	}
	if err != nil {
		return nil, "", fmt.Errorf("%s: not the key of an audit log: it was cut short or overwritten; restore it from a backup", path)
	}
	return signer, public, nil
}
