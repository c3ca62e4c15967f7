package client

import (
	"context"
	"net/http"
	"net/url"

	"bulkhead/fault"
)

// App is what the API says of an app.
type App struct {
	ID           string          `json:"id,omitempty"`
	Name         string          `json:"name"`
	Network      string          `json:"network,omitempty"`
	Status       string          `json:"status,omitempty"`        // pending, deployed, deleting
	StatusReason string          `json:"status_reason,omitempty"` // what a deletion waits for
	MachineCount int             `json:"machine_count"`
	Organization AppOrganization `json:"organization"`
}

// AppOrganization is the organization that owns an App.
type AppOrganization struct {
	Name string `json:"name,omitempty"`
	Slug string `json:"slug,omitempty"`
}

// CreateApp makes an app in an organization; an empty org is the caller's only one. A name that is taken is fault.Unprocessable with status
// "name_taken".
func (c *Client) CreateApp(ctx context.Context, name, org, network string) error {
	in := struct {
		Name    string `json:"name"`
		Org     string `json:"org_slug,omitempty"`
		Network string `json:"network,omitempty"`
	}{name, org, network}
	return c.do(ctx, call{method: http.MethodPost, path: []string{"apps"}, in: in})
}

// Apps lists the apps of an organization; an empty org means all that the caller may see.
func (c *Client) Apps(ctx context.Context, org string) ([]App, error) {
	q := url.Values{}
	if org != "" {
		q.Set("org_slug", org)
	}
	var out struct {
		Apps []App `json:"apps"`
	}
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"apps"}, query: q, out: &out})
	return out.Apps, err
}

// App returns one app. An app that is not there is fault.NotFound.
func (c *Client) App(ctx context.Context, name string) (App, error) {
	var out App
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"apps", name}, out: &out})
	if fault.Is(err, fault.NotFound) {
		// The server's text differs between versions; the name is what helps.
		return out, fault.Wrap(fault.NotFound, nil, "there is no app %q on %s", name, c.base.Host)
	}
	return out, err
}

// DestroyApp destroys an app with everything it holds. It is answered before the
// Machines are gone.
func (c *Client) DestroyApp(ctx context.Context, name string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: []string{"apps", name}, query: url.Values{"force": {"true"}}})
}

// Region is one region of the cluster.
type Region struct {
	Code string `json:"code"`
	Name string `json:"name,omitempty"`
	// Architectures are the GOARCH values that the region's hosts run; empty where
	// the server does not say.
	Architectures []string `json:"architectures,omitempty"`
}

// Regions lists the cluster's regions. It is also the cheapest call that needs a
// valid token.
func (c *Client) Regions(ctx context.Context) ([]Region, error) {
	var out struct {
		Regions []Region `json:"regions"`
	}
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"platform", "regions"}, out: &out})
	return out.Regions, err
}
