package token

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/superfly/macaroon"
	"github.com/superfly/macaroon/auth"
	"github.com/superfly/macaroon/bundle"
	"github.com/superfly/macaroon/flyio"
	"github.com/superfly/macaroon/resset"

	"bulkhead/key"
)

var noonAddr = netip.MustParseAddr("198.51.100.7")

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func ring(t testing.TB, keys ...Key) *Keys {
	t.Helper()
	if len(keys) == 0 {
		keys = []Key{NewKey()}
	}
	r, err := NewKeys(keys)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mint(t testing.TB, r *Keys, caveats ...macaroon.Caveat) string {
	t.Helper()
	m, err := r.Mint(key.NewTokenID(), noon.Add(-time.Hour), noon.Add(time.Hour), caveats)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// check parses, verifies and asks, as a server does.
func check(r *Keys, header string, a *Access) error {
	b, err := Parse(header)
	if err != nil {
		return err
	}
	v, err := r.Verify(b, noon)
	if err != nil || a == nil {
		return err
	}
	a.At = noon
	return v[0].Allows(a)
}

func want(t *testing.T, err error, why Reason) {
	t.Helper()
	if ReasonOf(err) != why {
		t.Errorf("reason %q (%v), want %q", ReasonOf(err), err, why)
	}
}

// on is an Access to an app's Machine of organization 7.
func on(app uint64, act string) *Access {
	org := uint64(7)
	return &Access{Access: flyio.Access{OrgID: &org, AppID: &app, Action: resset.ActionFromString(act)}}
}

func TestMintVerifyAllow(t *testing.T) {
	r := ring(t)
	text := mint(t, r, &flyio.Organization{ID: 7, Mask: resset.ActionAll}, &flyio.Apps{Apps: resset.New[uint64](resset.ActionRead|resset.ActionControl, 3)})
	for _, h := range []string{text, "Bearer " + text, "bearer " + text, "FlyV1 " + text, "Bearer FlyV1 " + text, " FlyV1  " + text + " "} {
		if err := check(r, h, on(3, "r")); err != nil {
			t.Errorf("%.14q: %v", h, err)
		}
	}
	want(t, check(r, text, on(3, "w")), Prohibited)
	want(t, check(r, text, on(4, "r")), Prohibited)
	other := on(3, "r")
	*other.OrgID = 8
	want(t, check(r, text, other), Prohibited)
	want(t, check(r, text, &Access{}), Prohibited) // about no organization
	user := mint(t, r)
	if err := check(r, user, &Access{}); err != nil {
		t.Errorf("a user's token: %v", err)
	}

	// The library's own reading of our token: the same id, good by its verifier, and bad by another key.
	b, err := flyio.ParseBundle("FlyV1 " + text)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range bundle.Map(b, func(m bundle.Macaroon) bundle.Macaroon { return m }) {
		if _, err := m.UnsafeMacaroon().Verify(r.first.Secret, nil, nil); err != nil {
			t.Errorf("the library refuses our token: %v", err)
		}
	}
}

func TestKeysRotateWithOverlap(t *testing.T) {
	old, now := NewKey(), NewKey()
	before := ring(t, old)
	text := mint(t, before)
	both := ring(t, now, old)
	if err := check(both, text, nil); err != nil {
		t.Errorf("a token of the old key, both in the ring: %v", err)
	}
	fresh := mint(t, both)
	want(t, check(before, fresh, nil), UnknownKey)
	after := ring(t, now)
	if err := check(after, fresh, nil); err != nil {
		t.Errorf("a token of the new key: %v", err)
	}
	want(t, check(after, text, nil), UnknownKey)
	same := ring(t, Key{ID: old.ID, Secret: NewKey().Secret})
	want(t, check(same, text, nil), BadSignature)
	for name, keys := range map[string][]Key{"none": {}, "twice": {old, old}, "short": {{ID: old.ID, Secret: []byte("short")}}} {
		if _, err := NewKeys(keys); err == nil {
			t.Errorf("%s: a ring was made", name)
		}
	}
	if _, err := NewKeys([]Key{old}, Party{Location: "x", Key: []byte("short")}); err == nil {
		t.Error("a party with a short key was taken")
	}
}

func TestTime(t *testing.T) {
	r := ring(t)
	at := func(from, until time.Duration, more ...macaroon.Caveat) error {
		m, err := r.Mint(key.NewTokenID(), noon.Add(from), noon.Add(until), more)
		if err != nil {
			t.Fatal(err)
		}
		return check(r, m, nil)
	}
	if err := at(-time.Hour, time.Hour); err != nil {
		t.Error(err)
	}
	want(t, at(-2*time.Hour, -time.Hour), Expired)
	want(t, at(time.Hour, 2*time.Hour), NotYetValid)
	// A second window can only narrow.
	want(t, at(-time.Hour, time.Hour, &macaroon.ValidityWindow{NotAfter: noon.Add(-time.Minute).Unix()}), Expired)
	want(t, at(-2*time.Hour, -time.Hour, &macaroon.ValidityWindow{NotAfter: noon.Add(time.Hour).Unix()}), Expired)
	if _, err := r.Mint(key.NewTokenID(), noon, noon, nil); err == nil {
		t.Error("a token that is never valid was made")
	}
	// A token without an end, which only the holder of the key can make, is refused too.
	m, _ := macaroon.New(aKID(r), Location, r.first.Secret)
	endless, err := encode(m)
	if err != nil {
		t.Fatal(err)
	}
	want(t, check(r, endless, nil), Malformed)
	hidden, _ := macaroon.New(aKID(r), Location, r.first.Secret)
	hidden.Add(&resset.IfPresent{Ifs: macaroon.NewCaveatSet(&macaroon.ValidityWindow{NotAfter: noon.Add(time.Hour).Unix()}), Else: resset.ActionAll})
	endless, _ = encode(hidden)
	want(t, check(r, endless, nil), Malformed)
}

func TestAttenuateOnlyNarrows(t *testing.T) {
	r := ring(t)
	text := mint(t, r, &flyio.Organization{ID: 7, Mask: resset.ActionAll})
	ro := resset.ActionRead
	narrow, err := Attenuate("FlyV1 "+text, &ro)
	if err != nil {
		t.Fatal(err)
	}
	if err := check(r, narrow, on(3, "r")); err != nil {
		t.Error(err)
	}
	want(t, check(r, narrow, on(3, "w")), Prohibited)
	wide, err := Attenuate(narrow, &flyio.Organization{ID: 7, Mask: resset.ActionAll}, ptr(resset.ActionAll))
	if err != nil {
		t.Fatal(err)
	}
	want(t, check(r, wide, on(3, "w")), Prohibited)
	a, _ := Describe(text)
	b, _ := Describe(wide)
	if a[0].ID == "" || a[0].ID != b[0].ID {
		t.Errorf("ids %q and %q: revoking one would not revoke the other", a[0].ID, b[0].ID)
	}
	// The caveat cannot be taken off again: neither by dropping it nor by the older tail.
	p, _ := Parse(narrow)
	m := p.permissions[0].m
	m.UnsafeCaveats.Caveats = m.UnsafeCaveats.Caveats[:len(m.UnsafeCaveats.Caveats)-1]
	cut, _ := encode(m)
	want(t, check(r, cut, on(3, "w")), BadSignature)
	for i := range 70 {
		if text, err = Attenuate(text, &flyio.IsUser{ID: uint64(i)}); err != nil {
			break
		}
	}
	want(t, err, TooLong)
}

func TestFromAddress(t *testing.T) {
	r := ring(t)
	text := mint(t, r, &FromAddress{Networks: []string{"10.1.0.0/16", "2001:db8::/32", "192.0.2.7"}})
	for from, ok := range map[string]bool{
		"10.1.2.3": true, "::ffff:10.1.2.3": true, "10.2.0.1": false, "2001:db8::1": true, "2001:db9::1": false, "192.0.2.7": true, "192.0.2.8": false, "": false,
	} {
		a := on(3, "r")
		a.From, _ = netip.ParseAddr(from)
		if err := check(r, text, a); (err == nil) != ok {
			t.Errorf("from %q: %v", from, err)
		}
	}
	for _, bad := range []string{"10.1.0.0", "x", ""} {
		a := on(3, "r")
		a.From = netip.MustParseAddr("10.1.2.3")
		want(t, check(r, mint(t, r, &FromAddress{Networks: []string{bad}}), a), Prohibited)
	}
	want(t, check(r, mint(t, r, &FromAddress{}), on(3, "r")), Prohibited)
}

// TestLink holds our HMAC against the standard library's, for messages of every length that a
// caveat may have.
func TestLink(t *testing.T) {
	secret := NewKey().Secret
	b := make([]byte, MaxToken)
	for i := range b {
		b[i] = byte(i * 7)
	}
	for n := range len(b) {
		if n > 700 && n%97 != 0 {
			continue
		}
		h := hmac.New(sha256.New, secret)
		h.Write(pairOfOne)
		h.Write(b[:n])
		if !bytes.Equal(h.Sum(nil), link(secret, pairOfOne, b[:n])) {
			t.Fatalf("another HMAC of %d bytes", n)
		}
	}
}

func TestAppNames(t *testing.T) {
	r := ring(t)
	text := mint(t, r, &AppNames{Names: []string{"shop", "blog"}})
	for name, ok := range map[string]bool{"shop": true, "blog": true, "else": false, "": false} {
		a := on(3, "r")
		a.AppName = name
		if err := check(r, text, a); (err == nil) != ok {
			t.Errorf("app %q: %v", name, err)
		}
	}
	want(t, check(r, mint(t, r, &AppNames{}), on(3, "r")), Prohibited)
}

// TestUnknownCaveat: also one that hides in a condition that does not apply.
func TestUnknownCaveat(t *testing.T) {
	r := ring(t)
	strange := &macaroon.UnregisteredCaveat{Type: macaroon.CavMinUserDefined + 4711, RawMsgpack: []byte{0x91, 0xa1, 'x'}}
	text := mint(t, r, strange)
	err := check(r, text, on(3, "r"))
	want(t, err, UnknownCaveat)
	if !strings.Contains(err.Error(), fmt.Sprint(uint64(strange.Type))) {
		t.Errorf("does not name it: %v", err)
	}
	var refusal *Refusal
	if !errors.As(err, &refusal) || !refusal.Known() {
		t.Error("an unknown caveat is a refusal of a good token")
	}
	hidden := &resset.IfPresent{Ifs: macaroon.NewCaveatSet(&flyio.Machines{Machines: resset.New(resset.ActionAll, "x")}, strange), Else: resset.ActionAll}
	want(t, check(r, mint(t, r, hidden), on(3, "r")), UnknownCaveat)
	d, err := Describe(text)
	if err != nil || !strings.Contains(d[0].Caveats[1].Words, "not known here") {
		t.Errorf("described as %+v, %v", d, err)
	}
}

// aKID is what a token of a ring says of its making.
func aKID(r *Keys) []byte { b, _ := kid(r.first.ID, key.NewTokenID()); return b }

func ptr[T any](v T) *T { return &v }

// TestThirdParty: a discharge is good for its own ticket, its own token, its own session.
func TestThirdParty(t *testing.T) {
	party := Party{Location: "https://sso.example.com", Key: macaroon.NewEncryptionKey()}
	r, err := NewKeys([]Key{NewKey()}, party)
	if err != nil {
		t.Fatal(err)
	}
	withThird := func() string {
		m, err := r.Mint(key.NewTokenID(), noon.Add(-time.Hour), noon.Add(time.Hour), nil, Third{Party: party, Caveats: []macaroon.Caveat{auth.RequireOrganization(7)}})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	discharge := func(text string, add ...macaroon.Caveat) string {
		tickets, err := Tickets(text, party.Location)
		if err != nil || len(tickets) != 1 {
			t.Fatal(len(tickets), err)
		}
		d, err := Discharge(party, tickets[0], func(wanted []macaroon.Caveat) ([]macaroon.Caveat, error) {
			if len(wanted) != 1 || wanted[0].(*auth.ConfineOrganization).ID != 7 {
				t.Errorf("the ticket wants %v", wanted)
			}
			return add, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	with := func(text, d string) string {
		s, err := WithDischarges(text, d)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	mine, other := withThird(), withThird()
	live := func() *Access { a := on(3, "r"); a.Live = func(id string) bool { return id == "s1" }; return a }
	session := &Session{ID: "s1"}

	want(t, check(r, mine, nil), NoDischarge)
	d := discharge(mine, session, ptr(auth.FlyioUserID(5)))
	if err := check(r, with(mine, d), live()); err != nil {
		t.Errorf("discharged: %v", err)
	}
	if left, _ := Tickets(with(mine, d), party.Location); len(left) != 0 {
		t.Error("a discharged ticket is asked for again")
	}
	want(t, check(r, with(mine, d), on(3, "r")), SessionEnded)
	want(t, check(r, with(mine, discharge(mine, &Session{ID: "s2"})), live()), SessionEnded)
	want(t, check(r, with(mine, discharge(mine, &Session{})), live()), SessionEnded)
	want(t, check(r, with(mine, discharge(other, session)), live()), NoDischarge) // replayed for another ticket
	want(t, check(r, with(mine, discharge(mine, &macaroon.ValidityWindow{NotAfter: noon.Add(-time.Minute).Unix()})), live()), Expired)

	// A discharge that is made for a narrowed token is no good beside the wide one.
	narrow, err := Attenuate(mine, ptr(resset.ActionRead))
	if err != nil {
		t.Fatal(err)
	}
	bind, err := BoundTo(narrow)
	if err != nil {
		t.Fatal(err)
	}
	bound := discharge(mine, session, bind)
	if err := check(r, with(narrow, bound), live()); err != nil {
		t.Errorf("bound: %v", err)
	}
	want(t, check(r, with(mine, bound), live()), WrongBinding)
	if _, err := Attenuate(narrow, &session0); err != nil {
		t.Error(err)
	}
	weak := macaroon.BindToParentToken{1}
	if _, err := WithDischarges(mine, discharge(mine, &weak)); ReasonOf(err) != Malformed {
		t.Errorf("a binding of one byte: %v", err)
	}

	// Who holds the ticket but not the party's key makes no discharge; neither does another party.
	tickets, _ := Tickets(mine, party.Location)
	agree := func([]macaroon.Caveat) ([]macaroon.Caveat, error) { return nil, nil }
	_, err = Discharge(Party{Location: party.Location, Key: macaroon.NewEncryptionKey()}, tickets[0], agree)
	want(t, err, Malformed)
	_, err = Discharge(party, make([]byte, maxTicket+1), agree)
	want(t, err, TooLong)
	no := errors.New("no")
	if _, err = Discharge(party, tickets[0], func([]macaroon.Caveat) ([]macaroon.Caveat, error) { return nil, no }); !errors.Is(err, no) {
		t.Errorf("discharged against the party's word: %v", err)
	}
	forged, _ := macaroon.New(tickets[0], party.Location, macaroon.NewSigningKey())
	text, _ := encode(forged)
	want(t, check(r, with(mine, text), live()), BadSignature)
	// A discharge is finished: nobody adds an attestation to it.
	p, _ := Parse(with(mine, d))
	if err := p.discharges[0].m.Add(ptr(auth.FlyioUserID(9))); err == nil {
		t.Error("an attestation was added to a finished discharge")
	}
}

var session0 = Session{ID: "s0"}

// TestDescribeHasWords: every caveat that a token can hold is described in words, and no
// text of a token reaches a terminal as it is.
func TestDescribeHasWords(t *testing.T) {
	n := 0
	for num := range uint64(64) {
		n += wordsOf(t, num)
	}
	for num := range uint64(16) {
		n += wordsOf(t, uint64(CavSession)+num)
	}
	if n < 26 {
		t.Errorf("%d types seen", n)
	}
	t.Logf("%d types of caveats have words", n)
	r := ring(t)
	d, err := Describe(mint(t, r, &flyio.FromMachine{ID: "x\x1b[2J\n"}))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range d[0].Caveats {
		if strings.ContainsAny(l.Words, "\x1b\n") {
			t.Errorf("%q", l.Words)
		}
	}
}

// wordsOf makes the zero value of a type from its number and looks at its words.
func wordsOf(t *testing.T, num uint64) int {
	enc := []byte{0x92, 0xcf, byte(num >> 56), byte(num >> 48), byte(num >> 40), byte(num >> 32), byte(num >> 24), byte(num >> 16), byte(num >> 8), byte(num)}
	for _, body := range [][]byte{{0x90}, {0xc0}, {0x00}, {0xa0}, {0xc4, 0x00}} {
		cs, err := macaroon.DecodeCaveats(append(enc[:len(enc):len(enc)], body...))
		if err != nil || len(cs.Caveats) != 1 {
			continue
		}
		if _, ok := cs.Caveats[0].(*macaroon.UnregisteredCaveat); ok {
			return 0
		}
		if w := words(cs.Caveats[0]); w == "" || strings.HasPrefix(w, "{") || strings.HasPrefix(w, "0") || w == cs.Caveats[0].Name() {
			t.Errorf("%s (%d) has no words: %q", cs.Caveats[0].Name(), num, w)
		}
		return 1
	}
	t.Errorf("type %d cannot be made", num)
	return 0
}

func raw(t testing.TB, text string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(text, Prefix))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
