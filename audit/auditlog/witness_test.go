package auditlog_test

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	f_note "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"

	"bulkhead/audit"
	"bulkhead/audit/auditlog"
	"bulkhead/internal/await"
	"bulkhead/notice"
)

// witness is a witness of C2SP tlog-witness: it co-signs a checkpoint of a log that it
// knows after it has checked that it extends the last one, and answers as the protocol
// says otherwise.
type witness struct {
	*httptest.Server
	logKey string
	signer note.Signer
	vkey   string

	mu     sync.Mutex
	down   bool
	last   *audit.Checkpoint
	signed int
}

func newWitness(t *testing.T, name, logKey string) *witness {
	t.Helper()
	secret, plain, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	vkey, err := f_note.VKeyToCosignatureV1(plain)
	if err == nil {
		w := &witness{logKey: logKey, vkey: vkey}
		if w.signer, err = f_note.NewSignerForCosignatureV1(secret); err == nil {
			w.Server = httptest.NewServer(http.HandlerFunc(w.add))
			t.Cleanup(w.Close)
			return w
		}
	}
	t.Fatal(err)
	return nil
}

func (w *witness) add(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down || r.URL.Path != "/add-checkpoint" {
		http.Error(rw, "down", http.StatusServiceUnavailable)
		return
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	head, cpRaw, ok := bytes.Cut(b, []byte("\n\n"))
	var old uint64
	lines := strings.Split(string(head), "\n")
	if _, serr := fmt.Sscanf(lines[0], "old %d", &old); err != nil || !ok || serr != nil {
		http.Error(rw, "malformed", http.StatusBadRequest)
		return
	}
	cp, err := audit.ParseCheckpoint(cpRaw, w.logKey)
	if err != nil {
		http.Error(rw, "unknown signature", http.StatusForbidden)
		return
	}
	known := uint64(0)
	if w.last != nil {
		known = w.last.Size
	}
	if old != known {
		rw.Header().Set("Content-Type", "text/x.tlog.size")
		rw.WriteHeader(http.StatusConflict)
		fmt.Fprintf(rw, "%d\n", known)
		return
	}
	var hashes [][]byte
	for _, l := range lines[1:] {
		h, _ := base64.StdEncoding.DecodeString(l)
		hashes = append(hashes, h)
	}
	if known > 0 {
		if err := proof.VerifyConsistency(rfc6962.DefaultHasher, known, cp.Size, hashes, w.last.Root, cp.Root); err != nil {
			http.Error(rw, "inconsistent", http.StatusUnprocessableEntity)
			return
		}
	}
	text, _, _ := bytes.Cut(cpRaw, []byte("\n\n"))
	signed, err := note.Sign(&note.Note{Text: string(text) + "\n"}, w.signer)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusInternalServerError)
		return
	}
	_, sig, _ := bytes.Cut(signed, []byte("\n\n"))
	rw.Write(sig)
	w.last, w.signed = cp, w.signed+1
}

func (w *witness) set(down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = down
}

// cosigned reports whether a checkpoint has the witness's signature.
func (w *witness) cosigned(cp *audit.Checkpoint) bool { return cp.Cosigned(w.vkey) == nil }

// TestWitness has a witness co-sign. One that is away is said, and stops nothing unless it
// is required: then changes are refused until it is back. One that knows the log does not
// sign for another history.
func TestWitness(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "audit")
	cfg := config(t, dir)
	w := newWitness(t, "witness.test", cfg.Key)
	var logged syncBuffer
	cfg.Log = slog.New(slog.NewTextHandler(&logged, nil))
	cfg.Board = notice.New(cfg.Log)
	cfg.Witnesses = []byte("witness w " + w.vkey + " " + w.URL + "\nquorum w\n")

	l := auditlog.Start(cfg)
	fill(t, l, 5)
	cosigned := func(n uint64) {
		t.Helper()
		var cp *audit.Checkpoint
		await.True(t, fmt.Sprintf("a checkpoint of %d records is co-signed", n), func() bool {
			cp = checkpoint(t, l, n)
			return w.cosigned(cp)
		})
		if len(cp.Others) != 1 || cp.Others[0] != "witness.test" {
			t.Errorf("the co-signature is not seen: %q", cp.Others)
		}
	}
	cosigned(5)
	forgedCosignatures(t, checkpoint(t, l, 5), w, cfg.Key)
	w.set(true)
	fill(t, l, 2)
	if cp := checkpoint(t, l, 7); w.cosigned(cp) {
		t.Error("a witness that is down co-signed")
	}
	await.True(t, "the missing witness is said", func() bool { return strings.Contains(logged.String(), "witnesses of the audit log are missing") })
	if err := l.Ready(); err != nil {
		t.Errorf("a witness that is not required stops changes: %v", err)
	}
	w.set(false)
	fill(t, l, 1)
	cosigned(8)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if r := verify(t, dir, cfg.Key, nil); len(r.Problems) > 0 {
		t.Errorf("with co-signatures: %q", r.Problems)
	}

	// Required, and away from the start: the log opens, and takes no change.
	w.set(true)
	defer auditlog.SetWitnessLag(50 * time.Millisecond)()
	cfg.WitnessRequired = true
	l = auditlog.Start(cfg)
	fill(t, l, 1) // what happened is written down all the same
	await.True(t, "changes are refused", func() bool { return l.Ready() != nil })
	w.set(false)
	await.True(t, "changes are taken again", func() bool { return l.Ready() == nil })
	cosigned(9)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}

	// Another history of the same key: the witness does not sign.
	before := w.signed
	cfg.Dir, cfg.WitnessRequired = filepath.Join(t.TempDir(), "forged"), false
	l = auditlog.Start(cfg)
	fill(t, l, 12)
	if cp := checkpoint(t, l, 12); w.cosigned(cp) {
		t.Error("a witness co-signed a log that was written anew")
	}
	if err := l.Close(); err != nil || w.signed != before {
		t.Errorf("%d co-signatures for another history, %v", w.signed-before, err)
	}
}

// forgedCosignatures changes every byte of a co-signature, and asks for another witness's.
func forgedCosignatures(t *testing.T, cp *audit.Checkpoint, w *witness, key string) {
	t.Helper()
	other := newWitness(t, "witness.test", key)
	if cp.Cosigned(other.vkey) == nil || cp.Cosigned("witness.test+00000000+AA") == nil {
		t.Error("another key's co-signature is believed")
	}
	at := bytes.LastIndex(cp.Note, []byte("witness.test "))
	line := cp.Note[at:]
	for i := range len(line) - 1 {
		forged := *cp
		forged.Note = bytes.Clone(cp.Note)
		forged.Note[at+i] ^= 1
		if forged.Cosigned(w.vkey) == nil {
			t.Errorf("byte %d of %q is changed, and the co-signature is believed", i, line)
		}
	}
}

// syncBuffer is a buffer for a log.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

// String is what was written.
func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
