package client

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"bulkhead/fault"
)

// dischargePath is where this cluster discharges tokens that need a live session.
const dischargePath = "/aaa/v1"

// ThirdParty is the location of the third party, as it stands in tokens of this cluster.
func (c *Client) ThirdParty() string { return ThirdPartyOf(c.base) }

// ThirdPartyOf is ThirdParty of the cluster at an address of ParseURL.
func ThirdPartyOf(base *url.URL) string {
	return strings.TrimSuffix(base.String(), ":443") + dischargePath
}

// Discharge has the cluster answer a ticket, for the session of that secret.
func (c *Client) Discharge(ctx context.Context, ticket []byte, session string) (string, error) {
	var out struct {
		Discharge string `json:"discharge"`
	}
	in := map[string][]byte{"ticket": ticket}
	err := c.do(ctx, call{method: http.MethodPost, root: dischargePath, path: []string{".well-known", "macfly", "3p"}, in: in, out: &out, bearer: session})
	if err == nil && out.Discharge == "" {
		err = fault.New(fault.Internal, "%s answered no discharge", c.base.Host)
	}
	return out.Discharge, err
}

// NeedsDischarge reports whether a token was refused because a discharge is missing beside it,
// or too old.
func NeedsDischarge(err error) bool {
	var f *fault.Error
	return errors.As(err, &f) && f.Kind == fault.Unauthenticated && (f.Status == "no_discharge" || f.Status == "discharge_expired")
}
