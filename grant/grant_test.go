package grant_test

import (
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"
	"time"

	"bulkhead/fault"
	"bulkhead/grant"
	"bulkhead/key"
)

func TestGrant(t *testing.T) {
	pub, priv, _ := ed25519.GenerateKey(nil)
	_, other, _ := ed25519.GenerateKey(nil)
	want := grant.Grant{Machine: "0123456789abcd", Node: "n1", Network: 7, CPUs: 1, MemoryMB: 256, MaxPIDs: 100}
	enc, sig, err := grant.Sign(priv, want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := grant.Verify(pub, "n1", enc, sig); err != nil || got != want {
		t.Fatalf("got %+v, %v", got, err)
	}
	_, forged, _ := grant.Sign(other, want)
	changed := append([]byte{}, enc...)
	changed[len(changed)-2] ^= 1
	raw := ed25519.Sign(priv, enc) // a signature by the same key, made for something else
	for name, c := range map[string]struct {
		pub      ed25519.PublicKey
		enc, sig []byte
		node     string
	}{
		"another key":      {pub, enc, forged, "n1"},
		"changed":          {pub, changed, sig, "n1"},
		"another purpose":  {pub, enc, raw, "n1"},
		"no signature":     {pub, enc, nil, "n1"},
		"another node":     {pub, enc, sig, "n2"},
		"no key to verify": {nil, enc, sig, "n1"},
	} {
		t.Run(name, func(t *testing.T) {
			node := want.Node
			if c.node != "n1" {
				node = "n2"
			}
			if _, err := grant.Verify(c.pub, node, c.enc, c.sig); !fault.Is(err, fault.Denied) {
				t.Fatalf("accepted: %v", err)
			}
		})
	}
}

// TestGrantsEnd: what a grant is good for at which time, and what is said otherwise.
func TestGrantsEnd(t *testing.T) {
	made := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	ends := grant.End("n1", made)
	g := grant.Grant{Machine: "0123456789abcd", Node: "n1", Ends: ends.Unix()}
	for _, c := range []struct {
		name  string
		grant grant.Grant
		at    time.Time
		want  string // the status; empty when it is good
		says  []string
	}{
		{"when it was made", g, made, "", nil},
		{"two weeks later", g, made.Add(grant.Life), "", nil},
		{"in the last second", g, ends.Add(-time.Second), "", nil},
		{"when it ends", g, ends, grant.StatusEnded, []string{"0123456789abcd", "ended at 2026-03-", "reaches the controller"}},
		{"a year later", g, made.AddDate(1, 0, 0), grant.StatusEnded, nil},
		{"an hour before it was made", g, made.Add(-time.Hour), "", nil},
		{"a day before it was made", g, made.Add(-grant.Skew), "", nil},
		{"weeks before it was made", g, made.AddDate(0, 0, -21), grant.StatusAhead, []string{"the clock of this node is wrong"}},
		{"in 1970", g, time.Unix(0, 0), grant.StatusAhead, nil},
		{"of an older version of Bulkhead", grant.Grant{Machine: g.Machine}, made, grant.StatusEnded, []string{"older version of Bulkhead", "reaches the controller"}},
		{"that ends before the world does", grant.Grant{Ends: 1 << 62}, made, grant.StatusAhead, nil},
		{"that ended before it began", grant.Grant{Ends: -1 << 62}, made, grant.StatusEnded, nil},
	} {
		err := c.grant.Usable(c.at)
		var f *fault.Error
		errors.As(err, &f)
		if (err == nil) != (c.want == "") || f != nil && (f.Status != c.want || f.Kind != fault.Unavailable) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
			continue
		}
		for _, s := range c.says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%s: %q does not say %q", c.name, err, s)
			}
		}
	}
}

// TestEndsOfADay: a grant lasts for Life and at most Period longer whenever it is made,
// the ends of one node's grants are a Period apart, and nodes have theirs at different times.
func TestEndsOfADay(t *testing.T) {
	begin := time.Date(2026, 2, 27, 3, 4, 5, 678, time.FixedZone("", 5*3600))
	for _, n := range []key.Node{"n1", "n2", "a-node-of-another-name"} {
		ends := map[int64]bool{}
		for at := begin; at.Before(begin.AddDate(0, 0, 10)); at = at.Add(7 * time.Minute) {
			e := grant.End(n, at)
			if left := e.Sub(at); left <= grant.Life || left > grant.Life+grant.Period {
				t.Fatalf("%s: made at %v it ends %v later", n, at, left)
			}
			ends[e.Unix()] = true
		}
		if len(ends) != 11 {
			t.Errorf("%s: %d ends in ten days", n, len(ends))
		}
	}
	if a, b := grant.End("n1", begin), grant.End("n2", begin); a.Equal(b) {
		t.Errorf("two nodes get new grants at the same time, %v", a)
	}
}
