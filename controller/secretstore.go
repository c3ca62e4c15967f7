package controller

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/secret"
	"bulkhead/store"
)

// appSecrets is everything secret of one app, in one record: it changes as a whole, and
// it goes as a whole, with the app, in the same transaction.
type appSecrets struct {
	AppID string `json:"app_id"`
	Key   []byte `json:"key"` // the app's key, wrapped (secret.Ring)
	// Version grows with every change.
	Version uint64                  `json:"version"`
	Secrets map[string]*sealedValue `json:"secrets,omitempty"`
	Keys    map[string]*sealedValue `json:"keys,omitempty"` // secret keys
}

// sealedValue is a secret or a secret key.
type sealedValue struct {
	Sealed    []byte    `json:"sealed"`           // by the app's key, under kind, name and version
	Version   uint64    `json:"version"`          // the app's version that set it
	Size      int       `json:"size"`             // of the value, in bytes
	Digest    string    `json:"digest,omitempty"` // of a secret
	Type      string    `json:"type,omitempty"`   // of a secret key
	Public    []byte    `json:"public,omitempty"` // of a secret key
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// Kinds of sealed values: what their encryption is bound to.
const (
	kindSecret    = "secret"
	kindSecretKey = "secret key" // and its type: it opens as none other
)

// readSecrets returns an app's secrets; with version 0 when it has none yet.
func (c *Controller) readSecrets(ctx context.Context, a *record.App) (*appSecrets, int64, error) {
	s, rev, err := record.Get[appSecrets](ctx, c.store, record.SecretsKey(a.Name))
	if err != nil {
		return nil, 0, err
	}
	if s != nil && s.AppID != a.ID {
		return nil, 0, fault.New(fault.Internal, "the secrets under app %s are those of another app", a.Name)
	}
	if s == nil {
		s = &appSecrets{AppID: a.ID}
	}
	return s, rev, nil
}

// appKey unwraps an app's key, or makes it when there is none. The caller clears it.
func (c *Controller) appKey(s *appSecrets) (secret.AppKey, error) {
	purpose := "app " + s.AppID
	if s.Key == nil {
		raw := secret.NewAppKey()
		defer clear(raw)
		wrapped, err := c.ring.Wrap(purpose, raw)
		if err != nil {
			return secret.AppKey{}, err
		}
		s.Key = wrapped
		return secret.AppKeyOf(raw, c.cfg.Role.Cluster, s.AppID), nil
	}
	raw, err := c.ring.Unwrap(purpose, s.Key)
	if err != nil {
		return secret.AppKey{}, err
	}
	defer clear(raw)
	return secret.AppKeyOf(raw, c.cfg.Role.Cluster, s.AppID), nil
}

// changeSecrets is the one door through which an app's secrets change: f changes the
// record it is given at its next version, or refuses. One transaction, conditional on
// the app: it cannot bring back what a deletion has taken away.
func (c *Controller) changeSecrets(ctx context.Context, appName string, f func(s *appSecrets, k secret.AppKey) error) (*appSecrets, error) {
	var out *appSecrets
	err := retry(ctx, func() error {
		a, arev, err := c.getApp(ctx, appName)
		if err != nil {
			return err
		}
		if a.Deleting {
			return fault.New(fault.Conflict, "app %s is being deleted", a.Name)
		}
		s, rev, err := c.readSecrets(ctx, a)
		if err != nil {
			return err
		}
		k, err := c.appKey(s)
		if err != nil {
			return err
		}
		defer k.Clear()
		s.Version++
		if err := f(s, k); errors.Is(err, errUnchanged) {
			s.Version--
			out = s
			return nil
		} else if err != nil {
			return err
		}
		if err := s.fits(); err != nil {
			return err
		}
		_, err = c.store.Txn(ctx, []store.Cond{record.At(record.AppKey(a.Name), arev), record.At(record.SecretsKey(a.Name), rev)}, []store.Op{record.Put(record.SecretsKey(a.Name), s)})
		out = s
		return err
	})
	return out, err
}

// fits bounds the record as a whole.
func (s *appSecrets) fits() error {
	total := 0
	for _, m := range []map[string]*sealedValue{s.Secrets, s.Keys} {
		for name, v := range m {
			total += len(name) + v.Size
		}
	}
	if n := len(s.Secrets) + len(s.Keys); n > secret.MaxSecrets || total > secret.MaxTotal {
		return fault.New(fault.Unprocessable, "the app would have %d secrets and secret keys of %d bytes together; at most %d of %d KiB are kept", n, total, secret.MaxSecrets, secret.MaxTotal>>10)
	}
	return nil
}

// seal keeps a value under a name of one of the record's maps.
func (s *appSecrets) seal(m *map[string]*sealedValue, k secret.AppKey, kind, name string, value []byte) *sealedValue {
	t := now()
	v := &sealedValue{Sealed: k.Seal(kind, name, s.Version, value), Version: s.Version, Size: len(value), CreatedAt: t, UpdatedAt: t}
	if old := (*m)[name]; old != nil {
		v.CreatedAt = old.CreatedAt
	}
	if *m == nil {
		*m = map[string]*sealedValue{}
	}
	(*m)[name] = v
	return v
}

// environment opens all of an app's secrets: what a Machine is given. Only the worker
// that starts one gets it, sealed (fetchSecrets).
func (s *appSecrets) environment(k secret.AppKey) ([]byte, error) {
	values := map[string]string{}
	for name, v := range s.Secrets {
		b, err := k.Open(kindSecret, name, v.Version, v.Sealed)
		if err != nil {
			return nil, fault.Wrap(fault.Internal, err, "secret %s cannot be opened", name)
		}
		values[name] = string(b)
		clear(b)
	}
	return json.Marshal(values)
}

// secretsOf reads the secrets of an app that a request names, and holds them against
// the oldest version that the caller will take ("min_version", or "version" as fly-go
// sends it).
func (c *Controller) secretsOf(r *call) (*record.App, *appSecrets, error) {
	a, _, err := c.getApp(r.Context(), r.app())
	if err != nil {
		return nil, nil, err
	}
	s, _, err := c.readSecrets(r.Context(), a)
	if err != nil {
		return nil, nil, err
	}
	for _, name := range []string{"min_version", "version"} {
		least, err := r.number(name, 0, 0, 1<<53)
		if err != nil {
			return nil, nil, err
		}
		if uint64(least) > s.Version {
			return nil, nil, tooNew(a.Name, uint64(least), s.Version)
		}
	}
	return a, s, nil
}

// tooNew refuses a least version that there has never been.
func tooNew(a key.AppName, least, have uint64) error {
	return fault.New(fault.Precondition, "the secrets of app %s are at version %d; version %d, which is the oldest that is to be used, has not been set", a, have, least)
}
