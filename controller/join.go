package controller

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"bulkhead/api/internalpb"
	"bulkhead/api/rpc"
	"bulkhead/audit"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/pki"
	"bulkhead/role"
	"bulkhead/store"
)

// Bounds of a join token's life.
const (
	joinLife    = 10 * time.Minute
	maxJoinLife = time.Hour
	// keepJoin is how long a token that is used or over is remembered, so that the refusal
	// can say which it is.
	keepJoin = 24 * time.Hour
)

// joinToken is a token with which one node may become one role of the cluster. Its secret
// is with the operator; here is the hash.
type joinToken struct {
	ID        string    `json:"id"`
	Role      string    `json:"role"`
	Node      key.Node  `json:"node,omitempty"` // the only name; empty: any that is new
	SHA256    []byte    `json:"sha256"`
	By        string    `json:"by"`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at"`
	UsedAt    time.Time `json:"used_at,omitzero"`
	UsedBy    key.Node  `json:"used_by,omitempty"`
}

// joined is a role of a node that joined. Key and Previous are pins of the keys it last got
// certificates for: one that is copied is found out when either of the two renews.
type joined struct {
	Node     key.Node  `json:"node"`
	Role     string    `json:"role"`
	Token    string    `json:"token"` // id of the token
	At       time.Time `json:"at"`
	Key      string    `json:"key"`
	Previous string    `json:"previous,omitempty"`
}

const (
	prefixJoin   = "/join/"
	prefixJoined = "/joined/"
)

func joinKey(id string) string                 { return prefixJoin + id }
func joinedOf(n key.Node) string               { return prefixJoined + string(n) + "/" }
func joinedKey(n key.Node, role string) string { return joinedOf(n) + role }

// JoinToken is the answer to POST /v1/platform/join_tokens.
type JoinToken struct {
	Token     string   `json:"token"`
	ID        string   `json:"id"`
	Role      string   `json:"role"`
	Node      key.Node `json:"node,omitempty"`
	ExpiresAt string   `json:"expires_at"`
}

// makeJoinToken makes a token. It is in the answer and nowhere else.
func (c *Controller) makeJoinToken(r *call) (int, any, error) {
	var in struct {
		Role      string `json:"role"`
		Node      string `json:"node"`
		ExpiresIn int    `json:"expires_in"` // seconds
	}
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	life := time.Duration(in.ExpiresIn) * time.Second
	switch {
	case in.Role != role.Worker && in.Role != role.Edge:
		return 0, nil, fault.New(fault.Invalid, "role %q: a node joins as worker or edge", fault.Clip(in.Role))
	case in.ExpiresIn < 0 || life > maxJoinLife:
		return 0, nil, fault.New(fault.Invalid, "expires_in %d: a join token lives at most %d seconds", in.ExpiresIn, int(maxJoinLife.Seconds()))
	case c.clusterPort.Load() == 0:
		return 0, nil, fault.New(fault.Precondition, "failed_precondition: this controller has no cluster port, and a node that joins could not reach it; start bulkheadd with --cluster-addr")
	case life == 0:
		life = joinLife
	}
	t := joinToken{ID: "j" + string(key.NewInstanceID()), Role: in.Role, By: r.who.Name, CreatedAt: now(), ExpiresAt: now().Add(life)}
	if in.Node != "" {
		n, err := key.ParseNode(in.Node)
		if err != nil {
			return 0, nil, err
		}
		if n == c.cfg.Role.Node {
			return 0, nil, fault.New(fault.Invalid, "node %q is this controller's own", n)
		}
		t.Node = n
	}
	var b [32]byte
	rand.Read(b[:])
	secret := base64.RawURLEncoding.EncodeToString(b[:])
	sum := sha256.Sum256([]byte(secret))
	t.SHA256 = sum[:]
	ops := []store.Op{record.Put(joinKey(t.ID), t)}
	old, _, err := record.List[joinToken](r.Context(), c.store, prefixJoin)
	if err != nil {
		return 0, nil, err
	}
	for _, o := range old[:min(len(old), 50)] {
		if now().Sub(o.ExpiresAt) > keepJoin {
			ops = append(ops, store.Delete(joinKey(o.ID)))
		}
	}
	if _, err := c.store.Txn(r.Context(), []store.Cond{record.At(joinKey(t.ID), 0)}, ops); err != nil {
		return 0, nil, err
	}
	c.log.Info("join token made", "token", t.ID, "as", t.Role, "for", t.Node, "expires", stamp(t.ExpiresAt), "by", t.By)
	whole := pki.JoinToken{Cluster: c.cfg.Role.Cluster, API: "https://" + c.apiHost(), Pin: c.cert.pin(), ID: t.ID, Secret: secret, Role: t.Role, Node: t.Node}
	return http.StatusOK, JoinToken{Token: whole.String(), ID: t.ID, Role: t.Role, Node: t.Node, ExpiresAt: stamp(t.ExpiresAt)}, nil
}

