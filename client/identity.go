package client

import (
	"context"
	"net/http"
	"strings"

	"bulkhead/key"
)

// ClaimPrefix starts every one-time token: the installation's, and those of invitations.
const ClaimPrefix = "bh_"

// IsClaim reports whether a token is one that Claim spends.
func IsClaim(token string) bool { return strings.HasPrefix(token, ClaimPrefix) }

// User is what the API says of a user.
type User struct {
	ID        key.UserID `json:"id"`
	Name      string     `json:"name"`
	Email     string     `json:"email,omitempty"`
	Org       string     `json:"sso_organization,omitempty"` // whose identity provider vouched for the user
	Operator  bool       `json:"operator"`
	CreatedAt string     `json:"created_at"`
}

// Claimed is what a one-time token was spent for.
type Claimed struct {
	User    User   `json:"user"`
	Org     string `json:"organization"`
	Role    string `json:"role,omitempty"`
	Token   string `json:"token"` // the user's own; shown this once
	Expires string `json:"token_expires_at"`
}

// Claim spends the one-time token that the Client was made with: its bearer becomes the
// user of that name.
func (c *Client) Claim(ctx context.Context, name string) (Claimed, error) {
	var out Claimed
	err := c.do(ctx, call{method: http.MethodPost, path: []string{"claim"}, in: map[string]string{"name": name}, out: &out})
	return out, err
}

// Self is who the Client's token stands for.
type Self struct {
	User
	Organizations []Membership `json:"organizations"`
	Token         *struct {
		ID        key.TokenID `json:"id"`
		Kind      string      `json:"kind"`
		Org       string      `json:"organization,omitempty"`
		ExpiresAt string      `json:"expires_at"`
	} `json:"token,omitempty"`
}

// Membership is what a user is to an organization, or to single apps of it.
type Membership struct {
	Org  string                 `json:"organization"`
	Role string                 `json:"role,omitempty"`
	Apps map[key.AppName]string `json:"apps,omitempty"`
}

// Self asks who the token stands for.
func (c *Client) Self(ctx context.Context) (Self, error) {
	var out Self
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"user"}, out: &out})
	return out, err
}

// Users lists the users of the cluster; for operators.
func (c *Client) Users(ctx context.Context) ([]User, error) {
	var out struct {
		Users []User `json:"users"`
	}
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"users"}, out: &out})
	return out.Users, err
}

// SetOperator makes a user an operator of the cluster, or ends that.
func (c *Client) SetOperator(ctx context.Context, name string, operator bool) (User, error) {
	var out User
	err := c.do(ctx, call{method: http.MethodPatch, path: []string{"users", name}, in: map[string]bool{"operator": operator}, out: &out})
	return out, err
}

// DeleteUser removes a user from the cluster, with their tokens.
func (c *Client) DeleteUser(ctx context.Context, name string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: []string{"users", name}})
}

// Organization is what the API says of an organization.
type Organization struct {
	Slug      string `json:"slug"`
	Name      string `json:"name"`
	Apps      int    `json:"app_count"`
	Members   int    `json:"member_count"`
	CreatedAt string `json:"created_at"`
}

// Orgs lists the organizations that the caller has to do with.
func (c *Client) Orgs(ctx context.Context) ([]Organization, error) {
	var out struct {
		Organizations []Organization `json:"organizations"`
	}
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"orgs"}, out: &out})
	return out.Organizations, err
}

// CreateOrg makes an organization; the caller is its owner.
func (c *Client) CreateOrg(ctx context.Context, slug, name string) (Organization, error) {
	var out Organization
	err := c.do(ctx, call{method: http.MethodPost, path: []string{"orgs"}, in: map[string]string{"slug": slug, "name": name}, out: &out})
	return out, err
}

// DeleteOrg removes an organization without apps.
func (c *Client) DeleteOrg(ctx context.Context, slug string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: []string{"orgs", slug}})
}

// Roles is a role in an organization, and roles for single apps of it.
type Roles struct {
	Role string                 `json:"role,omitempty"`
	Apps map[key.AppName]string `json:"apps,omitempty"`
}

// Member is a member of an organization.
type Member struct {
	User User `json:"user"`
	Roles
	Source string `json:"source,omitempty"`
	Since  string `json:"since"`
}

// Members lists an organization's members.
func (c *Client) Members(ctx context.Context, org string) ([]Member, error) {
	var out struct {
		Members []Member `json:"members"`
	}
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"orgs", org, "members"}, out: &out})
	return out.Members, err
}

// SetMember replaces a member's roles.
func (c *Client) SetMember(ctx context.Context, org, name string, r Roles) (Member, error) {
	var out Member
	err := c.do(ctx, call{method: http.MethodPut, path: []string{"orgs", org, "members", name}, in: r, out: &out})
	return out, err
}

// RemoveMember ends a membership, with the member's tokens for the organization.
func (c *Client) RemoveMember(ctx context.Context, org, name string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: []string{"orgs", org, "members", name}})
}

// Invitation is an invitation. Token is set when it was just made, and never again.
type Invitation struct {
	ID   string `json:"id"`
	Org  string `json:"organization"`
	Name string `json:"name,omitempty"`
	Roles
	By        string `json:"by"`
	ExpiresAt string `json:"expires_at"`
	Token     string `json:"token,omitempty"`
}

// Invite makes a one-time token whose bearer becomes a member. name, if set, is the only
// user name it is good for; expiry is a Go duration, empty for the default.
func (c *Client) Invite(ctx context.Context, org, name string, r Roles, expiry string) (Invitation, error) {
	in := struct {
		Roles
		Name   string `json:"name,omitempty"`
		Expiry string `json:"expiry,omitempty"`
	}{r, name, expiry}
	var out Invitation
	err := c.do(ctx, call{method: http.MethodPost, path: []string{"orgs", org, "invitations"}, in: in, out: &out})
	return out, err
}

// Invitations lists those that nobody has accepted yet.
func (c *Client) Invitations(ctx context.Context, org string) ([]Invitation, error) {
	var out struct {
		Invitations []Invitation `json:"invitations"`
	}
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"orgs", org, "invitations"}, out: &out})
	return out.Invitations, err
}

// Uninvite takes an invitation back.
func (c *Client) Uninvite(ctx context.Context, org, id string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: []string{"orgs", org, "invitations", id}})
}

// AcceptInvitation makes the caller, who is a user already, a member.
func (c *Client) AcceptInvitation(ctx context.Context, token string) (Member, error) {
	var out Member
	err := c.do(ctx, call{method: http.MethodPost, path: []string{"invitations", "accept"}, in: map[string]string{"token": token}, out: &out})
	return out, err
}

// Domain is an e-mail domain, and the organization that vouches for its addresses.
type Domain struct {
	Domain string `json:"domain"`
	Org    string `json:"organization"`
	By     string `json:"granted_by"`
	At     string `json:"granted_at"`
}

// Domains lists the e-mail domains that were granted.
func (c *Client) Domains(ctx context.Context) ([]Domain, error) {
	var out struct {
		Domains []Domain `json:"domains"`
	}
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"platform", "domains"}, out: &out})
	return out.Domains, err
}

// GrantDomain has an organization vouch for the addresses of a domain.
func (c *Client) GrantDomain(ctx context.Context, domain, org string) (Domain, error) {
	var out Domain
	err := c.do(ctx, call{method: http.MethodPut, path: []string{"platform", "domains", domain}, in: map[string]string{"organization": org}, out: &out})
	return out, err
}

// WithdrawDomain ends that.
func (c *Client) WithdrawDomain(ctx context.Context, domain string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: []string{"platform", "domains", domain}})
}
