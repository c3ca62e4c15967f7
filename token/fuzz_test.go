package token

import (
	"encoding/base64"
	"testing"
	"time"

	"github.com/superfly/macaroon"

	"bulkhead/key"
)

// FuzzHeader feeds hostile headers: nothing panics, nothing verifies that was not made
// here, and what parses has one text only.
func FuzzHeader(f *testing.F) {
	r, header, _ := full(f)
	f.Add(header)
	f.Add("FlyV1 " + header)
	f.Add("")
	other := ring(f)
	f.Fuzz(func(t *testing.T, h string) {
		b, err := Parse(h)
		if err != nil {
			if ReasonOf(err) == "" {
				t.Fatalf("no reason: %v", err)
			}
			return
		}
		if again, err := Parse(b.String()); err != nil || again.String() != b.String() {
			t.Fatalf("read again: %v", err)
		}
		if _, err := Describe(h); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Verify(b, noon); err == nil {
			t.Fatal("verified with another's key")
		}
		_, _ = r.Verify(b, noon)
	})
}

// FuzzToken feeds hostile bytes below the text: as a token of the right key, so that its
// caveats are evaluated as if the signature were good.
func FuzzToken(f *testing.F) {
	_, header, _ := full(f)
	p, err := Parse(header)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p.permissions[0].raw)
	f.Add(p.discharges[0].raw)
	f.Add([]byte{0x94, 0x93, 0xc4, 0, 0xc4, 0, 0xc2, 0xa0, 0x92, 0x0d, 0x92, 0xc0, 0x1f, 0xc4, 0})
	r := ring(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode(b)
		if err != nil {
			if ReasonOf(err) == "" {
				t.Fatalf("no reason: %v", err)
			}
			return
		}
		describe(m)
		a := on(3, "r")
		a.At, a.From = noon, noonAddr
		_ = allows(&m.UnsafeCaveats, a)
		_ = allows(&m.UnsafeCaveats, &Access{At: noon})
		_ = (&Verified{Caveats: &m.UnsafeCaveats}).timely(noon)
		// Our chain of signatures is the library's, whatever the caveats are.
		if tail, plain := (&one{raw: b, m: m}).chain(r.first.Secret); plain && !m.Nonce.Proof {
			signed := *m
			signed.Tail = tail
			if _, err := signed.Verify(r.first.Secret, nil, nil); err != nil {
				t.Fatalf("the library computes another signature: %v", err)
			}
		}
		// The same caveats on a token of ours: it evaluates alike after a round trip.
		text, err := r.Mint(key.NewTokenID(), noon.Add(-time.Hour), noon.Add(time.Hour), first(m.UnsafeCaveats.Caveats))
		if err != nil {
			return
		}
		if _, err := Parse(text); err != nil {
			t.Fatalf("what was minted is not read: %v", err)
		}
	})
}

// first leaves out what Mint adds by itself or cannot.
func first(cs []macaroon.Caveat) (some []macaroon.Caveat) {
	for _, c := range cs {
		if _, third := c.(*macaroon.Caveat3P); !third && !macaroon.IsAttestation(c) {
			some = append(some, c)
		}
	}
	return some
}

// FuzzTicket feeds hostile tickets to the discharging side.
func FuzzTicket(f *testing.F) {
	party := Party{Location: "https://sso.example.com", Key: macaroon.NewEncryptionKey()}
	third, err := macaroon.NewCaveat3P(party.Key, party.Location)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(third.Ticket)
	f.Add([]byte{})
	good := base64.StdEncoding.EncodeToString(third.Ticket)
	f.Fuzz(func(t *testing.T, ticket []byte) {
		_, err := Discharge(party, ticket, func([]macaroon.Caveat) ([]macaroon.Caveat, error) { return nil, nil })
		if (err == nil) != (base64.StdEncoding.EncodeToString(ticket) == good) {
			t.Fatalf("%x: %v", ticket, err)
		}
	})
}
