package passkey_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"bulkhead/fault"
	"bulkhead/passkey"
	"bulkhead/passkey/passkeytest"
)

const origin = "https://api.test.localhost:8443"

func status(err error) string {
	var f *fault.Error
	if errors.As(err, &f) {
		return f.Status
	}
	return ""
}

// book is a store of users for a test.
type book map[string]passkey.User

func (b book) find(_, handle []byte) (passkey.User, error) {
	u, ok := b[string(handle)]
	if !ok {
		return u, fault.New(fault.NotFound, "nobody")
	}
	return u, nil
}

func party(t *testing.T) *passkey.Party {
	t.Helper()
	p, err := passkey.New("api.test.localhost", origin)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// enrol makes a passkey for a user, and stores it as a program would: through JSON.
func enrol(t *testing.T, p *passkey.Party, b book, name string) *passkeytest.Device {
	t.Helper()
	u := passkey.User{Handle: []byte("user-" + name), Name: name}
	opts, s, err := p.BeginAdd(u)
	if err != nil {
		t.Fatal(err)
	}
	d := passkeytest.New(t, origin)
	c, err := p.FinishAdd(u, s, d.Make(opts))
	if err != nil {
		t.Fatal(err, errors.Unwrap(err))
	}
	raw, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var kept passkey.Credential
	if err := json.Unmarshal(raw, &kept); err != nil {
		t.Fatal(err)
	}
	u.Credentials = []passkey.Credential{kept}
	b[string(u.Handle)] = u
	return d
}

// signIn is one whole ceremony; change may spoil what is sent.
func signIn(t *testing.T, p *passkey.Party, b book, d *passkeytest.Device, change func(s *passkey.Pending, answer []byte) []byte) (passkey.User, error) {
	t.Helper()
	opts, s, err := p.BeginSignIn()
	if err != nil {
		t.Fatal(err)
	}
	answer := d.Sign(opts)
	if change != nil {
		answer = change(s, answer)
	}
	u, c, err := p.FinishSignIn(s, answer, b.find)
	if err == nil {
		u.Credentials = []passkey.Credential{*c}
		b[string(u.Handle)] = u
	}
	return u, err
}

// TestOptions: what the browser is asked for.
func TestOptions(t *testing.T) {
	p, b := party(t), book{}
	enrol(t, p, b, "ann")
	opts, _, err := p.BeginSignIn()
	if err != nil {
		t.Fatal(err)
	}
	var in struct {
		RPID             string `json:"rpId"`
		UserVerification string `json:"userVerification"`
		Allow            []any  `json:"allowCredentials"`
		Challenge        string `json:"challenge"`
	}
	if err := json.Unmarshal(opts, &in); err != nil || in.RPID != "api.test.localhost" || in.UserVerification != "required" || len(in.Allow) != 0 || len(in.Challenge) < 43 {
		t.Errorf("to sign in: %s %v", opts, err)
	}
	opts, _, err = p.BeginAdd(b["user-ann"])
	if err != nil {
		t.Fatal(err)
	}
	var add struct {
		RP        struct{ ID string } `json:"rp"`
		Selection struct {
			ResidentKey      string `json:"residentKey"`
			Require          bool   `json:"requireResidentKey"`
			UserVerification string `json:"userVerification"`
		} `json:"authenticatorSelection"`
		Exclude     []any  `json:"excludeCredentials"`
		Attestation string `json:"attestation"`
	}
	if err := json.Unmarshal(opts, &add); err != nil || add.RP.ID != "api.test.localhost" || add.Selection.ResidentKey != "required" || add.Selection.UserVerification != "required" || len(add.Exclude) != 1 || add.Attestation != "none" {
		t.Errorf("to add: %s %v", opts, err)
	}
}

// TestBadPasskeysAreRefused: what a hostile page, device or user may send.
func TestBadPasskeysAreRefused(t *testing.T) {
	p := party(t)
	var earlier []byte // an answer that was accepted once
	tests := map[string]struct {
		spoil  func(d *passkeytest.Device, b book)
		change func(s *passkey.Pending, answer []byte) []byte
		want   string
	}{
		"another origin":        {spoil: func(d *passkeytest.Device, _ book) { d.Origin = "https://api.test.localhost.evil.example" }, want: passkey.Refused},
		"another port":          {spoil: func(d *passkeytest.Device, _ book) { d.Origin = "https://api.test.localhost:9443" }, want: passkey.Refused},
		"an app's origin":       {spoil: func(d *passkeytest.Device, _ book) { d.Origin = "https://app.test.localhost:8443" }, want: passkey.Refused},
		"plain HTTP":            {spoil: func(d *passkeytest.Device, _ book) { d.Origin = "http://api.test.localhost:8443" }, want: passkey.Refused},
		"another RP id":         {spoil: func(d *passkeytest.Device, _ book) { d.RPID = "test.localhost" }, want: passkey.Refused},
		"user not verified":     {spoil: func(d *passkeytest.Device, _ book) { d.NoUser = true }, want: passkey.Refused},
		"counter goes back":     {spoil: func(d *passkeytest.Device, _ book) { d.Counter = 2 }, want: passkey.Cloned},
		"counter stands":        {spoil: func(d *passkeytest.Device, _ book) { d.Frozen = true }, want: passkey.Cloned},
		"removed":               {spoil: func(d *passkeytest.Device, b book) { u := b["user-ann"]; u.Credentials = nil; b["user-ann"] = u }, want: passkey.Unknown},
		"nobody's handle":       {spoil: func(d *passkeytest.Device, _ book) { d.Handle = []byte("user-eve") }, want: passkey.Unknown},
		"another user's handle": {spoil: func(d *passkeytest.Device, _ book) { d.Handle = []byte("user-bob") }, want: passkey.Unknown},
		"another user's key":    {spoil: func(d *passkeytest.Device, b book) { d.ID = b["user-bob"].Credentials[0].ID }, want: passkey.Unknown},
		"no handle":             {spoil: func(d *passkeytest.Device, _ book) { d.Handle = nil }, want: passkey.Refused},
		"replayed":              {change: func(*passkey.Pending, []byte) []byte { return earlier }, want: passkey.Refused},
		"too late":              {change: func(s *passkey.Pending, a []byte) []byte { s.Expires = time.Now().Add(-time.Second); return a }, want: passkey.Refused},
		"not JSON":              {change: func(*passkey.Pending, []byte) []byte { return []byte("{") }, want: passkey.Refused},
		"empty":                 {change: func(*passkey.Pending, []byte) []byte { return nil }, want: passkey.Refused},
		"signature of 0 bytes":  {change: func(_ *passkey.Pending, a []byte) []byte { return with(t, a, "signature", "") }, want: passkey.Refused},
		"made, not signed in": {change: func(_ *passkey.Pending, a []byte) []byte {
			return bytes.Replace(a, []byte("public-key"), []byte("password"), 1)
		}, want: passkey.Refused},
		"authenticator data cut": {change: func(_ *passkey.Pending, a []byte) []byte { return with(t, a, "authenticatorData", "AAAA") }, want: passkey.Refused},
	}
	for name, tt := range tests {
		b := book{}
		d := enrol(t, p, b, "ann")
		enrol(t, p, b, "bob")
		for range 3 { // so that the counter is 3
			u, err := signIn(t, p, b, d, func(_ *passkey.Pending, a []byte) []byte { earlier = a; return a })
			if err != nil || u.Name != "ann" {
				t.Fatalf("the truth, before %q: %+v %v", name, u, err)
			}
		}
		if tt.spoil != nil {
			tt.spoil(d, b)
		}
		if u, err := signIn(t, p, b, d, tt.change); status(err) != tt.want || !fault.Is(err, fault.Denied) {
			t.Errorf("%s: %+v %v, want %s", name, u, err, tt.want)
		}
	}
	t.Logf("%d refused", len(tests))
}

// TestBadEnrolmentsAreRefused: a passkey is made for one user, on our page, by a device
// that verified its user.
func TestBadEnrolmentsAreRefused(t *testing.T) {
	p := party(t)
	ann := passkey.User{Handle: []byte("user-ann"), Name: "ann"}
	_, other, err := p.BeginAdd(ann)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		spoil func(*passkeytest.Device)
		user  passkey.User
		s     *passkey.Pending
	}{
		"another origin":    {spoil: func(d *passkeytest.Device) { d.Origin = "https://evil.example" }},
		"another RP id":     {spoil: func(d *passkeytest.Device) { d.RPID = "evil.example" }},
		"not verified":      {spoil: func(d *passkeytest.Device) { d.NoUser = true }},
		"for another user":  {user: passkey.User{Handle: []byte("user-bob"), Name: "bob"}},
		"another challenge": {s: other},
	} {
		opts, s, err := p.BeginAdd(ann)
		if err != nil {
			t.Fatal(err)
		}
		d, u := passkeytest.New(t, origin), ann
		if tt.spoil != nil {
			tt.spoil(d)
		}
		if tt.user.Name != "" {
			u = tt.user
		}
		if tt.s != nil {
			s = tt.s
		}
		if _, err := p.FinishAdd(u, s, d.Make(opts)); status(err) != passkey.Refused {
			t.Errorf("%s: %v", name, err)
		}
	}
	full := ann
	full.Credentials = make([]passkey.Credential, passkey.MaxPerUser)
	if _, _, err := p.BeginAdd(full); !fault.Is(err, fault.Unprocessable) {
		t.Errorf("one more than there may be: %v", err)
	}
}

// with replaces one field of an answer's response.
func with(t *testing.T, answer []byte, field, value string) []byte {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(answer, &m); err != nil {
		t.Fatal(err)
	}
	m["response"].(map[string]any)[field] = value
	out, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
