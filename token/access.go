package token

import (
	"errors"
	"net/netip"
	"time"

	"github.com/superfly/macaroon"
	"github.com/superfly/macaroon/flyio"
	"github.com/superfly/macaroon/resset"
)

// Access is one thing that somebody wants to do: flyio.Access, and what Bulkhead's own
// caveats ask. It names one object; a child needs its parents, siblings exclude each other.
type Access struct {
	flyio.Access
	// AppName is the name of the app, where it is about one.
	AppName string
	// PlatformMetrics is set when it is about the metrics of the whole platform.
	PlatformMetrics bool
	// At is the time of the request; the zero value is now.
	At time.Time
	// From is the address that the request came from.
	From netip.Addr
	// Live says whether a session lives. nil: none does.
	Live func(session string) bool
}

// Now is the time that validity is judged by.
func (a *Access) Now() time.Time {
	if a.At.IsZero() {
		return time.Now()
	}
	return a.At
}

// GetAppName is what AppNames asks.
func (a *Access) GetAppName() string { return a.AppName }

// IsPlatformMetrics is what PlatformMetrics asks.
func (a *Access) IsPlatformMetrics() bool {
	return a.PlatformMetrics && a.Action == resset.ActionRead
}

// FromAddr is what FromAddress asks.
func (a *Access) FromAddr() netip.Addr { return a.From }

// SessionLives is what Session asks.
func (a *Access) SessionLives(id string) bool { return a.Live != nil && a.Live(id) }

// Validate checks that the Access is about one object. Unlike the library's it may be about
// none, such as "who am I": a token that names an organization is no good for that.
func (a *Access) Validate() error {
	if a.OrgID == nil && a.AppID == nil && a.Feature == nil && a.StorageObject == nil && a.Machine == nil &&
		a.Volume == nil && a.AppFeature == nil && a.MachineFeature == nil && a.Command == nil && a.Cluster == nil {
		return nil
	}
	return a.Access.Validate()
}

// Allows checks every caveat of the token against an Access. Its error is a *Refusal.
func (v *Verified) Allows(a *Access) error { return allows(v.Caveats, a) }

func allows(caveats *macaroon.CaveatSet, a *Access) error {
	if err := a.Validate(); err != nil {
		return refuse(Prohibited, "the token cannot be asked about this: %v", err)
	}
	for _, c := range caveats.Caveats {
		if macaroon.IsAttestation(c) {
			continue // it says who, not what
		}
		if n, ok := unknown(c); ok {
			return refuse(UnknownCaveat, "the token has a caveat of type %d, which this server does not know and therefore refuses", n)
		}
		err := c.Prohibits(a)
		if err == nil {
			continue
		}
		var r *Refusal
		if errors.As(err, &r) {
			return r
		}
		return refuse(Prohibited, "the token's caveat %s forbids this: %v", c.Name(), err)
	}
	return nil
}

// unknown finds a caveat of unknown type in c, wherever it is nested. It is refused even
// where the condition around it would not apply.
func unknown(c macaroon.Caveat) (macaroon.CaveatType, bool) {
	if u, ok := c.(*macaroon.UnregisteredCaveat); ok {
		return u.Type, true
	}
	if i, ok := c.(*resset.IfPresent); ok && i.Ifs != nil {
		for _, in := range i.Ifs.Caveats {
			if n, ok := unknown(in); ok {
				return n, true
			}
		}
	}
	return 0, false
}

// Holds checks what holds whatever is asked for: where from, of which session, and that the
// token is understood. It is for what is of no organization and shows nothing of any.
func (v *Verified) Holds(a *Access) error {
	for _, c := range v.Caveats.Caveats {
		if n, ok := unknown(c); ok {
			return refuse(UnknownCaveat, "the token has a caveat of type %d, which this server does not know and therefore refuses", n)
		}
		switch c.(type) {
		case *Session, *FromAddress, *flyio.FromMachine, *flyio.FlySrc:
			if err := allows(macaroon.NewCaveatSet(c), a); err != nil {
				return err
			}
		}
	}
	return nil
}
