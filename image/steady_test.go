package image

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bulkhead/fault"
)

// drip is a body that sends n bytes every so often, for ever.
type drip struct {
	ctx   context.Context
	every time.Duration
	n     int
}

func (d drip) Read(p []byte) (int, error) {
	select {
	case <-time.After(d.every):
		return min(d.n, len(p)), nil
	case <-d.ctx.Done():
		return 0, d.ctx.Err()
	}
}

func (d drip) Close() error { return nil }

// dripper answers every request with a drip.
type dripper struct {
	every time.Duration
	n     int
}

func (d dripper) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Body: drip{req.Context(), d.every, d.n}}, nil
}

// TestSlowRegistriesAreGivenUp: a registry that stalls or drips is given up within a
// minute or two; one that is merely slow, or read slowly, is not.
func TestSlowRegistriesAreGivenUp(t *testing.T) {
	for _, tc := range []struct {
		name    string
		every   time.Duration
		n       int
		pause   time.Duration // of the reader, between two reads
		slow    bool
		atLeast int // bytes that must have come within ten minutes
	}{
		{"sends nothing", time.Hour, 1, 0, true, 0},
		{"a byte every twenty seconds", 20 * time.Second, 1, 0, true, 0},
		{"a kilobyte a second", time.Second, 1 << 10, 0, true, 0},
		{"32 kilobytes a second", time.Second, 32 << 10, 0, false, 16 << 20},
		{"a fast one that is read slowly", time.Millisecond, 1 << 10, 5 * time.Second, false, 100 << 10},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				req, _ := http.NewRequestWithContext(t.Context(), "GET", "https://registry.example.com/v2/x", nil)
				resp, err := steady{dripper{tc.every, tc.n}}.RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				began, got, buf := time.Now(), 0, make([]byte, 64<<10)
				for err == nil && time.Since(began) < 10*time.Minute {
					var n int
					n, err = resp.Body.Read(buf)
					got += n
					<-time.After(tc.pause) // of the test's own clock
				}
				if took := time.Since(began); tc.slow && took > rateWindow+stallLimit {
					t.Errorf("given up after %v", took)
				}
				if tc.slow != (err != nil) || tc.slow && (!fault.Is(err, fault.Unavailable) || !strings.Contains(fault.MessageOf(err), "registry.example.com sends too slowly")) || got < tc.atLeast {
					t.Errorf("%d bytes and %v", got, err)
				}
				if errors.Is(err, io.EOF) {
					t.Error("a slow end looks like a good one")
				}
			})
		})
	}
}
