package pki

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"bulkhead/fault"
	"bulkhead/key"
)

// enrollRequest and enrollResponse are what passes over the enroll socket.
type enrollRequest struct {
	CSR []byte `json:"csr"` // DER
}

type enrollResponse struct {
	Chain [][]byte `json:"chain,omitempty"` // DER, leaf first
	Root  []byte   `json:"root,omitempty"`  // DER
	Error string   `json:"error,omitempty"`
}

// Enroller returns a Signer that asks the controller of the same machine over its
// enroll socket. The kernel vouches for both ends: for the caller by its user id,
// for the controller by the socket's owner, which is root.
func Enroller(socketPath string) Signer {
	client := &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", socketPath)
			},
		},
	}
	return func(ctx context.Context, csr []byte) ([][]byte, []byte, error) {
		body, err := json.Marshal(enrollRequest{CSR: csr})
		if err != nil {
			return nil, nil, err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://enroll/", bytes.NewReader(body))
		if err != nil {
			return nil, nil, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return nil, nil, fault.Wrap(fault.Unavailable, err, "the controller's enroll socket does not answer")
		}
		defer resp.Body.Close()
		var out enrollResponse
		if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<16)).Decode(&out); err != nil {
			return nil, nil, fmt.Errorf("read the controller's answer: %w", err)
		}
		if resp.StatusCode != http.StatusOK {
			return nil, nil, fault.New(fault.Denied, "the controller refuses a certificate: %s", out.Error)
		}
		return out.Chain, out.Root, nil
	}
}

// EnrollServer hands role certificates to the processes of the same machine. Who
// calls is known from the kernel (SO_PEERCRED), never from the request.
type EnrollServer struct {
	CA      *CA
	Cluster string
	Node    key.Node
	// Roles maps a user id to the role whose identity it gets; who is not in it gets none.
	Roles map[uint32]string
	// Refused, if set, is told of each user who gets none; it must not block.
	Refused func(uid uint32)
	Log     *slog.Logger
}

// Serve answers on l until ctx ends.
func (s *EnrollServer) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      10 * time.Second,
		MaxHeaderBytes:    8 << 10,
		ConnContext:       WithPeer,
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); ctx.Err() == nil {
		return err
	}
	return ctx.Err()
}

// ServeHTTP signs one certificate.
func (s *EnrollServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	status, out := s.enroll(r)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(out)
}

func (s *EnrollServer) enroll(r *http.Request) (int, enrollResponse) {
	peer, ok := PeerOf(r.Context())
	if !ok {
		return http.StatusForbidden, enrollResponse{Error: "the caller's user is unknown"}
	}
	role, ok := s.Roles[peer.UID]
	if !ok {
		s.Log.Warn("certificate refused: the user runs no role", "uid", peer.UID, "pid", peer.PID)
		if s.Refused != nil {
			s.Refused(peer.UID)
		}
		return http.StatusForbidden, enrollResponse{Error: fmt.Sprintf("user id %d runs no role of this node", peer.UID)}
	}
	var in enrollRequest
	if r.Method != http.MethodPost || json.NewDecoder(io.LimitReader(r.Body, 1<<14)).Decode(&in) != nil {
		return http.StatusBadRequest, enrollResponse{Error: "want a POST of {\"csr\": base64 of DER}"}
	}
	id := ID{Cluster: s.Cluster, Role: role, Node: s.Node}
	chain, root, err := s.CA.IssueIdentity(in.CSR, id)
	if err != nil {
		s.Log.Warn("certificate refused", "id", id.String(), "err", err)
		return http.StatusBadRequest, enrollResponse{Error: fault.MessageOf(err)}
	}
	s.Log.Info("certificate signed", "id", id.String(), "pid", peer.PID)
	return http.StatusOK, enrollResponse{Chain: chain, Root: root}
}
