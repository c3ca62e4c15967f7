package token

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/superfly/macaroon"

	"bulkhead/key"
)

// ForSession stands in the ticket of a token that needs a live session of single sign-on
// beside itself: of which organization, of which user, and for which token. It is in tickets
// alone, which only those who hold the root keys can make or read.
type ForSession struct {
	Org   uint64      `json:"org"` // the organization's number
	User  key.UserID  `json:"user"`
	Token key.TokenID `json:"token"`
}

// CaveatType is the registered number.
func (c *ForSession) CaveatType() macaroon.CaveatType { return CavForSession }

// Name is for JSON and people.
func (c *ForSession) Name() string { return "BulkheadForSession" }

// Prohibits refuses: on a token it means nothing.
func (c *ForSession) Prohibits(macaroon.Access) error {
	return fmt.Errorf("%w: this stands in tickets alone", macaroon.ErrBadCaveat)
}

// ticketLabel makes the key of tickets another than the root key that it comes from. No
// nonce, which is what root keys sign, begins so.
const ticketLabel = "bulkhead session ticket 1"

// ticketKey is the key between who makes a token and who discharges it: both hold the root keys.
// It goes with its root key, as the tokens do.
func ticketKey(root macaroon.SigningKey) macaroon.EncryptionKey {
	h := hmac.New(sha256.New, root)
	h.Write([]byte(ticketLabel))
	return macaroon.EncryptionKey(h.Sum(nil))
}

// NeedsSession is the caveat to Mint a token with that is good only with a discharge for a
// live session, to be had at a location.
func (r *Keys) NeedsSession(location string, who ForSession) Third {
	if len(r.first.Secret) == 0 {
		return Third{} // Mint says that there is no key
	}
	return Third{Party: Party{Location: location, Key: ticketKey(r.first.Secret)}, Caveats: []macaroon.Caveat{&who}}
}

// Ticket is a ticket of NeedsSession's that was opened.
type Ticket struct {
	ForSession
	discharge *macaroon.Macaroon
}

// OpenTicket opens a ticket that somebody brings to be discharged at a location. Its error
// is a *Refusal.
func (r *Keys) OpenTicket(location string, ticket []byte) (*Ticket, error) {
	if len(ticket) > maxTicket {
		return nil, refuse(TooLong, "the ticket is longer than %d bytes", maxTicket)
	}
	for _, secret := range r.byID {
		if t, err := parseTicket(ticketKey(secret), location, ticket); err == nil {
			return t, nil
		}
	}
	return nil, refuse(Malformed, "the ticket was not made here, was changed, or its root key was withdrawn")
}

func parseTicket(k macaroon.EncryptionKey, location string, ticket []byte) (*Ticket, error) {
	wanted, d, err := macaroon.DischargeTicket(k, location, ticket)
	if err != nil {
		return nil, err
	}
	if len(wanted) != 1 {
		return nil, errors.New("a ticket wants one thing")
	}
	who, ok := wanted[0].(*ForSession)
	if !ok || who.Org == 0 || who.User == "" || who.Token == "" {
		return nil, errors.New("the ticket is not for a session")
	}
	return &Ticket{ForSession: *who, discharge: d}, nil
}

// Discharge answers the ticket, once: with a discharge that is good in a window of time, for
// the token of this ticket and those narrowed from it, while the session lives.
func (t *Ticket) Discharge(session string, from, until time.Time) (string, error) {
	if t.discharge == nil || session == "" || !until.After(from) {
		return "", errors.New("a ticket is answered once, for a session, with a time to live")
	}
	d := t.discharge
	t.discharge = nil
	if err := d.Add(&macaroon.ValidityWindow{NotBefore: from.Unix(), NotAfter: until.Unix()}, &Session{ID: session}); err != nil {
		return "", err
	}
	return encode(d)
}

// sessions notes what was said by a good discharge of ours. Anybody may add third parties to
// a token, also one at our location with a key of their own, and discharge them at will: what
// counts is a ticket that only this side can have made, for this very token.
func (v *Verified) sessions(root macaroon.SigningKey) {
	own := map[*Session]bool{}
	for _, c := range v.Own {
		switch c := c.(type) {
		case *Session:
			own[c] = true
		case *macaroon.Caveat3P:
			t, err := parseTicket(ticketKey(root), c.Location, c.Ticket)
			if err == nil && t.Token == v.ID && v.For == nil {
				v.For = &t.ForSession
			}
		}
	}
	if v.For == nil {
		return
	}
	for _, c := range v.Caveats.Caveats {
		if s, ok := c.(*Session); ok && !own[s] {
			v.Sessions = append(v.Sessions, s.ID)
		}
	}
}

// EndOf reads when one token or discharge ends by what is written in it. Nobody has verified it.
func EndOf(text string) (time.Time, error) {
	o, err := parseOne(text)
	if err != nil {
		return time.Time{}, err
	}
	d := describe(o.m)
	if d.Until == nil {
		return time.Time{}, errors.New("it has no end")
	}
	return *d.Until, nil
}
