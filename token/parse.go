package token

import (
	"bytes"
	"encoding/base64"
	"strings"

	"github.com/superfly/macaroon"
	"github.com/superfly/macaroon/flyio"
	"github.com/superfly/macaroon/resset"

	"bulkhead/key"
)

// Location is what permission tokens are for; whatever else a header holds are discharges.
const Location = flyio.LocationPermission

// Bounds of a header. They hold before anything is decoded.
const (
	MaxHeader  = 16 << 10 // bytes of a header
	MaxTokens  = 16       // tokens of a header
	MaxToken   = 8 << 10  // bytes of one token, decoded
	MaxCaveats = 64       // caveats of one token, those inside others included
	MaxDepth   = 4        // caveats inside caveats

	// maxNesting bounds values inside values: each caveat inside another takes three.
	maxNesting = 3*MaxDepth + 6
	// minBinding is the shortest prefix of a parent's digest that binds a discharge.
	minBinding = 16
)

// Prefix starts every token, so that scanners for leaked secrets know it.
const Prefix = "fm2_"

// one is one token of a header.
type one struct {
	text string // as it came, with its prefix
	raw  []byte
	m    *macaroon.Macaroon
}

// Bundle is what a header holds. Nothing in it is verified.
type Bundle struct {
	permissions []one
	discharges  []one
}

// Parse reads a header or a bare list of tokens. Its error is a *Refusal.
func Parse(header string) (*Bundle, error) {
	if len(header) > MaxHeader {
		return nil, refuse(TooLong, "the token is longer than %d bytes", MaxHeader)
	}
	list := strip(header)
	if list == "" {
		return nil, refuse(Missing, "there is no token")
	}
	if strings.Count(list, ",") >= MaxTokens {
		return nil, refuse(TooLong, "the header holds more than %d tokens", MaxTokens)
	}
	b := &Bundle{}
	for text := range strings.SplitSeq(list, ",") {
		o, err := parseOne(strings.TrimSpace(text))
		if err != nil {
			return nil, err
		}
		if o.m.Location == Location {
			b.permissions = append(b.permissions, o)
		} else {
			b.discharges = append(b.discharges, o)
		}
	}
	if len(b.permissions) == 0 {
		return nil, refuse(Malformed, "the header holds no token for %s, only discharges", Location)
	}
	return b, nil
}

// strip takes the scheme off a header. Clients send one, or none, or both.
func strip(header string) string {
	header = strings.TrimSpace(header)
	for range 2 {
		scheme, rest, found := strings.Cut(header, " ")
		if !found || !strings.EqualFold(scheme, "Bearer") && !strings.EqualFold(scheme, "FlyV1") {
			break
		}
		header = strings.TrimSpace(rest)
	}
	return header
}

// Is reports whether a text looks like a macaroon, and not like a token of another kind.
func Is(header string) bool {
	switch pfx, _, _ := strings.Cut(strip(header), "_"); pfx {
	case "fm1r", "fm1a", "fm2":
		return true
	}
	return false
}

// parseOne reads one token: bounded, decoded, and the same again when it is encoded,
// so that of each token there is one form only and no byte of it can be changed unseen.
func parseOne(text string) (one, error) {
	pfx, b64, found := strings.Cut(text, "_")
	if !found || pfx != "fm2" && pfx != "fm1r" && pfx != "fm1a" {
		return one{}, refuse(Malformed, "the token does not start with %s", Prefix)
	}
	if base64.StdEncoding.DecodedLen(len(b64)) > MaxToken {
		return one{}, refuse(TooLong, "a token is longer than %d bytes", MaxToken)
	}
	if strings.ContainsAny(b64, "\r\n") {
		return one{}, refuse(Malformed, "the token has a line break in it")
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(b64)
	if err != nil {
		return one{}, refuse(Malformed, "the token is not base64: a part of it is missing or was changed")
	}
	m, err := decode(raw)
	if err != nil {
		return one{}, err
	}
	return one{text: text, raw: raw, m: m}, nil
}

func decode(raw []byte) (*macaroon.Macaroon, error) {
	rest, refusal := scan(raw, 0)
	if refusal != nil {
		return nil, refusal
	}
	if len(rest) != 0 {
		return nil, refuse(Malformed, "there is something behind the token")
	}
	m, err := macaroon.Decode(raw)
	if err != nil {
		return nil, refuse(Malformed, "the token is not a macaroon")
	}
	left := MaxCaveats
	if err := inspect(m.UnsafeCaveats.Caveats, 0, &left); err != nil {
		return nil, err
	}
	again, err := m.Encode()
	if err != nil || !bytes.Equal(raw, again) {
		return nil, refuse(Malformed, "the token is not encoded the one way that is accepted")
	}
	return m, nil
}

// inspect bounds caveats and refuses those that would break whoever evaluates them.
// Caveats of unknown types pass here: Allows refuses them, by number.
func inspect(caveats []macaroon.Caveat, depth int, left *int) error {
	if depth > MaxDepth {
		return refuse(TooLong, "caveats nest more than %d deep", MaxDepth)
	}
	for _, c := range caveats {
		if *left--; *left < 0 {
			return refuse(TooLong, "a token has more than %d caveats", MaxCaveats)
		}
		switch c := c.(type) {
		case *macaroon.BindToParentToken:
			if len(*c) < minBinding {
				return refuse(Malformed, "a discharge is bound by %d bytes; at least %d are wanted", len(*c), minBinding)
			}
		case *resset.IfPresent:
			if c.Ifs == nil {
				return refuse(Malformed, "a caveat of type IfPresent has no condition")
			}
			if err := inspect(c.Ifs.Caveats, depth+1, left); err != nil {
				return err
			}
		}
	}
	return nil
}

// String gives the tokens as a list, without a scheme.
func (b *Bundle) String() string {
	var s []string
	for _, o := range b.permissions {
		s = append(s, o.text)
	}
	for _, o := range b.discharges {
		s = append(s, o.text)
	}
	return strings.Join(s, ",")
}

// Header makes the value of an Authorization header of a list of tokens.
func Header(list string) string { return macaroon.AuthorizationSchemeFlyV1 + " " + list }

// encode gives a token's text.
func encode(m *macaroon.Macaroon) (string, error) {
	raw, err := m.Encode()
	if err != nil {
		return "", err
	}
	if len(raw) > MaxToken {
		return "", refuse(TooLong, "the token would be longer than %d bytes", MaxToken)
	}
	return Prefix + base64.StdEncoding.EncodeToString(raw), nil
}

// Claimed returns the id that the first token says it has, whether that is true or not;
// empty when it is none of this platform's.
func (b *Bundle) Claimed() key.TokenID {
	if len(b.permissions) == 0 {
		return ""
	}
	_, id, _ := idOf(b.permissions[0].m)
	return id
}
