package controller

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"

	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/secret"
)

// octets are bytes in JSON: base64 as Go's clients send them, or an array of integers
// as the OpenAPI file has them. They are answered in base64.
type octets []byte

// UnmarshalJSON implements json.Unmarshaler. Its errors hold nothing of the bytes.
func (o *octets) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '[' {
		var list []uint8AsInt
		if err := json.Unmarshal(b, &list); err != nil {
			return errors.New("bytes as an array must be whole numbers from 0 to 255")
		}
		*o = make(octets, len(list))
		for i, n := range list {
			(*o)[i] = byte(n)
		}
		return nil
	}
	var s *string
	if err := json.Unmarshal(b, &s); err != nil {
		return errors.New("bytes must be base64 or an array of integers")
	}
	if s == nil {
		*o = nil
		return nil
	}
	raw, err := base64.StdEncoding.DecodeString(*s)
	if err != nil {
		return errors.New("bytes are not in base64 (the standard alphabet, with padding)")
	}
	*o = raw
	return nil
}

// uint8AsInt is a byte that JSON has as a number; a slice of bytes would be base64.
type uint8AsInt uint8

// SecretKey is a secret key as the API answers it: never with its value.
type SecretKey struct {
	Name      string `json:"name"`
	Type      string `json:"type"`
	PublicKey []byte `json:"public_key,omitempty"`
	CreatedAt string `json:"created_at"`
	UpdatedAt string `json:"updated_at"`
}

// SecretKeySet is the answer to setting one.
type SecretKeySet struct {
	SecretKey
	Version uint64 `json:"version"`
}

// maxMessage bounds what a secret key is used on, in bytes.
const maxMessage = 1 << 20

func secretKeyBody(name string, v *sealedValue) SecretKey {
	return SecretKey{Name: name, Type: v.Type, PublicKey: v.Public, CreatedAt: stamp(v.CreatedAt), UpdatedAt: stamp(v.UpdatedAt)}
}

func (c *Controller) listSecretKeys(r *call) (int, any, error) {
	_, s, err := c.secretsOf(r)
	if err != nil {
		return 0, nil, err
	}
	types := csv(r.URL.Query()["types"])
	for _, t := range types {
		if err := secret.CheckType(t); err != nil {
			return 0, nil, err
		}
	}
	out := struct {
		Keys []SecretKey `json:"secret_keys"`
	}{Keys: []SecretKey{}}
	for _, name := range slices.Sorted(maps.Keys(s.Keys)) {
		if v := s.Keys[name]; len(types) == 0 || slices.Contains(types, v.Type) {
			out.Keys = append(out.Keys, secretKeyBody(name, v))
		}
	}
	return http.StatusOK, out, nil
}

func (c *Controller) showSecretKey(r *call) (int, any, error) {
	_, _, v, err := c.secretKeyOf(r)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, secretKeyBody(r.PathValue("secret"), v), nil
}

// secretKeyOf finds the secret key that a request names.
func (c *Controller) secretKeyOf(r *call) (*record.App, *appSecrets, *sealedValue, error) {
	a, s, err := c.secretsOf(r)
	if err != nil {
		return nil, nil, nil, err
	}
	name := r.PathValue("secret")
	v := s.Keys[name]
	if v == nil {
		return nil, nil, nil, fault.New(fault.NotFound, "app %s has no secret key %q", a.Name, fault.Clip(name))
	}
	return a, s, v, nil
}

func (c *Controller) setSecretKey(r *call) (int, any, error) {
	var in struct {
		Type  string `json:"type"`
		Value octets `json:"value"`
	}
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	defer clear(in.Value)
	if err := secret.CheckType(in.Type); err != nil {
		return 0, nil, err
	}
	return c.keepSecretKey(r, in.Type, in.Value)
}

func (c *Controller) generateSecretKey(r *call) (int, any, error) {
	var in struct {
		Type string `json:"type"`
	}
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	if err := secret.CheckType(in.Type); err != nil {
		return 0, nil, err
	}
	value, err := secret.GenerateKey(in.Type)
	if err != nil {
		return 0, nil, err
	}
	defer clear(value)
	return c.keepSecretKey(r, in.Type, value)
}

