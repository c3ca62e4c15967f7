package edge_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"

	"bulkhead/edge"
	"bulkhead/internal/h2spec"
	"bulkhead/pki"
)

// h2specKnown are the cases of h2spec that the edge does not pass, each with the
// reason. A case that begins to pass must leave the list.
var h2specKnown = map[string]string{
	"http2/6.5.3: Sends multiple values of SETTINGS_INITIAL_WINDOW_SIZE":                                            "net/http closes a connection whose SETTINGS names one setting twice",
	"http2/8.1.2.2: Sends a HEADERS frame that contains the connection-specific header field":                       "net/http answers 400 instead of resetting the stream",
	"http2/8.1.2.2: Sends a HEADERS frame that contains the TE header field with any value other than \"trailers\"": "net/http answers 400 instead of resetting the stream",
}

// h2specCases is how many cases the suite has.
const h2specCases = 145

// TestH2spec runs the conformance suite h2spec against the edge. The control runs a
// part of it through a proxy that swallows RST_STREAM frames: it must fail.
func TestH2spec(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	w.route("web", web(at(hello(t, "hello, this is a body of more than a few bytes")))...)
	suite := h2spec.Build(t, filepath.Join("testdata", "h2spec"))
	type result struct {
		passed int
		failed []string
		err    error
	}
	run := func(addr, section string) (r result) {
		_, port, _ := net.SplitHostPort(addr)
		r.passed, r.failed, r.err = suite.Run(filepath.Join(t.TempDir(), "report.xml"), "web."+domain, port, section)
		return r
	}
	// The suite waits for frames for most of its time: its sections and the control do so at once.
	sections := []string{"generic", "http2/3", "http2/4", "http2/5", "http2/6", "http2/7", "http2/8", "hpack"}
	results := make([]result, len(sections))
	var control result
	var all sync.WaitGroup
	for i, section := range sections {
		all.Go(func() { results[i] = run(w.secure, section) })
	}
	unanswering := withoutResets(t, w)
	all.Go(func() { control = run(unanswering, "http2/5.1.1") })
	all.Wait()
	passed, failed := 0, []string(nil)
	for i, r := range results {
		if r.err != nil {
			t.Fatalf("%s: %v", sections[i], r.err)
		}
		passed, failed = passed+r.passed, append(failed, r.failed...)
	}
	t.Logf("%d passed, %d failed", passed, len(failed))
	if passed+len(failed) != h2specCases {
		t.Errorf("%d cases ran, want %d", passed+len(failed), h2specCases)
	}
	for _, f := range failed {
		if h2specKnown[f] == "" {
			t.Errorf("failed: %s", f)
		}
	}
	for f := range h2specKnown {
		if !slices.Contains(failed, f) {
			t.Errorf("passes now, take it off the list: %s", f)
		}
	}
	if control.err != nil || len(control.failed) == 0 {
		t.Errorf("control: a server that resets no stream passes (%v)", control.err)
	}
}

// withoutResets is a TLS proxy before the edge that drops RST_STREAM and GOAWAY on
// their way to the client.
func withoutResets(t *testing.T, w *world) string {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewCSR(k)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := w.ca.IssueServer(csr, "web."+domain)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{NextProtos: []string{"h2"}, Certificates: []tls.Certificate{{Certificate: chain, PrivateKey: k}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			cfg := w.tlsConfig("web")
			cfg.NextProtos = []string{"h2"}
			up, err := tls.Dial("tcp", w.secure, cfg)
			if err != nil {
				c.Close()
				return
			}
			go func() { io.Copy(up, c); up.Close() }()
			go func() {
				in, out := http2.NewFramer(nil, up), http2.NewFramer(c, nil)
				for {
					f, err := in.ReadFrame()
					if err != nil {
						return // and leaves the client waiting
					}
					h := f.Header()
					if h.Type == http2.FrameRSTStream || h.Type == http2.FrameGoAway {
						continue
					}
					_ = out.WriteRawFrame(h.Type, h.Flags, h.StreamID, payload(f))
				}
			}()
		}
	}()
	return l.Addr().String()
}

// payload is the body of the frames that an edge sends in answer to h2spec.
func payload(f http2.Frame) []byte {
	switch f := f.(type) {
	case *http2.DataFrame:
		return f.Data()
	case *http2.HeadersFrame:
		return f.HeaderBlockFragment()
	case *http2.PingFrame:
		return f.Data[:]
	case *http2.WindowUpdateFrame:
		return []byte{byte(f.Increment >> 24), byte(f.Increment >> 16), byte(f.Increment >> 8), byte(f.Increment)}
	case *http2.SettingsFrame:
		var b strings.Builder
		_ = f.ForeachSetting(func(s http2.Setting) error {
			b.Write([]byte{byte(s.ID >> 8), byte(s.ID), byte(s.Val >> 24), byte(s.Val >> 16), byte(s.Val >> 8), byte(s.Val)})
			return nil
		})
		return []byte(b.String())
	}
	return nil
}