// joinNode lets the bearer of a join token become a node. It asks for no other token.
func (c *Controller) joinNode(r *call) (int, any, error) {
	var in pki.JoinRequest
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	id, chain, roots, err := c.join(r.Context(), in)
	if c.noteJoin(r, in, err); err != nil {
		return 0, nil, err
	}
	c.log.Info("node joined", "id", id.String(), "token", in.ID, "from", r.RemoteAddr)
	return http.StatusOK, pki.JoinAnswer{Chain: chain, Roots: roots, Controller: c.cfg.Role.Node, ClusterPort: int(c.clusterPort.Load())}, nil
}

// errJoin is the refusal of a join token that is not known: it tells nothing of others.
var errJoin = fault.New(fault.Unauthenticated, "the join token is not good; \"bulkhead node token\" makes another")

// join checks a token, signs, and spends the token: in one transaction, so that of two who
// race one joins. A certificate is given away only after that.
func (c *Controller) join(ctx context.Context, in pki.JoinRequest) (id pki.ID, chain [][]byte, roots []byte, err error) {
	if in.Cluster != c.cfg.Role.Cluster {
		return id, nil, nil, fault.New(fault.Denied, "the join token is for cluster %q, this is %s", fault.Clip(in.Cluster), c.cfg.Role.Cluster)
	}
	if len(in.ID) > 40 || strings.ContainsAny(in.ID, "/") || in.ID == "" {
		return id, nil, nil, errJoin
	}
	t, rev, err := record.Get[joinToken](ctx, c.store, joinKey(in.ID))
	if err != nil {
		return id, nil, nil, err
	}
	sum := sha256.Sum256([]byte(in.Secret))
	if t == nil || subtle.ConstantTimeCompare(sum[:], t.SHA256) != 1 {
		return id, nil, nil, errJoin
	}
	n, err := key.ParseNode(in.Node)
	if err != nil {
		return id, nil, nil, err
	}
	switch {
	case !t.UsedAt.IsZero():
		return id, nil, nil, fault.New(fault.Denied, "the join token was used at %s by node %s; if that was not you, remove that node", stamp(t.UsedAt), t.UsedBy)
	case !now().Before(t.ExpiresAt):
		return id, nil, nil, fault.New(fault.Denied, "the join token expired at %s; \"bulkhead node token\" makes another", stamp(t.ExpiresAt))
	case in.Role != t.Role:
		return id, nil, nil, fault.New(fault.Denied, "the join token is for the role %s, not %q", t.Role, fault.Clip(in.Role))
	case t.Node != "" && n != t.Node:
		return id, nil, nil, fault.New(fault.Denied, "the join token is for node %s, not %s", t.Node, n)
	case n == c.cfg.Role.Node:
		return id, nil, nil, fault.New(fault.Denied, "node %s is the controller's own", n)
	}
	conds, err := c.mayBe(ctx, n, t)
	if err != nil {
		return id, nil, nil, err
	}
	id = pki.ID{Cluster: c.cfg.Role.Cluster, Role: t.Role, Node: n}
	if chain, roots, err = c.ca.IssueIdentity(in.CSR, id); err != nil {
		return id, nil, nil, err
	}
	pin, err := pinOf(chain[0])
	if err != nil {
		return id, nil, nil, err
	}
	t.UsedAt, t.UsedBy = now(), n
	_, err = c.store.Txn(ctx, append(conds, record.At(joinKey(t.ID), rev)), []store.Op{
		record.Put(joinKey(t.ID), t), record.Put(joinedKey(n, t.Role), joined{Node: n, Role: t.Role, Token: t.ID, At: t.UsedAt, Key: pin}),
	})
	if errors.Is(err, store.ErrChanged) {
		err = fault.New(fault.Denied, "the join token, or the name %s, was taken by somebody else at the same time", n)
	}
	return id, chain, roots, err
}

// mayBe refuses a name that is somebody's, and returns what must still hold when the token
// is spent. A token for any node is for one that nobody knows; one for a node by name lets
// that node join again, unless it was removed.
func (c *Controller) mayBe(ctx context.Context, n key.Node, t *joinToken) ([]store.Cond, error) {
	gone, grev, err := record.Get[record.Removal](ctx, c.store, record.RemovedKey(n))
	if err != nil {
		return nil, err
	}
	if gone != nil && !gone.Readmit {
		return nil, gone.Refusal()
	}
	_, jrev, err := record.Get[joined](ctx, c.store, joinedKey(n, t.Role))
	if err != nil {
		return nil, err
	}
	if t.Node == "" {
		h, _, err := record.Get[record.Host](ctx, c.store, record.HostKey(n))
		if err != nil {
			return nil, err
		}
		others, _, err := c.store.List(ctx, joinedOf(n))
		if err != nil {
			return nil, err
		}
		if h != nil || gone != nil || len(others) > 0 {
			return nil, fault.New(fault.Denied, "there is a node %s already; choose another name, or make a token for this node (--node %s)", n, n)
		}
	}
	return []store.Cond{record.At(record.RemovedKey(n), grev), record.At(joinedKey(n, t.Role), jrev)}, nil
}

