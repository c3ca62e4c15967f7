// Package passkeytest is an authenticator in software, which makes the bytes that a
// browser and a device make, and wrong ones on demand.
package passkeytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"testing"

	"github.com/fxamacker/cbor/v2"
)

// Device holds one discoverable credential.
type Device struct {
	Origin  string // of the page that it believes it is on
	RPID    string // "" takes the one that it is asked for
	Counter uint32 // of the last signature
	NoUser  bool   // it does not verify its user
	Frozen  bool   // its counter does not count

	t      testing.TB
	key    *ecdsa.PrivateKey
	ID     []byte
	Handle []byte
}

// New returns a device on a page of origin.
func New(t testing.TB, origin string) *Device {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	d := &Device{Origin: origin, t: t, key: k, ID: make([]byte, 32)}
	rand.Read(d.ID)
	return d
}

type options struct {
	Challenge string `json:"challenge"`
	RPID      string `json:"rpId"`
	RP        struct {
		ID string `json:"id"`
	} `json:"rp"`
	User struct {
		ID string `json:"id"`
	} `json:"user"`
}

func (d *Device) read(b []byte) options {
	d.t.Helper()
	var o options
	if err := json.Unmarshal(b, &o); err != nil {
		d.t.Fatalf("options %s: %v", b, err)
	}
	if o.RPID == "" {
		o.RPID = o.RP.ID
	}
	if d.RPID != "" {
		o.RPID = d.RPID
	}
	return o
}

var b64 = base64.RawURLEncoding

func (d *Device) clientData(kind, challenge string) []byte {
	b, _ := json.Marshal(map[string]any{"type": kind, "challenge": challenge, "origin": d.Origin, "crossOrigin": false})
	return b
}

// authData is the authenticator data, with the credential's key when it is made.
func (d *Device) authData(rpID string, attested bool) []byte {
	h := sha256.Sum256([]byte(rpID))
	flags := byte(0x01) // present
	if !d.NoUser {
		flags |= 0x04
	}
	if attested {
		flags |= 0x40
	}
	out := append(h[:], flags)
	out = binary.BigEndian.AppendUint32(out, d.Counter)
	if attested {
		out = append(out, make([]byte, 16)...) // AAGUID
		out = binary.BigEndian.AppendUint16(out, uint16(len(d.ID)))
		out = append(out, d.ID...)
		pub, err := d.key.PublicKey.Bytes() // 4, X, Y
		if err != nil {
			d.t.Fatal(err)
		}
		k, err := cbor.Marshal(map[int]any{1: 2, 3: -7, -1: 1, -2: pub[1:33], -3: pub[33:65]})
		if err != nil {
			d.t.Fatal(err)
		}
		out = append(out, k...)
	}
	return out
}

// Make answers the options of making a credential.
func (d *Device) Make(opts []byte) []byte {
	d.t.Helper()
	o := d.read(opts)
	d.Handle, _ = b64.DecodeString(o.User.ID)
	att, err := cbor.Marshal(map[string]any{"fmt": "none", "attStmt": map[string]any{}, "authData": d.authData(o.RPID, true)})
	if err != nil {
		d.t.Fatal(err)
	}
	return d.answer(map[string]any{
		"clientDataJSON": b64.EncodeToString(d.clientData("webauthn.create", o.Challenge)), "attestationObject": b64.EncodeToString(att),
	})
}

// Sign answers the options of signing in.
func (d *Device) Sign(opts []byte) []byte {
	d.t.Helper()
	o := d.read(opts)
	if !d.Frozen {
		d.Counter++
	}
	data, auth := d.clientData("webauthn.get", o.Challenge), d.authData(o.RPID, false)
	h := sha256.Sum256(data)
	sum := sha256.Sum256(append(auth[:len(auth):len(auth)], h[:]...))
	sig, err := ecdsa.SignASN1(rand.Reader, d.key, sum[:])
	if err != nil {
		d.t.Fatal(err)
	}
	return d.answer(map[string]any{
		"clientDataJSON": b64.EncodeToString(data), "authenticatorData": b64.EncodeToString(auth),
		"signature": b64.EncodeToString(sig), "userHandle": b64.EncodeToString(d.Handle),
	})
}

func (d *Device) answer(response map[string]any) []byte {
	b, err := json.Marshal(map[string]any{
		"id": b64.EncodeToString(d.ID), "rawId": b64.EncodeToString(d.ID), "type": "public-key",
		"authenticatorAttachment": "platform", "clientExtensionResults": map[string]any{}, "response": response,
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return b
}
