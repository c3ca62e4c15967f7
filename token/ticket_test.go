package token

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/superfly/macaroon"

	"bulkhead/key"
)

const here = "https://api.example.com/aaa/v1"

// bound mints a token that needs a session, and returns its id and its ticket.
func bound(t testing.TB, r *Keys, org uint64, user key.UserID) (string, key.TokenID, []byte) {
	t.Helper()
	id := key.NewTokenID()
	text, err := r.Mint(id, noon.Add(-time.Hour), noon.Add(time.Hour), nil, r.NeedsSession(here, ForSession{Org: org, User: user, Token: id}))
	if err != nil {
		t.Fatal(err)
	}
	tickets, err := Tickets(text, here)
	if err != nil || len(tickets) != 1 {
		t.Fatal(len(tickets), err)
	}
	return text, id, tickets[0]
}

// TestSessionTickets: only a discharge by who holds the root keys, for this token's ticket,
// within its time, says of which session a token is.
func TestSessionTickets(t *testing.T) {
	old := NewKey()
	r := ring(t, NewKey(), old)
	text, id, ticket := bound(t, r, 7, "u_1")
	discharge := func(ticket []byte, session string, until time.Time) string {
		t.Helper()
		tk, err := r.OpenTicket(here, ticket)
		if err != nil {
			t.Fatal(err)
		}
		d, err := tk.Discharge(session, noon.Add(-time.Minute), until)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tk.Discharge(session, noon, until); err == nil {
			t.Error("a ticket was answered twice")
		}
		return d
	}
	with := func(text string, d ...string) string {
		s, err := WithDischarges(text, d...)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	verify := func(header string, at time.Time) (*Verified, error) {
		b, err := Parse(header)
		if err != nil {
			return nil, err
		}
		v, err := r.Verify(b, at)
		if err != nil {
			return nil, err
		}
		return v[0], nil
	}
	soon := noon.Add(10 * time.Minute)
	good := discharge(ticket, "s1", soon)
	v, err := verify(with(text, good), noon)
	if err != nil || v.For == nil || *v.For != (ForSession{7, "u_1", id}) || len(v.Sessions) != 1 || v.Sessions[0] != "s1" {
		t.Fatalf("%+v %v", v, err)
	}
	if !v.Until.Equal(noon.Add(time.Hour)) {
		t.Errorf("what has begun ends at %s", v.Until)
	}
	_, err = verify(with(text, good), soon.Add(time.Second))
	want(t, err, DischargeExpired)
	if !strings.Contains(err.Error(), "bulkhead tokens discharge") {
		t.Errorf("does not say what to do: %v", err)
	}
	_, err = verify(with(text, good), noon.Add(2*time.Hour))
	want(t, err, Expired)
	_, err = verify(text, noon)
	want(t, err, NoDischarge)

	// Of another token; and by oneself, for a third party that anybody may add to a token.
	_, _, others := bound(t, r, 7, "u_1")
	_, err = verify(with(text, discharge(others, "s1", soon)), noon)
	want(t, err, NoDischarge)
	plain := mint(t, r)
	self := macaroon.NewEncryptionKey()
	c, err := macaroon.NewCaveat3P(self, here, &ForSession{7, "u_1", id})
	if err != nil {
		t.Fatal(err)
	}
	forged, err := Attenuate(plain, c)
	if err != nil {
		t.Fatal(err)
	}
	d, err := Discharge(Party{here, self}, c.Ticket, func([]macaroon.Caveat) ([]macaroon.Caveat, error) { return []macaroon.Caveat{&Session{ID: "s1"}}, nil })
	if err != nil {
		t.Fatal(err)
	}
	if v, err := verify(with(forged, d), noon); err != nil || v.For != nil || v.Sessions != nil {
		t.Errorf("a discharge of one's own: %+v %v", v, err)
	}
	// A ticket of ours that speaks of another token than the one it is in.
	elsewhere, err := r.Mint(key.NewTokenID(), noon.Add(-time.Hour), noon.Add(time.Hour), nil, r.NeedsSession(here, ForSession{7, "u_1", id}))
	if err != nil {
		t.Fatal(err)
	}
	tickets, _ := Tickets(elsewhere, here)
	if v, err := verify(with(elsewhere, discharge(tickets[0], "s1", soon)), noon); err != nil || v.For != nil {
		t.Errorf("a ticket of another token: %+v %v", v, err)
	}
	// One's own caveat is no discharge's word.
	mine, err := Attenuate(text, &Session{ID: "s2"})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := verify(with(mine, good), noon); err != nil || len(v.Sessions) != 1 || v.Sessions[0] != "s1" {
		t.Errorf("%+v %v", v, err)
	}
	want(t, check(r, mint(t, r, &ForSession{7, "u_1", id}), on(3, "r")), Prohibited)

	// Tickets of a key that was withdrawn, of none, and changed ones.
	_, _, older := bound(t, ring(t, old), 7, "u_1")
	if _, err := r.OpenTicket(here, older); err != nil {
		t.Errorf("of the older key: %v", err)
	}
	_, err = ring(t).OpenTicket(here, ticket)
	want(t, err, Malformed)
	_, err = r.OpenTicket(here, make([]byte, maxTicket+1))
	want(t, err, TooLong)
	for i := range ticket {
		changed := bytes.Clone(ticket)
		changed[i] ^= 1
		if _, err := r.OpenTicket(here, changed); ReasonOf(err) != Malformed {
			t.Errorf("bit 0 of byte %d changed: %v", i, err)
		}
		if _, err := r.OpenTicket(here, ticket[:i]); ReasonOf(err) != Malformed {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
}

// FuzzSessionTicket feeds hostile bytes to who discharges: as they come, and as what a
// ticket holds, under the right key.
func FuzzSessionTicket(f *testing.F) {
	r := ring(f)
	_, _, ticket := bound(f, r, 7, "u_1")
	f.Add(ticket)
	f.Add([]byte{})
	f.Add([]byte{0x92, 0xc4, 0x00, 0x92, 0x0d, 0x93, 0x01, 0xa1, 'u', 0xa1, 't'})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := r.OpenTicket(here, b)
		if (err == nil) != bytes.Equal(b, ticket) || err == nil && (got.User != "u_1" || got.Org != 7) {
			t.Fatalf("%x: %+v %v", b, got, err)
		}
		if err != nil && ReasonOf(err) == "" {
			t.Fatalf("no reason: %v", err)
		}
		// Caveats of any type and any body, as if we had written them: they are refused, or are a
		// whole ForSession. The library takes what they say of their number for true, so that
		// they are bounded here; under our key nobody else writes.
		if rest, refusal := scan(b, 0); refusal != nil || len(rest) != 0 {
			return
		}
		caveats, err := macaroon.DecodeCaveats(b)
		if err != nil {
			return
		}
		c, err := macaroon.NewCaveat3P(ticketKey(r.first.Secret), here, caveats.Caveats...)
		if err != nil {
			return
		}
		if got, err := r.OpenTicket(here, c.Ticket); err == nil && (got.Org == 0 || got.User == "" || got.Token == "") {
			t.Fatalf("an empty ticket was taken: %+v", got)
		}
	})
}