func pinOf(der []byte) (string, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return "", err
	}
	return pki.Pin(cert), nil
}

// Renew implements internalpb.MembershipServer.
func (s membershipServer) Renew(ctx context.Context, in *internalpb.RenewRequest) (*internalpb.RenewResponse, error) {
	id, err := rpc.Peer(ctx)
	if err != nil {
		return nil, err
	}
	with, err := certificateOf(ctx)
	if err != nil {
		return nil, err
	}
	chain, roots, err := s.c.renew(ctx, id, pki.Pin(with), in.GetCsrDer())
	if s.c.noteRenewal(id, err); err != nil {
		return nil, err
	}
	return &internalpb.RenewResponse{ChainDer: chain, RootsDer: roots}, nil
}

func certificateOf(ctx context.Context) (*x509.Certificate, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, fault.New(fault.Unauthenticated, "the call has no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return nil, fault.New(fault.Unauthenticated, "the call has no certificate")
	}
	return info.State.PeerCertificates[0], nil
}

// renew signs again for a role of a node that joined. The key that it asks with is the one
// that it last got a certificate for, or, when an answer was lost, the one before. Another
// one is a copy: of two who hold one identity the second to renew is refused, whichever it
// is, and the operator reads of it.
func (c *Controller) renew(ctx context.Context, id pki.ID, with string, csr []byte) (chain [][]byte, roots []byte, err error) {
	if id.Node == c.cfg.Role.Node {
		return nil, nil, fault.New(fault.Denied, "roles of the controller's machine ask over the enroll socket")
	}
	if chain, roots, err = c.ca.IssueIdentity(csr, id); err != nil {
		return nil, nil, err
	}
	pin, err := pinOf(chain[0])
	if err != nil {
		return nil, nil, err
	}
	err = retry(ctx, func() error {
		j, rev, err := record.Get[joined](ctx, c.store, joinedKey(id.Node, id.Role))
		if err != nil {
			return err
		}
		switch {
		case j == nil:
			return fault.New(fault.Denied, "%s never joined with a token; \"bulkhead node token --node %s\" makes one", id, id.Node)
		case with == j.Key:
			j.Previous = j.Key
		case with != j.Previous:
			return fault.New(fault.Denied, "%s renews with a certificate that is not its newest: somebody else has renewed with a copy of it, or a backup was restored; remove the node, or let it join again with \"bulkhead node token --node %s\"", id, id.Node)
		}
		j.Key = pin
		_, err = c.store.Txn(ctx, []store.Cond{record.At(joinedKey(id.Node, id.Role), rev), record.At(record.RemovedKey(id.Node), 0)}, []store.Op{record.Put(joinedKey(id.Node, id.Role), j)})
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return chain, roots, nil
}

// noteJoin notes what came of somebody's wish to join: in the record of the call, or as a
// refusal.
func (c *Controller) noteJoin(r *call, in pki.JoinRequest, err error) {
	c.metrics.membership("join", err)
	who, target := "node "+fault.Clip(in.Node), "identity="+fault.Clip(in.Role)+"/"+fault.Clip(in.Node)
	if err == nil {
		if p := recordIn(r.Context()); p != nil {
			p.change(func(rec *audit.Record) { rec.Name, rec.Token, rec.Target = who, in.ID, target })
		}
		return
	}
	c.log.Warn("a node was refused to join", "as", fault.Clip(in.Role), "node", fault.Clip(in.Node), "token", fault.Clip(in.ID), "from", r.RemoteAddr, "err", err)
	rec := c.recordOf(r)
	rec.Result, rec.Code, rec.Token, rec.Target = audit.ResultOf(statusOf(err)), statusOf(err), fault.Clip(in.ID), target
	c.refusals.add(rec)
	r.pending = &callRecord{} // it has its record
}

// noteRenewal notes a renewal that was refused. One that was made is in the node's own
// record in the store.
func (c *Controller) noteRenewal(id pki.ID, err error) {
	c.metrics.membership("renew", err)
	if err == nil {
		return
	}
	c.log.Warn("a renewal was refused", "id", id.String(), "err", err)
	c.refusals.add(audit.Record{
		Name: "node " + string(id.Node), Action: "identity renewed", Target: "identity=" + id.Role + "/" + string(id.Node),
		Code: statusOf(err), Result: audit.ResultOf(statusOf(err)),
	})
}
