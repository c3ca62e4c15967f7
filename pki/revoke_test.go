package pki_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"

	"bulkhead/pki"
	"bulkhead/pki/pkitest"
)

// TestRevokedIsNotForgotten: a role that is restarted while the controller is away still
// refuses who was removed, and who was taken back is not refused for good.
func TestRevokedIsNotForgotten(t *testing.T) {
	ca, file := newCA(t, "c-1", "apps.test"), filepath.Join(t.TempDir(), "identity.pem")
	log := slog.New(slog.DiscardHandler)
	edge := pkitest.Identity(t, ca, pki.ID{Cluster: "c-1", Role: "edge", Node: "n2"})
	open := func() *pki.Identity {
		i, err := pki.OpenIdentity(t.Context(), file, pkitest.Signer(ca, pki.ID{Cluster: "c-1", Role: "worker", Node: "n1"}), log)
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	i := open()
	near, far := net.Pipe()
	i.Track(edge.ID(), near, near)
	i.SetRevoked([]pki.Revocation{{Node: "n3"}, {Node: "n2", Role: "worker"}})
	if i.Revoked(edge.ID()) {
		t.Error("an edge is revoked with its node's worker")
	}
	i.SetRevoked([]pki.Revocation{{Node: "n3"}, {Node: "n2"}})
	if _, err := far.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is open")
	}
	i.Close()
	i = open()
	if !i.Revoked(edge.ID()) || !i.Revoked(pki.ID{Cluster: "c-1", Role: "gateway", Node: "n3"}) || i.Revoked(i.ID()) {
		t.Error("after a restart it is forgotten")
	}
	if serr, cerr := handshake(t, edge.ServerTLS(), i.ClientTLS("edge", "n2")); cerr == nil {
		t.Errorf("a removed node is called: %v", serr)
	}
	i.SetRevoked(nil)
	i.Close()
	if i = open(); i.Revoked(edge.ID()) {
		t.Error("one that was taken back is still refused")
	}
	i.Close()
	// A list that cannot be read keeps nobody from starting.
	if err := os.WriteFile(file+".revoked", []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	away := func(context.Context, []byte) ([][]byte, []byte, error) { return nil, nil, errors.New("away") }
	j, err := pki.OpenIdentity(t.Context(), file, away, log)
	if err != nil {
		t.Fatal(err)
	}
	j.Close()
}
