package fake

import (
	"io"
	"sync"
)

// failing ends a command one of whose writers fails.
type failing struct {
	cancel func()
	mu     sync.Mutex
	first  error
}

// on returns w, watched.
func (f *failing) on(w io.Writer) io.Writer { return &failingWriter{f, w} }

func (f *failing) err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.first
}

type failingWriter struct {
	f *failing
	w io.Writer
}

// Write implements io.Writer.
func (w *failingWriter) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	if err != nil {
		w.f.mu.Lock()
		if w.f.first == nil {
			w.f.first = err
		}
		w.f.mu.Unlock()
		w.f.cancel()
	}
	return n, err
}
