package token

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/superfly/macaroon"
)

// vectors is what the library's own generator made (internal/test-vectors of v0.3.0): the
// oracle of the wire format.
type vectors struct {
	Location    string                       `json:"location"`
	Key         []byte                       `json:"key"`
	TPKey       []byte                       `json:"tp_key"`
	Macaroons   map[string]string            `json:"macaroons"`
	Attenuation map[string]map[string]string `json:"attenuation"`
	Caveats     map[string][]byte            `json:"caveats"`
	WithTPs     string                       `json:"with_tps"`
}

// TestLibraryVectors: each of the library's tokens is read, is in the one encoding that
// is accepted, verifies with its key and with no other, and narrows to the same bytes.
func TestLibraryVectors(t *testing.T) {
	b, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	for name, header := range v.Macaroons {
		o, err := parseOne(strip(header))
		if err != nil {
			if name == "BindToParentToken" && ReasonOf(err) == Malformed {
				continue // of three bytes: a binding that short is refused
			}
			t.Errorf("%s: %v", name, err)
			continue
		}
		if s, err := encode(o.m); err != nil || s != strip(header) {
			t.Errorf("%s: encoded otherwise: %v", name, err)
		}
		if o.m.Nonce.Proof {
			continue // a discharge, of a key that the vectors do not have
		}
		if _, err := o.m.Verify(v.Key, nil, nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if tail, plain := o.chain(v.Key); plain != (name != "BindToParentToken") || plain && !bytes.Equal(tail, o.m.Tail) {
			t.Errorf("%s: our chain of signatures is another", name)
		}
		if _, err := o.m.Verify(macaroon.NewSigningKey(), nil, nil); err == nil {
			t.Errorf("%s verifies with any key", name)
		}
	}
	narrowed := 0
	for base, results := range v.Attenuation {
		for packed, result := range results {
			narrowed += narrows(t, v.Location, base, packed, result)
		}
	}
	for name, packed := range v.Caveats {
		if rest, refusal := scan(packed, 0); refusal != nil || len(rest) > 0 {
			t.Errorf("caveat %s: %v", name, refusal)
		}
		cs, err := macaroon.DecodeCaveats(packed)
		if err != nil {
			t.Errorf("caveat %s: %v", name, err)
		} else if again, err := cs.MarshalMsgpack(); err != nil || !bytes.Equal(again, packed) {
			t.Errorf("caveat %s is encoded otherwise", name)
		}
	}
	if len(v.Macaroons) != 21 || narrowed != 19 || len(v.Caveats) != 24 {
		t.Errorf("%d macaroons, %d narrowed, %d caveats", len(v.Macaroons), narrowed, len(v.Caveats))
	}
	t.Logf("%d macaroons, %d narrowed, %d caveats", len(v.Macaroons), narrowed, len(v.Caveats))

	// Two third parties, one of which has spoken.
	perm, dis, _ := strings.Cut(strip(v.WithTPs), ",")
	p, err := parseOne(perm)
	if err != nil {
		t.Fatal(err)
	}
	d, err := parseOne(dis)
	if err != nil {
		t.Fatal(err)
	}
	if !d.m.Nonce.Proof || len(p.m.TicketsForThirdParty("discharged", d.raw)) != 0 || len(p.m.TicketsForThirdParty("undischarged", d.raw)) != 1 {
		t.Error("the discharge is not the one of the ticket")
	}
	if _, err := p.m.VerifyParsed(v.Key, []*macaroon.Macaroon{d.m}, nil); err == nil {
		t.Error("verified without the second discharge")
	}
	_, err = dischargesOf(p.m, []one{d})
	want(t, err, NoDischarge)
}

// narrows repeats one attenuation of the vectors, whose header has three tokens.
func narrows(t *testing.T, location, base, packed, result string) int {
	raw, err := base64.StdEncoding.DecodeString(packed)
	if err != nil {
		t.Fatal(err)
	}
	cs, err := macaroon.DecodeCaveats(raw)
	if err != nil {
		t.Fatal(err)
	}
	before, after := strings.Split(strip(base), ","), strings.Split(strip(result), ",")
	for i := range before {
		o, err := parseOne(before[i])
		if err != nil {
			t.Fatal(err)
		}
		if o.m.Location != location {
			continue
		}
		if err := o.m.Add(cs.Caveats...); err != nil {
			if macaroon.IsAttestation(cs.Caveats[0]) {
				return 0 // of discharges only
			}
			t.Fatal(err)
		}
		if s, err := encode(o.m); err != nil || s != after[i] {
			t.Errorf("%s narrows otherwise: %v", cs.Caveats[0].Name(), err)
		}
		return 1
	}
	t.Error("no token of the location")
	return 0
}
