// Package registrytest runs a real registry for tests of what talks to one.
package registrytest

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"bulkhead/fault"
	"bulkhead/registry"
)

// Token is the token that Serve's registry knows; it may do everything.
const Token = "bh_registrytest"

// Server is a registry that listens on loopback over plain HTTP until its test ends.
type Server struct {
	*registry.Registry
	Addr string // host:port
	http *httptest.Server
}

// Serve starts a registry in a directory of its own.
func Serve(t testing.TB) *Server {
	t.Helper()
	return ServeConfig(t, registry.Config{Dir: t.TempDir()})
}

// ServeConfig starts a registry with the given configuration; Authorize, Log and
// MinFree get defaults that suit a test.
func ServeConfig(t testing.TB, cfg registry.Config) *Server {
	t.Helper()
	if cfg.Authorize == nil {
		cfg.Authorize = Authorize
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.MinFree == 0 {
		cfg.MinFree = -1
	}
	r, err := registry.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Registry: r, http: httptest.NewServer(r)}
	s.Addr = strings.TrimPrefix(s.http.URL, "http://")
	t.Cleanup(s.Stop)
	return s
}

// Stop ends the server and closes the registry; a new one may open its directory.
func (s *Server) Stop() {
	s.http.CloseClientConnections()
	s.http.Close()
	s.Registry.Close()
}

// Authorize allows everything to Token and nothing to others.
func Authorize(ctx context.Context, token, repo string, push bool) error {
	if token != Token {
		return fault.New(fault.Unauthenticated, "the token is not valid; log in again")
	}
	return nil
}

// Auth is what go-containerregistry's remote package needs to log in.
func (s *Server) Auth() remote.Option {
	return remote.WithAuth(&authn.Basic{Username: "any", Password: Token})
}

// Ref parses a reference such as "app:tag" in this registry.
func (s *Server) Ref(t testing.TB, ref string) name.Reference {
	t.Helper()
	r, err := name.ParseReference(s.Addr+"/"+ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Push pushes an image.
func (s *Server) Push(t testing.TB, ref string, img v1.Image) {
	t.Helper()
	if err := remote.Write(s.Ref(t, ref), img, s.Auth()); err != nil {
		t.Fatal(err)
	}
}
