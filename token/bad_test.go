package token

import (
	"encoding/base64"
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/superfly/macaroon"
	"github.com/superfly/macaroon/flyio"
	"github.com/superfly/macaroon/resset"

	"bulkhead/key"
)

// full is a token with a discharge, with caveats of every shape: what the bad inputs are
// made of.
func full(t testing.TB) (r *Keys, header string, a *Access) {
	party := Party{Location: "https://sso.example.com", Key: macaroon.NewEncryptionKey()}
	r, err := NewKeys([]Key{NewKey()}, party)
	if err != nil {
		t.Fatal(err)
	}
	m, err := r.Mint(key.NewTokenID(), noon.Add(-time.Hour), noon.Add(time.Hour), []macaroon.Caveat{
		&flyio.Organization{ID: 7, Mask: resset.ActionAll},
		&resset.IfPresent{Ifs: macaroon.NewCaveatSet(&flyio.Apps{Apps: resset.New[uint64](resset.ActionAll, 3, 400)}), Else: resset.ActionRead},
		&resset.IfPresent{Ifs: macaroon.NewCaveatSet(&flyio.Commands{{Args: []string{"ls"}, Exact: true}}), Else: resset.ActionAll},
		&FromAddress{Networks: []string{"0.0.0.0/0", "::/0"}},
	}, Third{Party: party})
	if err != nil {
		t.Fatal(err)
	}
	tickets, err := Tickets(m, party.Location)
	if err != nil {
		t.Fatal(err)
	}
	bind, err := BoundTo(m)
	if err != nil {
		t.Fatal(err)
	}
	d, err := Discharge(party, tickets[0], func([]macaroon.Caveat) ([]macaroon.Caveat, error) {
		return []macaroon.Caveat{bind, &Session{ID: "s"}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	a = on(3, "r")
	a.From = noonAddr
	a.Live = func(string) bool { return true }
	if header, err = WithDischarges(m, d); err != nil {
		t.Fatal(err)
	}
	if err := check(r, header, a); err != nil {
		t.Fatal(err)
	}
	return r, header, a
}

// TestEveryBitCounts flips each bit of a token and of its discharge, as text and as bytes,
// and cuts both off at each byte: each is refused. The control shows that the library
// alone lets some of them pass.
func TestEveryBitCounts(t *testing.T) {
	r, header, a := full(t)
	flips, cuts := 0, 0
	try := func(what string, i int, h string) {
		err := check(r, h, a)
		if err == nil {
			t.Errorf("%s %d: accepted", what, i)
		} else if ReasonOf(err) == "" {
			t.Errorf("%s %d: no reason: %v", what, i, err)
		}
	}
	for i := range len(header) {
		for bit := range 8 {
			b := []byte(header)
			b[i] ^= 1 << bit
			try("bit of the text", i*8+bit, string(b))
			flips++
		}
		try("text cut at", i, header[:i])
		cuts++
	}
	perm, dis, _ := strings.Cut(header, ",")
	libraryTook := 0
	for which, text := range []string{perm, dis} {
		b := raw(t, text)
		put := func(b []byte) string {
			s := Prefix + base64.StdEncoding.EncodeToString(b)
			if which == 0 {
				return s + "," + dis
			}
			return perm + "," + s
		}
		for i := range b {
			for bit := range 8 {
				c := append([]byte{}, b...)
				c[i] ^= 1 << bit
				try("bit of the bytes", i*8+bit, put(c))
				flips++
				if which == 0 && libraryAccepts(r, c, raw(t, dis)) {
					libraryTook++
				}
			}
			try("bytes cut at", i, put(b[:i]))
			cuts++
		}
		try("a byte behind", len(b), put(append(b[:len(b):len(b)], 0)))
	}
	if libraryTook == 0 {
		t.Error("control: the library alone refuses every flipped bit too, so this test shows nothing of our check")
	}
	t.Logf("%d bits flipped, %d cuts, all refused; the library alone accepts %d of them", flips, cuts, libraryTook)
}

func libraryAccepts(r *Keys, perm, dis []byte) (ok bool) {
	defer func() { _ = recover() }()
	if rest, refusal := scan(perm, 0); refusal != nil || len(rest) > 0 {
		return false // it may ask for gigabytes
	}
	m, err := macaroon.Decode(perm)
	if err != nil {
		return false
	}
	made, _, _ := idOf(m)
	_, err = m.Verify(r.byID[made], [][]byte{dis}, nil)
	return err == nil
}

// nested gives caveats inside caveats.
func nested(depth int) macaroon.Caveat {
	c := macaroon.Caveat(&flyio.IsMember{})
	for range depth {
		c = &resset.IfPresent{Ifs: macaroon.NewCaveatSet(c), Else: resset.ActionAll}
	}
	return c
}

// TestBadInput is the table of what is not a token.
func TestBadInput(t *testing.T) {
	r := ring(t)
	good := mint(t, r)
	b64 := func(b ...byte) string { return Prefix + base64.StdEncoding.EncodeToString(b) }
	// caveats makes a signed token of what the minting side would never sign.
	caveats := func(cs ...macaroon.Caveat) string {
		m, _ := macaroon.New(aKID(r), Location, r.first.Secret)
		m.Add(&macaroon.ValidityWindow{NotAfter: noon.Add(time.Hour).Unix()})
		if err := m.Add(cs...); err != nil {
			t.Fatal(err)
		}
		b, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return b64(b...)
	}
	many := func(n int) []macaroon.Caveat {
		var cs []macaroon.Caveat
		for i := range n {
			cs = append(cs, &flyio.IsUser{ID: uint64(i)})
		}
		return cs
	}
	huge := binary.BigEndian.AppendUint32([]byte{0x94, 0x93, 0xc4, 0, 0xc4, 0, 0xc2, 0xa0, 0xdd}, 1<<32-2) // 2^31 caveats, says it
	for _, c := range []struct {
		name, header string
		why          Reason
	}{
		{"nothing", "", Missing},
		{"a scheme", "FlyV1 ", Malformed},
		{"blanks", "   ", Missing},
		{"a scheme and blanks", "Bearer    ", Malformed},
		{"another scheme", "Basic " + good, Malformed},
		{"three schemes", "Bearer Bearer Bearer " + good, Malformed},
		{"another prefix", "fo1_" + good[4:], Malformed},
		{"no prefix", good[4:], Malformed},
		{"an empty token", Prefix, Malformed},
		{"an empty one beside it", good + ",", Malformed},
		{"of another alphabet", Prefix + strings.Repeat("-_", 20), Malformed},
		{"a line break", good[:40] + "\n" + good[40:], Malformed},
		{"a NUL", good + "\x00", Malformed},
		{"nothing of MessagePack", b64(0xc1), Malformed},
		{"nil", b64(0xc0), Malformed},
		{"a number", b64(7), Malformed},
		{"an empty array", b64(0x90), Malformed},
		{"a map", b64(0x80), Malformed},
		{"an extension", b64(0xd6, 0xff, 0, 0, 0, 0), Malformed},
		{"two thousand million caveats", b64(huge...), Malformed},
		{"a text of four gigabytes", b64(0x94, 0xdb, 0xff, 0xff, 0xff, 0xff), Malformed},
		{"a map whose key is an array", b64(0x94, 0x93, 0xc4, 0, 0xc4, 0, 0xc2, 0xa0, 0x92, 0xcd, 0x10, 0x00, 0x81, 0x90, 0x00, 0xc4, 0), Malformed},
		{"a map whose key is bytes", b64(0x94, 0x93, 0xc4, 0, 0xc4, 0, 0xc2, 0xa0, 0x92, 0xcd, 0x10, 0x00, 0x81, 0xc4, 0, 0x00, 0xc4, 0), Malformed},
		{"arrays in arrays", b64([]byte(strings.Repeat("\x91", 5000))...), TooLong},
		{"a condition without one", b64(0x94, 0x93, 0xc4, 0, 0xc4, 0, 0xc2, 0xa0, 0x92, 0x0d, 0x92, 0xc0, 0x1f, 0xc4, 0), Malformed},
		{"an odd number of caveats", b64(0x94, 0x93, 0xc4, 0, 0xc4, 0, 0xc2, 0xa0, 0x91, 0x0d, 0xc4, 0), Malformed},
		{"a discharge alone", func() string {
			m, _ := macaroon.New([]byte("x"), "elsewhere", NewKey().Secret)
			s, _ := encode(m)
			return s
		}(), Malformed},
		{"a long header", strings.Repeat(good+",", 200) + good, TooLong},
		{"many tokens", strings.Repeat(good+",", MaxTokens) + good, TooLong},
		{"a long token", Prefix + strings.Repeat("A", 12<<10), TooLong},
		{"many caveats", caveats(many(MaxCaveats)...), TooLong},
		{"many caveats inside one", caveats(&resset.IfPresent{Ifs: macaroon.NewCaveatSet(many(MaxCaveats)...)}), TooLong},
		{"deep caveats", caveats(nested(MaxDepth + 1)), TooLong},
		{"of another maker", mint(t, ring(t)), UnknownKey},
		{"of a key of another length", func() string {
			m, _ := macaroon.New([]byte("kid"), Location, NewKey().Secret)
			s, _ := encode(m)
			return s
		}(), UnknownKey},
		{"a discharge as token", func() string {
			third, _ := macaroon.NewCaveat3P(macaroon.EncryptionKey(r.first.Secret), Location)
			_, d, err := macaroon.DischargeTicket(macaroon.EncryptionKey(r.first.Secret), Location, third.Ticket)
			if err != nil {
				t.Fatal(err)
			}
			d.Nonce.KID = aKID(r)
			s, _ := encode(d)
			return s
		}(), BadSignature},
		{"a third party inside a condition", caveats(&resset.IfPresent{Ifs: macaroon.NewCaveatSet(&macaroon.Caveat3P{Location: "x"}), Else: resset.ActionAll}), Prohibited},
	} {
		t.Run(c.name, func(t *testing.T) { want(t, check(r, c.header, on(3, "r")), c.why) })
	}
	// The bounds themselves are allowed.
	for name, h := range map[string]string{
		"tokens":  strings.Repeat(good+",", MaxTokens-1) + good,
		"caveats": caveats(many(MaxCaveats - 1)...),
		"depth":   caveats(nested(MaxDepth)),
	} {
		if b, err := Parse(h); err != nil {
			t.Errorf("%s at the bound: %v", name, err)
		} else if _, err := r.Verify(b, noon); err != nil {
			t.Errorf("%s at the bound: %v", name, err)
		}
	}
	// One good token among bad ones is enough: others may be for other places.
	if err := check(r, mint(t, ring(t))+","+good, nil); err != nil {
		t.Error(err)
	}
}
