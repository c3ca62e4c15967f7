package passkey_test

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"bulkhead/fault"
	"bulkhead/passkey"
	"bulkhead/passkey/passkeytest"
)

// FuzzAnswer: whatever somebody sends as their device's answer, to make a passkey or to
// sign in, it is refused with its word, or is whole and of the user who has the key.
func FuzzAnswer(f *testing.F) {
	p, err := passkey.New("api.test.localhost", origin)
	if err != nil {
		f.Fatal(err)
	}
	ann := passkey.User{Handle: []byte("user-ann"), Name: "ann"}
	toAdd, adding, err := p.BeginAdd(ann)
	if err != nil {
		f.Fatal(err)
	}
	d := passkeytest.New(f, origin)
	made := d.Make(toAdd)
	c, err := p.FinishAdd(ann, adding, made)
	if err != nil {
		f.Fatal(err)
	}
	toSign, signing, err := p.BeginSignIn()
	if err != nil {
		f.Fatal(err)
	}
	signed := d.Sign(toSign)
	ann.Credentials = []passkey.Credential{*c}
	b := book{string(ann.Handle): ann}
	if _, _, err := p.FinishSignIn(signing, signed, b.find); err != nil {
		f.Fatal(err)
	}
	for _, a := range [][]byte{made, signed} {
		f.Add(a)
		f.Add(a[:len(a)/2])
		var m map[string]any
		if err := json.Unmarshal(a, &m); err != nil {
			f.Fatal(err)
		}
		for _, field := range []string{"attestationObject", "authenticatorData", "clientDataJSON", "userHandle"} {
			v, ok := m["response"].(map[string]any)[field].(string)
			if !ok {
				continue
			}
			raw, _ := base64.RawURLEncoding.DecodeString(v)
			for _, cut := range []int{len(raw) / 2, len(raw) - 1} {
				f.Add([]byte(strings.Replace(string(a), v, base64.RawURLEncoding.EncodeToString(raw[:cut]), 1)))
			}
		}
	}
	f.Add([]byte(`{"id":"AA","rawId":"AA","type":"public-key","response":{}}`))
	f.Add([]byte(`{"response":{"attestationObject":"v2NmbXRkbm9uZf8"}}`))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		if c, err := p.FinishAdd(passkey.User{Handle: ann.Handle, Name: ann.Name}, adding, answer); err == nil {
			if len(c.ID) == 0 || len(c.PublicKey) == 0 {
				t.Errorf("made of %q: %+v", answer, c)
			}
		} else if !fault.Is(err, fault.Denied) || status(err) == "" {
			t.Errorf("making of %q: %v", answer, err)
		}
		if u, c, err := p.FinishSignIn(signing, answer, b.find); err == nil {
			if u.Name != "ann" || string(c.ID) != string(ann.Credentials[0].ID) {
				t.Errorf("signed in by %q: %+v", answer, u)
			}
		} else if !fault.Is(err, fault.Denied) || status(err) == "" {
			t.Errorf("signing in by %q: %v", answer, err)
		}
	})
}
