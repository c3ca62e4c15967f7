package token

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/superfly/macaroon"
	"github.com/superfly/macaroon/resset"
)

// Bulkhead's own caveats. This is the registry of their numbers: the next one takes
// the next number, and none is ever used again. They start 256 behind the first number
// that is free for all (2^48), because the library's test vectors use those.
const (
	CavSession         = macaroon.CavMinUserDefined + 256 + iota // of a live session only
	CavFromAddress                                               // from certain networks only
	CavAppNames                                                  // certain apps only, by name
	CavForSession                                                // in tickets: whose session discharges it
	CavPlatformMetrics                                           // the platform's metrics and nothing else
)

func init() {
	macaroon.RegisterCaveatType(&Session{})
	macaroon.RegisterCaveatType(&FromAddress{})
	macaroon.RegisterCaveatType(&AppNames{})
	macaroon.RegisterCaveatType(&ForSession{})
	macaroon.RegisterCaveatType(&PlatformMetrics{})
}

// Session holds a token to a session of single sign-on: it ends with it. Discharges carry it.
type Session struct {
	ID string `json:"id"`
}

// CaveatType is the registered number.
func (c *Session) CaveatType() macaroon.CaveatType { return CavSession }

// Name is for JSON and people.
func (c *Session) Name() string { return "BulkheadSession" }

// Prohibits refuses unless the Access says that the session lives, now.
func (c *Session) Prohibits(a macaroon.Access) error {
	if s, ok := a.(interface{ SessionLives(id string) bool }); ok && c.ID != "" && s.SessionLives(c.ID) {
		return nil
	}
	return refuse(SessionEnded, "the session that this token belongs to is over; log in again")
}

// FromAddress holds a token to networks that it may be used from.
type FromAddress struct {
	Networks []string `json:"networks"`
}

// CaveatType is the registered number.
func (c *FromAddress) CaveatType() macaroon.CaveatType { return CavFromAddress }

// Name is for JSON and people.
func (c *FromAddress) Name() string { return "BulkheadFromAddress" }

// Prohibits refuses a request from an address outside every network, or from one that
// is not known.
func (c *FromAddress) Prohibits(a macaroon.Access) error {
	f, ok := a.(interface{ FromAddr() netip.Addr })
	if !ok || !f.FromAddr().IsValid() {
		return fmt.Errorf("%w: the address that it is used from is not known", macaroon.ErrInvalidAccess)
	}
	from := f.FromAddr().Unmap()
	for _, text := range c.Networks {
		n, err := ParseNetwork(text)
		if err != nil {
			return fmt.Errorf("%w: %w", macaroon.ErrBadCaveat, err)
		}
		if n.Contains(from) {
			return nil
		}
	}
	return fmt.Errorf("%w address %s (only %v)", resset.ErrUnauthorizedForResource, from, c.Networks)
}

// AppNames holds a token to apps of certain names: what narrows a token offline, where nobody
// knows the apps' numbers. Another app that gets the name later is meant too.
type AppNames struct {
	Names []string `json:"names"`
}

// CaveatType is the registered number.
func (c *AppNames) CaveatType() macaroon.CaveatType { return CavAppNames }

// Name is for JSON and people.
func (c *AppNames) Name() string { return "BulkheadAppNames" }

// Prohibits refuses what is about another app, or about none.
func (c *AppNames) Prohibits(a macaroon.Access) error {
	f, ok := a.(interface{ GetAppName() string })
	if !ok {
		return fmt.Errorf("%w: it is not known which app it is about", macaroon.ErrInvalidAccess)
	}
	name := f.GetAppName()
	if name == "" {
		return fmt.Errorf("%w app", resset.ErrResourceUnspecified)
	}
	if !slices.Contains(c.Names, name) {
		return fmt.Errorf("%w app %s (only %v)", resset.ErrUnauthorizedForResource, name, c.Names)
	}
	return nil
}

// PlatformMetrics holds a token to reading the metrics of the whole platform.
type PlatformMetrics struct{}

// CaveatType is the registered number.
func (c *PlatformMetrics) CaveatType() macaroon.CaveatType { return CavPlatformMetrics }

// Name is for JSON and people.
func (c *PlatformMetrics) Name() string { return "BulkheadPlatformMetrics" }

// Prohibits refuses everything but reading the platform's metrics.
func (c *PlatformMetrics) Prohibits(a macaroon.Access) error {
	if p, ok := a.(interface{ IsPlatformMetrics() bool }); ok && p.IsPlatformMetrics() {
		return nil
	}
	return fmt.Errorf("%w: only the platform's metrics", resset.ErrUnauthorizedForResource)
}

// ParseNetwork reads a network ("10.0.0.0/8") or a single address.
func ParseNetwork(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		a = a.Unmap().WithZone("")
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	n, err := netip.ParsePrefix(text)
	if err != nil || n.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is neither an address nor a network such as 10.0.0.0/8", text)
	}
	return n.Masked(), nil
}
