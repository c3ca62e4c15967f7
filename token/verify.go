package token

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"strings"
	"time"
	"unicode"

	"github.com/superfly/macaroon"

	"bulkhead/key"
)

// Verified is a token whose signature, discharges and time are good. What it allows is
// still to be asked of it.
type Verified struct {
	ID    key.TokenID // of its record
	KeyID KeyID
	Nonce macaroon.Nonce
	// Caveats is everything that holds: the token's own and those of its discharges.
	Caveats *macaroon.CaveatSet
	// Own are the token's own, third parties' included, in order.
	Own []macaroon.Caveat
	// Until is when it ends. A discharge for a session counts at the beginning alone: what has
	// begun with it goes on while the session lives.
	Until time.Time
	// For is set when it needed a discharge for a session and had one; Sessions are those that
	// its discharges name. Whether they live is asked with Allows.
	For      *ForSession
	Sessions []string
	// Text is the token, Raw its bytes: secrets.
	Text string
	Raw  []byte
}

// Verify checks every permission token of a bundle and returns those that are good; when
// none is, why the first is not, as a *Refusal.
func (r *Keys) Verify(b *Bundle, now time.Time) ([]*Verified, error) {
	var good []*Verified
	var first error
	for i := range b.permissions {
		v, err := r.verify(&b.permissions[i], b.discharges, now)
		if err == nil {
			good = append(good, v)
		} else if first == nil {
			first = err
		}
	}
	if len(good) == 0 {
		return nil, first
	}
	return good, nil
}

func (r *Keys) verify(o *one, discharges []one, now time.Time) (*Verified, error) {
	n := o.m.Nonce
	made, id, ok := idOf(o.m)
	if !ok {
		return nil, refuse(UnknownKey, "the token was made elsewhere")
	}
	secret, ok := r.byID[made]
	if !ok {
		return nil, refuse(UnknownKey, "the token was made with a root key that is not in use; it was made elsewhere, or its key was withdrawn")
	}
	if n.Proof {
		return nil, refuse(BadSignature, "a discharge is no token")
	}
	caveats := &o.m.UnsafeCaveats
	if tail, plain := o.chain(secret); plain {
		if subtle.ConstantTimeCompare(tail, o.m.Tail) != 1 {
			return nil, errSignature
		}
	} else {
		its, err := dischargesOf(o.m, discharges)
		if err != nil {
			return nil, err
		}
		if caveats, err = o.m.VerifyParsed(secret, its, r.trusted); err != nil {
			return nil, why(err)
		}
	}
	v := &Verified{
		ID: id, KeyID: made, Nonce: n, Caveats: caveats, Own: o.m.UnsafeCaveats.Caveats, Text: o.text, Raw: o.raw,
	}
	if caveats != &o.m.UnsafeCaveats {
		v.sessions(secret)
	}
	return v, v.timely(now)
}

// timely checks the time, so that a token that is over is told so at once whatever it is
// used for, and notes when it will be.
func (v *Verified) timely(now time.Time) error {
	bounded := false
	for _, c := range v.Caveats.Caveats {
		w, ok := c.(*macaroon.ValidityWindow)
		if !ok {
			continue
		}
		from, until := time.Unix(w.NotBefore, 0), time.Unix(w.NotAfter, 0)
		own := v.For == nil || v.owns(w)
		if now.After(until) && !own {
			return refuse(DischargeExpired, "the discharge that came with the token was good until %s; fetch another one: %s", until.UTC().Format(time.RFC3339), howToDischarge)
		}
		if now.After(until) {
			return refuse(Expired, "the token expired at %s", until.UTC().Format(time.RFC3339))
		}
		if now.Before(from) {
			return refuse(NotYetValid, "the token is not valid before %s", from.UTC().Format(time.RFC3339))
		}
		if own && (!bounded || until.Before(v.Until)) {
			v.Until, bounded = until, true
		}
	}
	if !bounded {
		return refuse(Malformed, "the token has no end; tokens without one are not accepted")
	}
	return nil
}

// owns reports whether a window is the token's own, and not of a discharge.
func (v *Verified) owns(w *macaroon.ValidityWindow) bool {
	for _, c := range v.Own {
		if own, ok := c.(*macaroon.ValidityWindow); ok && own == w {
			return true
		}
	}
	return false
}

