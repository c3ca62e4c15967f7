// Package passkey is the relying party of WebAuthn: people who are known to the
// installation itself sign in with a key that their device holds, and no password.
//
// Credentials are discoverable, so that nobody is asked for a name first and no name
// can be tried out; the device verifies its user (fingerprint, PIN), always. The
// authenticator's attestation is not asked for: which device it is is the user's own
// matter. The package holds no state: who calls it keeps a Pending for each ceremony,
// bound to one browser, and gives it back once.
package passkey

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"

	"bulkhead/fault"
)

// Words of refusals, in Status.
const (
	Refused = "passkey_refused" // the answer is not a good one: origin, challenge, signature, user not verified
	Unknown = "passkey_unknown" // no such credential
	Cloned  = "passkey_cloned"  // the device's counter went back: there may be two of it
)

// Life is how long a ceremony may take.
const Life = 5 * time.Minute

// MaxPerUser bounds a user's passkeys.
const MaxPerUser = 20

// Credential is the whole record of a passkey, as it must be stored: later checks need
// all of it. It holds no secret.
type Credential = webauthn.Credential

// Pending is a ceremony that was begun.
type Pending = webauthn.SessionData

// User is whose passkeys they are.
type User struct {
	Handle      []byte // opaque, for ever the same, at most 64 bytes
	Name        string
	Credentials []Credential
}

// WebAuthnID implements webauthn.User.
func (u User) WebAuthnID() []byte { return u.Handle }

// WebAuthnName implements webauthn.User.
func (u User) WebAuthnName() string { return u.Name }

// WebAuthnDisplayName implements webauthn.User.
func (u User) WebAuthnDisplayName() string { return u.Name }

// WebAuthnCredentials implements webauthn.User.
func (u User) WebAuthnCredentials() []Credential { return u.Credentials }

// Party is the relying party.
type Party struct{ w *webauthn.WebAuthn }

// New returns the relying party of a host name, whose pages are at origins alone.
func New(host string, origins ...string) (*Party, error) {
	limit := webauthn.TimeoutConfig{Enforce: true, Timeout: Life, TimeoutUVD: Life}
	w, err := webauthn.New(&webauthn.Config{
		RPID: host, RPDisplayName: "Bulkhead at " + host, RPOrigins: origins,
		AttestationPreference: protocol.PreferNoAttestation,
		AuthenticatorSelection: protocol.AuthenticatorSelection{
			ResidentKey: protocol.ResidentKeyRequirementRequired, UserVerification: protocol.VerificationRequired,
		},
		Timeouts: webauthn.TimeoutsConfig{Login: limit, Registration: limit},
	})
	if err != nil {
		return nil, err
	}
	return &Party{w}, nil
}

// BeginAdd returns what a browser needs to make a passkey for u, as JSON.
func (p *Party) BeginAdd(u User) ([]byte, *Pending, error) {
	if len(u.Credentials) >= MaxPerUser {
		return nil, nil, fault.New(fault.Unprocessable, "%s has %d passkeys, which is the most there can be; remove one first", u.Name, len(u.Credentials))
	}
	var have []protocol.CredentialDescriptor
	for _, c := range u.Credentials {
		have = append(have, c.Descriptor())
	}
	o, s, err := p.w.BeginRegistration(u, webauthn.WithExclusions(have))
	if err != nil {
		return nil, nil, err
	}
	b, err := json.Marshal(o.Response)
	return b, s, err
}

// FinishAdd checks what the browser made, and returns the credential to store.
func (p *Party) FinishAdd(u User, s *Pending, answer []byte) (*Credential, error) {
	parsed, err := protocol.ParseCredentialCreationResponseBytes(answer)
	if err != nil {
		return nil, refused(err)
	}
	c, err := p.w.CreateCredential(u, *s, parsed)
	if err != nil {
		return nil, refused(err)
	}
	return c, nil
}

// BeginSignIn returns what a browser needs to sign somebody in, as JSON. It names nobody.
func (p *Party) BeginSignIn() ([]byte, *Pending, error) {
	o, s, err := p.w.BeginDiscoverableLogin(webauthn.WithUserVerification(protocol.VerificationRequired))
	if err != nil {
		return nil, nil, err
	}
	b, err := json.Marshal(o.Response)
	return b, s, err
}

// FinishSignIn checks what the browser brought, finds the user by the handle that the
// device kept, and returns the user with the credential as it must be stored now. find is
// told the credential too, whose user it must be, and answers fault.NotFound when it is
// not. After Cloned the device had the credential's key.
func (p *Party) FinishSignIn(s *Pending, answer []byte, find func(id, handle []byte) (User, error)) (User, *Credential, error) {
	parsed, err := protocol.ParseCredentialRequestResponseBytes(answer)
	if err != nil {
		return User{}, nil, refused(err)
	}
	var who User
	var failure error
	asked := false
	_, c, err := p.w.ValidatePasskeyLogin(func(id, handle []byte) (webauthn.User, error) {
		asked = true
		if who, failure = find(id, handle); failure != nil {
			return nil, failure
		}
		return who, nil
	}, *s, parsed)
	switch {
	case failure != nil && !fault.Is(failure, fault.NotFound):
		return User{}, nil, failure
	case failure != nil || err != nil && asked && !has(who, parsed.RawID):
		return User{}, nil, fault.Wrap(fault.Denied, err, "this passkey is not known here, or was removed").WithStatus(Unknown)
	case err != nil:
		return User{}, nil, refused(err)
	case c.Authenticator.CloneWarning:
		return User{}, nil, fault.New(fault.Denied, "this passkey's counter went back: there may be a copy of it; sign in another way, remove it and add another").WithStatus(Cloned)
	}
	return who, c, nil
}

func has(u User, id []byte) bool {
	for _, c := range u.Credentials {
		if string(c.ID) == string(id) {
			return true
		}
	}
	return false
}

// refused hides what exactly was wrong from the browser, and keeps it for the log.
func refused(err error) error {
	var e *protocol.Error
	if errors.As(err, &e) {
		err = errors.New(e.Type + ": " + e.Details + ": " + e.DevInfo)
	}
	return fault.Wrap(fault.Denied, err, "the passkey was not accepted; the server's log says why").WithStatus(Refused)
}
