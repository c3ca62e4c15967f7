// Package secrettest holds what every Keeper and every Sealer of package secret must do,
// and a key management service to try them with.
package secrettest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"testing"

	"bulkhead/secret"
)

// Service is a key management service in this process.
type Service struct {
	Socket string
	Down   atomic.Bool // it refuses
	Asked  atomic.Int64
}

// NewService starts a service; it ends with the test. Its key lives in it alone.
func NewService(t testing.TB) *Service {
	t.Helper()
	s := &Service{Socket: filepath.Join(t.TempDir(), "kms")}
	key := secret.NewAppKey()
	answer := func(f func([]byte) ([]byte, error)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			s.Asked.Add(1)
			b, err := io.ReadAll(io.LimitReader(r.Body, secret.MaxKeyFile))
			if err == nil && s.Down.Load() {
				err = errors.New("the service is sealed itself")
			}
			if err == nil {
				b, err = f(b)
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusForbidden)
				return
			}
			w.Write(b)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/seal", answer(func(b []byte) ([]byte, error) { return secret.Seal(key, b, nil), nil }))
	mux.HandleFunc("POST /v1/unseal", answer(func(b []byte) ([]byte, error) { return secret.Open(key, b, nil) }))
	l, err := net.Listen("unix", s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return s
}

// RunSealer is what a Sealer must do.
func RunSealer(t *testing.T, s secret.Sealer) {
	ctx := context.Background()
	plain := []byte("the cluster key")
	a, err := s.Seal(ctx, plain)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(a, plain) {
		t.Error("what is sealed holds the plaintext")
	}
	if b, err := s.Unseal(ctx, a); err != nil || !bytes.Equal(b, plain) {
		t.Errorf("unsealed: %q, %v", b, err)
	}
	a[len(a)/2] ^= 1
	if _, err := s.Unseal(ctx, a); err == nil {
		t.Error("a flipped bit went unseen")
	}
	if s.String() == "" {
		t.Error("it has no name for errors")
	}
}

// RunKeeper is what a Keeper must do. open returns the same keeper anew, as a process that
// was started again has it; given are the keys that it holds at first, nil for none.
func RunKeeper(t *testing.T, open func() secret.Keeper, given []secret.Key) {
	ctx := context.Background()
	same := func(got []secret.Key, want ...secret.Key) bool {
		return bytes.Equal(secret.FormatKeys(got), secret.FormatKeys(want))
	}
	got, err := open().Load(ctx)
	if given == nil && !errors.Is(err, secret.ErrNoKey) {
		t.Fatalf("an empty keeper: %v", err)
	}
	if given != nil && (err != nil || !same(got, given...)) {
		t.Fatalf("the keys are not those that were given: %v", err)
	}
	a, b := secret.NewKey(), secret.NewKey()
	err = open().Save(ctx, []secret.Key{b, a})
	if errors.Is(err, secret.ErrReadOnly) {
		if got, err := open().Load(ctx); given == nil || err != nil || !same(got, given...) {
			t.Errorf("a keeper that cannot save changed: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if got, err := open().Load(ctx); err != nil || !same(got, b, a) {
		t.Errorf("two keys, the newest first: %v", err)
	}
	if err := open().Save(ctx, []secret.Key{b}); err != nil {
		t.Fatal(err)
	}
	if got, err := open().Load(ctx); err != nil || !same(got, b) {
		t.Errorf("the newest alone: %v", err)
	}
}