// howToDischarge tells people who have the token and no discharge.
const howToDischarge = "\"bulkhead tokens discharge\" does that, where you are logged in with \"bulkhead auth login --org ORG\""

// chain computes the signature that a token without third parties must have: of the nonce
// and then of each caveat, each keyed with the one before. It signs the bytes as they came, which
// decode has compared with what the library would sign, and so costs a quarter of
// the library's way. Not plain is what needs that: third parties, and what only discharges hold.
func (o *one) chain(secret macaroon.SigningKey) (tail []byte, plain bool) {
	for _, c := range o.m.UnsafeCaveats.Caveats {
		switch c.(type) {
		case *macaroon.Caveat3P, *macaroon.BindToParentToken:
			return nil, false
		}
		if macaroon.IsAttestation(c) {
			return nil, false
		}
	}
	nonce, caveats := spans(o.raw)
	tail = link(secret, nil, nonce)
	for _, c := range caveats {
		tail = link(tail, pairOfOne, c)
	}
	return tail, true
}

// pairOfOne is how a set of one caveat starts: an array of its type and its body.
var pairOfOne = []byte{0x92}

// link is HMAC-SHA256 (RFC 2104) with a key of 32 bytes, of start and b. It is written out
// because a request needs it seven times, and crypto/hmac allocates two hashes each time.
// TestLink holds it against crypto/hmac.
func link(secret, start, b []byte) []byte {
	var inner, outer [sha256.BlockSize]byte
	copy(inner[:], secret)
	copy(outer[:], secret)
	for i := range inner {
		inner[i] ^= 0x36
		outer[i] ^= 0x5c
	}
	in := make([]byte, 0, 512)
	in = append(append(append(in, inner[:]...), start...), b...)
	sum := sha256.Sum256(in)
	var out [sha256.BlockSize + sha256.Size]byte
	copy(out[:], outer[:])
	copy(out[sha256.BlockSize:], sum[:])
	sum = sha256.Sum256(out[:])
	return sum[:]
}

// spans finds the nonce and each caveat, its type and body, in a token that was decoded.
func spans(raw []byte) (nonce []byte, caveats [][]byte) {
	after := func(b []byte) []byte { rest, _ := scan(b, 0); return rest }
	b := raw[1:] // an array of four
	rest := after(b)
	nonce = b[:len(b)-len(rest)]
	b = after(rest) // behind the location
	n := int(b[0] & 0x0f)
	switch b[0] {
	case 0xdc: // an array of 16 and more; decode has refused one of 64 Ki
		n, b = int(b[1])<<8|int(b[2]), b[2:]
	}
	b = b[1:]
	for range n / 2 {
		rest = after(after(b))
		caveats = append(caveats, b[:len(b)-len(rest)])
		b = rest
	}
	return nonce, caveats
}

// dischargesOf picks the discharges of a token's third parties: for its ticket, by its
// party. A discharge's location is not signed; here it is held against the caveat's, which is.
func dischargesOf(m *macaroon.Macaroon, discharges []one) ([]*macaroon.Macaroon, error) {
	var its []*macaroon.Macaroon
	for _, c := range m.UnsafeCaveats.Caveats {
		third, ok := c.(*macaroon.Caveat3P)
		if !ok {
			continue
		}
		before := len(its)
		for _, d := range discharges {
			if d.m.Location == third.Location && bytes.Equal(d.m.Nonce.KID, third.Ticket) {
				its = append(its, d.m)
			}
		}
		if len(its) == before {
			return nil, refuse(NoDischarge, "the token needs a discharge by %s, and there is none for its ticket: %s", clip(third.Location), howToDischarge)
		}
	}
	return its, nil
}

var errSignature = refuse(BadSignature, "the token's signature is wrong: it was changed, or made elsewhere")

// why gives the reason behind an error of the library, which has one kind only.
func why(err error) error {
	if strings.Contains(err.Error(), "bound to different parent") {
		return refuse(WrongBinding, "a discharge is bound to another token")
	}
	return errSignature
}

// clip bounds a hostile text for a message, and takes what would move a terminal's cursor.
func clip(s string) string {
	if len(s) > 120 {
		s = s[:120] + "…"
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
