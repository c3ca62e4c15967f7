package pki

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"slices"
	"sync"

	"bulkhead/fault"
	"bulkhead/key"
)

// Revocation takes the identities of a node away before they end: of one role, or of all
// when Role is empty.
type Revocation struct {
	Node key.Node `json:"node"`
	Role string   `json:"role,omitempty"`
}

func (r Revocation) covers(id ID) bool {
	return r.Node == id.Node && (r.Role == "" || r.Role == id.Role)
}

// revoked is what an Identity knows of revocations, and every connection it has, so that
// one that is revoked is cut and not only refused the next time.
type revoked struct {
	mu    sync.Mutex
	list  []Revocation
	conns map[ID]map[*trackedConn]struct{}
}

func (r *revoked) of(id ID) bool {
	return slices.ContainsFunc(r.list, func(x Revocation) bool { return x.covers(id) })
}

// SetRevoked replaces the list of what is revoked. Connections with those on it are closed
// when it returns. With OpenIdentity the list is kept beside the certificate: a role that
// is restarted while the controller is away does not forget it.
func (i *Identity) SetRevoked(list []Revocation) {
	r := &i.revoked
	r.mu.Lock()
	changed := !slices.Equal(r.list, list)
	r.list = slices.Clone(list)
	var cut []*trackedConn
	for id, conns := range r.conns {
		if r.of(id) {
			for c := range conns {
				cut = append(cut, c)
			}
		}
	}
	r.mu.Unlock()
	for _, c := range cut {
		// Below TLS, which would say good-bye first and wait for who does not read.
		c.raw.Close()
	}
	if changed && i.file != "" {
		if err := i.rememberRevoked(list); err != nil {
			i.log.Warn("what is revoked is not kept on disk", "err", err)
		}
	}
}

// Revoked reports whether an identity is revoked.
func (i *Identity) Revoked(id ID) bool {
	i.revoked.mu.Lock()
	defer i.revoked.mu.Unlock()
	return i.revoked.of(id)
}

// Track notes a connection with a peer, and the one below that carries it, until it is
// closed: a revocation closes it.
func (i *Identity) Track(peer ID, c, raw net.Conn) net.Conn {
	r := &i.revoked
	t := &trackedConn{Conn: c, raw: raw}
	t.forget = func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if delete(r.conns[peer], t); len(r.conns[peer]) == 0 {
			delete(r.conns, peer)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conns == nil {
		r.conns = map[ID]map[*trackedConn]struct{}{}
	}
	if r.conns[peer] == nil {
		r.conns[peer] = map[*trackedConn]struct{}{}
	}
	r.conns[peer][t] = struct{}{}
	return t
}

type trackedConn struct {
	net.Conn
	raw    net.Conn
	once   sync.Once
	forget func()
}

// Close implements net.Conn.
func (t *trackedConn) Close() error {
	t.once.Do(t.forget)
	return t.Conn.Close()
}

func (i *Identity) revokedFile() string { return i.file + ".revoked" }

func (i *Identity) rememberRevoked(list []Revocation) error {
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return writeFile(i.revokedFile(), append(b, '\n'), 0o600)
}

// recallRevoked reads the list of before. One that cannot be read is as none: the
// controller sends it as soon as it answers.
func (i *Identity) recallRevoked() {
	if i.file == "" {
		return
	}
	b, err := os.ReadFile(i.revokedFile())
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	if err == nil {
		err = json.Unmarshal(b, &i.revoked.list)
	}
	if err != nil {
		i.log.Warn("what is revoked cannot be read from disk", "file", i.revokedFile(), "err", err)
	}
}

// errRevoked is the refusal of a peer that is revoked.
func errRevoked(id ID) error {
	return fault.New(fault.Denied, "%s was removed from the cluster", id)
}