// keepSecretKey sets a secret key. One that is there is replaced: what it encrypted or
// signed can be opened and verified by its owner's copy only.
func (c *Controller) keepSecretKey(r *call, typ string, value []byte) (int, any, error) {
	name := r.PathValue("secret")
	if err := secret.CheckKeyName(name); err != nil {
		return 0, nil, err
	}
	public, err := secret.PublicKey(typ, value)
	if err != nil {
		return 0, nil, err
	}
	s, err := c.changeSecrets(r.Context(), r.app(), func(s *appSecrets, k secret.AppKey) error {
		v := s.seal(&s.Keys, k, kindSecretKey+" "+typ, name, value)
		v.Type, v.Public = typ, public
		return nil
	})
	if err != nil {
		return 0, nil, err
	}
	return http.StatusCreated, SecretKeySet{SecretKey: secretKeyBody(name, s.Keys[name]), Version: s.Version}, nil
}

func (c *Controller) deleteSecretKey(r *call) (int, any, error) {
	name := r.PathValue("secret")
	if _, _, _, err := c.secretKeyOf(r); err != nil {
		return 0, nil, err
	}
	s, err := c.changeSecrets(r.Context(), r.app(), func(s *appSecrets, _ secret.AppKey) error {
		if s.Keys[name] == nil {
			return errUnchanged
		}
		delete(s.Keys, name)
		return nil
	})
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, SecretsVersion{Version: s.Version}, nil
}

// keyMessage is the body of every use of a secret key.
type keyMessage struct {
	Plaintext  octets `json:"plaintext"`
	Ciphertext octets `json:"ciphertext"`
	Signature  octets `json:"signature"`
	Associated octets `json:"associated_data"`
}

// useSecretKey makes the handler of one use: it opens the key for the time of the call.
func (c *Controller) useSecretKey(use func(typ string, value []byte, in *keyMessage) (int, any, error)) handler {
	return func(r *call) (int, any, error) {
		var in keyMessage
		if err := r.read(&in, true); err != nil {
			return 0, nil, err
		}
		if len(in.Plaintext)+len(in.Ciphertext)+len(in.Associated) > maxMessage {
			return 0, nil, fault.New(fault.Invalid, "more than %d KiB to encrypt, decrypt, sign or verify: encrypt a key for it, or sign its digest", maxMessage>>10)
		}
		_, s, v, err := c.secretKeyOf(r)
		if err != nil {
			return 0, nil, err
		}
		k, err := c.appKey(s)
		if err != nil {
			return 0, nil, err
		}
		defer k.Clear()
		value, err := k.Open(kindSecretKey+" "+v.Type, r.PathValue("secret"), v.Version, v.Sealed)
		if err != nil {
			return 0, nil, fault.Wrap(fault.Internal, err, "secret key %s cannot be opened", fault.Clip(r.PathValue("secret")))
		}
		defer clear(value)
		return use(v.Type, value, &in)
	}
}

func encryptWith(typ string, key []byte, in *keyMessage) (int, any, error) {
	b, err := secret.Encrypt(typ, key, in.Plaintext, in.Associated)
	return http.StatusOK, struct {
		Ciphertext []byte `json:"ciphertext"`
	}{b}, err
}

func decryptWith(typ string, key []byte, in *keyMessage) (int, any, error) {
	b, err := secret.Decrypt(typ, key, in.Ciphertext, in.Associated)
	return http.StatusOK, struct {
		Plaintext []byte `json:"plaintext"`
	}{b}, err
}

func signWith(typ string, key []byte, in *keyMessage) (int, any, error) {
	b, err := secret.Sign(typ, key, in.Plaintext)
	return http.StatusOK, struct {
		Signature []byte `json:"signature"`
	}{b}, err
}

func verifyWith(typ string, key []byte, in *keyMessage) (int, any, error) {
	if err := secret.Verify(typ, key, in.Plaintext, in.Signature); err != nil {
		return 0, nil, err
	}
	return noContent()
}
