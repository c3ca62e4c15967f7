package token

import (
	"errors"
	"fmt"
	"strings"

	"github.com/superfly/macaroon"
)

// Attenuate adds caveats to every permission token of a header and gives the list back. It
// asks nobody: this is what makes tokens narrower, and nothing makes them wider again.
func Attenuate(header string, caveats ...macaroon.Caveat) (string, error) {
	b, err := Parse(header)
	if err != nil {
		return "", err
	}
	for i := range b.permissions {
		o := &b.permissions[i]
		if err := o.m.Add(caveats...); err != nil {
			return "", err
		}
		left := MaxCaveats
		if err := inspect(o.m.UnsafeCaveats.Caveats, 0, &left); err != nil {
			return "", err
		}
		if o.text, err = encode(o.m); err != nil {
			return "", err
		}
	}
	s := b.String()
	if len(s) > MaxHeader {
		return "", refuse(TooLong, "the token would be longer than %d bytes", MaxHeader)
	}
	return s, nil
}

// Tickets returns what a third party wants to see for the caveats of a header that have
// no discharge in it yet.
func Tickets(header, location string) ([][]byte, error) {
	b, err := Parse(header)
	if err != nil {
		return nil, err
	}
	var have [][]byte
	for _, d := range b.discharges {
		have = append(have, d.raw)
	}
	var tickets [][]byte
	for _, o := range b.permissions {
		tickets = append(tickets, o.m.TicketsForThirdParty(location, have...)...)
	}
	return tickets, nil
}

// maxTicket bounds a ticket that somebody brings to be discharged.
const maxTicket = 4 << 10

// Discharge answers a ticket: check sees what the ticket's maker wants of the bearer, and
// the discharge is made if it agrees, with the caveats that it returns. It can be used with the
// token of this ticket only, and nobody can add to it but Bind before it is first encoded.
func Discharge(p Party, ticket []byte, check func(wanted []macaroon.Caveat) ([]macaroon.Caveat, error)) (string, error) {
	if len(ticket) > maxTicket {
		return "", refuse(TooLong, "the ticket is longer than %d bytes", maxTicket)
	}
	wanted, d, err := macaroon.DischargeTicket(p.Key, p.Location, ticket)
	if err != nil {
		return "", refuse(Malformed, "the ticket is not for %s, or was changed", p.Location)
	}
	add, err := check(wanted)
	if err != nil {
		return "", err
	}
	if err := d.Add(add...); err != nil {
		return "", err
	}
	return encode(d)
}

// WithDischarges puts discharges behind the tokens of a header.
func WithDischarges(header string, discharges ...string) (string, error) {
	s := strings.Join(append([]string{strip(header)}, discharges...), ",")
	if _, err := Parse(s); err != nil {
		return "", err
	}
	return s, nil
}

// BoundTo is the caveat that binds a discharge, at its making, to one token and those
// narrowed from it: stolen alone, or put beside a wider token, it is worth nothing.
func BoundTo(header string) (macaroon.Caveat, error) {
	b, err := Parse(header)
	if err != nil {
		return nil, err
	}
	if len(b.permissions) != 1 {
		return nil, errors.New("a discharge is bound to one token")
	}
	probe := &macaroon.Macaroon{} // the library computes the digest only for a token of its own
	if err := probe.BindToParentMacaroon(b.permissions[0].m); err != nil {
		return nil, fmt.Errorf("bind: %w", err)
	}
	return probe.UnsafeCaveats.Caveats[0], nil
}
