package pki

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"bulkhead/fault"
	"bulkhead/key"
)

// JoinToken is what an operator takes to a new node: where the cluster is, how to know it,
// and a secret that is good once, for one role, for minutes.
type JoinToken struct {
	Cluster string   `json:"c"`
	API     string   `json:"a"` // https://api.<domain>[:port]
	Pin     string   `json:"p"` // of the API's key
	ID      string   `json:"i"` // of the token, no secret
	Secret  string   `json:"s"`
	Role    string   `json:"r"`
	Node    key.Node `json:"n,omitempty"` // the only name it is good for; empty: any new one
}

// joinPrefix starts every join token, so that scanners for leaked secrets know it.
const joinPrefix = "bhj_"

// String is the token as people carry it.
func (t JoinToken) String() string {
	b, _ := json.Marshal(t)
	return joinPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// ParseJoinToken is the reverse of String.
func ParseJoinToken(s string) (JoinToken, error) {
	var t JoinToken
	rest, ok := strings.CutPrefix(strings.TrimSpace(s), joinPrefix)
	if !ok {
		return t, fault.New(fault.Invalid, "a join token begins with %s; \"bulkhead node token\" makes one", joinPrefix)
	}
	b, err := base64.RawURLEncoding.DecodeString(rest)
	if err == nil {
		err = json.Unmarshal(b, &t)
	}
	if err != nil || t.Cluster == "" || t.API == "" || t.Pin == "" || t.ID == "" || t.Secret == "" || t.Role == "" {
		return t, fault.New(fault.Invalid, "the join token is not whole; copy it again")
	}
	return t, nil
}

// JoinRequest is what a node sends to POST /v1/join of the API.
type JoinRequest struct {
	Cluster string `json:"cluster"`
	ID      string `json:"id"`
	Secret  string `json:"secret"`
	Role    string `json:"role"`
	Node    string `json:"node"`
	CSR     []byte `json:"csr"` // DER
}

// JoinAnswer is what comes back: the certificate, and where the cluster port is.
type JoinAnswer struct {
	Chain       [][]byte `json:"chain"` // DER, leaf first
	Roots       []byte   `json:"roots"` // DER, one after the other
	Controller  key.Node `json:"controller"`
	ClusterPort int      `json:"cluster_port"`
}

// Joiner is the Signer of a node that joins: it is good for one certificate. address is
// where to connect to, host:port, if the API's name leads elsewhere; got is told the answer.
func Joiner(t JoinToken, node key.Node, address string, got func(JoinAnswer)) Signer {
	return func(ctx context.Context, csr []byte) ([][]byte, []byte, error) {
		body, err := json.Marshal(JoinRequest{Cluster: t.Cluster, ID: t.ID, Secret: t.Secret, Role: t.Role, Node: string(node), CSR: csr})
		if err != nil {
			return nil, nil, err
		}
		client, err := pinned(t, address)
		if err != nil {
			return nil, nil, err
		}
		defer client.CloseIdleConnections()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.API+"/v1/join", bytes.NewReader(body))
		if err != nil {
			return nil, nil, err
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := client.Do(req)
		if err != nil {
			return nil, nil, fault.Wrap(fault.Unavailable, err, "the cluster at %s does not answer: %v", t.API, err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<18))
		if err != nil {
			return nil, nil, err
		}
		if resp.StatusCode != http.StatusOK {
			var e struct{ Error string }
			json.Unmarshal(b, &e)
			return nil, nil, fault.New(fault.Denied, "the cluster does not let this node join: %s (%s)", e.Error, resp.Status)
		}
		var out JoinAnswer
		if err := json.Unmarshal(b, &out); err != nil {
			return nil, nil, fmt.Errorf("the cluster's answer: %w", err)
		}
		if got != nil {
			got(out)
		}
		return out.Chain, out.Roots, nil
	}
}

// pinned is a client that speaks to who holds the pinned key, and to nobody else.
func pinned(t JoinToken, address string) (*http.Client, error) {
	u, err := url.Parse(t.API)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fault.New(fault.Invalid, "the join token names no https address but %q", t.API)
	}
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: u.Hostname(),
		InsecureSkipVerify: true, // the pin below says more than any authority
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 || Pin(cs.PeerCertificates[0]) != t.Pin {
				return fault.New(fault.Unauthenticated, "%s does not hold the key that the join token pins", u.Host)
			}
			return nil
		},
	}
	return &http.Client{
		Timeout:       30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{TLSClientConfig: conf, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if address != "" {
				addr = address
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		}},
	}, nil
}

// JoinOnce gets the certificate that a join token is good for, and keeps it in file. Unlike
// OpenIdentity it asks once: a token that was refused is not tried again.
func JoinOnce(ctx context.Context, file string, joiner Signer, log *slog.Logger) (*Identity, error) {
	i := newIdentity(file, joiner, log)
	if err := i.renew(ctx); err != nil {
		return nil, err
	}
	if i.unkept != nil {
		return nil, fmt.Errorf("the certificate cannot be kept in %s; mend that and join again with another token: %w", file, i.unkept())
	}
	i.begin(false)
	return i, nil
}
