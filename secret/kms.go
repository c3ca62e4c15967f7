package secret

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"bulkhead/fault"
)

// KMS is a Sealer behind a unix socket: whatever can encrypt with a key of its own, such
// as an agent of a key management service or of a TPM. It speaks HTTP:
//
//	POST /v1/seal     octets → 200, octets that only it can open
//	POST /v1/unseal   octets of a seal → 200, the octets that were sealed
//
// Anything but 200 is an error, and the body its sentence. Octets are at most MaxKeyFile.
// It is asked when the controller starts and when the cluster key is rotated.
type KMS struct{ Socket string }

// kmsLimit bounds a question, in which a service elsewhere may be asked.
const kmsLimit = 30 * time.Second

// String implements Sealer.
func (k KMS) String() string { return "the key management service at " + k.Socket }

// Seal implements Sealer.
func (k KMS) Seal(ctx context.Context, plaintext []byte) ([]byte, error) {
	return k.ask(ctx, "/v1/seal", plaintext)
}

// Unseal implements Sealer.
func (k KMS) Unseal(ctx context.Context, sealed []byte) ([]byte, error) {
	return k.ask(ctx, "/v1/unseal", sealed)
}

func (k KMS) ask(ctx context.Context, path string, body []byte) ([]byte, error) {
	client := &http.Client{Timeout: kmsLimit, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", k.Socket)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://kms"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, err := client.Do(req)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "%s does not answer; the cluster key cannot be opened without it", k)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, MaxKeyFile+1))
	switch {
	case err != nil:
		return nil, fault.Wrap(fault.Unavailable, err, "%s broke off its answer", k)
	case resp.StatusCode != http.StatusOK:
		return nil, fault.New(fault.Unavailable, "%s refuses with %s: %s", k, resp.Status, clip(strings.TrimSpace(string(b))))
	case len(b) == 0 || len(b) > MaxKeyFile:
		return nil, fault.New(fault.Internal, "%s answers %d bytes", k, len(b))
	}
	return b, nil
}
