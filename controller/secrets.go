package controller

import (
	"maps"
	"net/http"
	"slices"

	"bulkhead/fault"
	"bulkhead/secret"
)

// AppSecret is a secret as the API answers it: never with its value.
type AppSecret struct {
	Name      string `json:"name"`
	Digest    string `json:"digest"`
	CreatedAt string `json:"created_at"`
	UpdatedAt string `json:"updated_at"`
	// Status says whether the app's Machines have it; Bulkhead's own.
	Status string `json:"status,omitempty"`
}

// AppSecrets is an app's secrets.
type AppSecrets struct {
	Secrets []AppSecret `json:"secrets"`
	Version uint64      `json:"version"`
}

// AppSecretSet is the answer to setting one secret.
type AppSecretSet struct {
	AppSecret
	Version uint64 `json:"version"`
}

// SecretsVersion is the answer to unsetting one.
type SecretsVersion struct {
	Version uint64 `json:"version"`
}

func secretBody(name string, v *sealedValue) AppSecret {
	return AppSecret{Name: name, Digest: v.Digest, CreatedAt: stamp(v.CreatedAt), UpdatedAt: stamp(v.UpdatedAt)}
}

// noShow refuses to show values, whoever asks: a secret is written and used, never
// read back.
func noShow(r *call) error {
	show, err := r.flag("show_secrets")
	if err != nil || !show {
		return err
	}
	return fault.New(fault.Denied, "show_secrets: the value of a secret is never shown; its digest tells whether it is the one you know")
}

func (c *Controller) listSecrets(r *call) (int, any, error) {
	if err := noShow(r); err != nil {
		return 0, nil, err
	}
	a, s, err := c.secretsOf(r)
	if err != nil {
		return 0, nil, err
	}
	deployed, err := c.deployedSecrets(r.Context(), a)
	if err != nil {
		return 0, nil, err
	}
	out := AppSecrets{Secrets: []AppSecret{}, Version: s.Version}
	for _, name := range slices.Sorted(maps.Keys(s.Secrets)) {
		b := secretBody(name, s.Secrets[name])
		b.Status = deployed.status(s.Secrets[name].Version)
		out.Secrets = append(out.Secrets, b)
	}
	return http.StatusOK, out, nil
}

func (c *Controller) showSecret(r *call) (int, any, error) {
	if err := noShow(r); err != nil {
		return 0, nil, err
	}
	_, s, err := c.secretsOf(r)
	if err != nil {
		return 0, nil, err
	}
	name := r.PathValue("secret")
	v := s.Secrets[name]
	if v == nil {
		return 0, nil, noSecret(r, name)
	}
	return http.StatusOK, secretBody(name, v), nil
}

func noSecret(r *call, name string) error {
	return fault.New(fault.NotFound, "app %s has no secret %q", fault.Clip(r.app()), fault.Clip(name))
}

func (c *Controller) updateSecrets(r *call) (int, any, error) {
	var in struct {
		Values map[string]*string `json:"values"`
	}
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	if len(in.Values) == 0 {
		return 0, nil, fault.New(fault.Invalid, "values is missing; it maps names of secrets to values, or to null to unset them")
	}
	s, err := c.setSecrets(r, in.Values)
	if err != nil {
		return 0, nil, err
	}
	out := AppSecrets{Secrets: []AppSecret{}, Version: s.Version}
	for _, name := range slices.Sorted(maps.Keys(s.Secrets)) {
		out.Secrets = append(out.Secrets, secretBody(name, s.Secrets[name]))
	}
	return http.StatusOK, out, nil
}

func (c *Controller) setSecret(r *call) (int, any, error) {
	var in struct {
		Value *string `json:"value"`
	}
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	if in.Value == nil {
		return 0, nil, fault.New(fault.Invalid, "value is missing")
	}
	name := r.PathValue("secret")
	s, err := c.setSecrets(r, map[string]*string{name: in.Value})
	if err != nil {
		return 0, nil, err
	}
	return http.StatusCreated, AppSecretSet{AppSecret: secretBody(name, s.Secrets[name]), Version: s.Version}, nil
}

func (c *Controller) unsetSecret(r *call) (int, any, error) {
	name := r.PathValue("secret")
	_, s, err := c.secretsOf(r)
	if err != nil {
		return 0, nil, err
	}
	if s.Secrets[name] == nil {
		return 0, nil, noSecret(r, name)
	}
	if s, err = c.setSecrets(r, map[string]*string{name: nil}); err != nil {
		return 0, nil, err
	}
	return http.StatusOK, SecretsVersion{Version: s.Version}, nil
}

// setSecrets sets and unsets secrets, all or none. It changes nothing of Machines: they
// have it from their next start or update on. A value that is there already is no
// change, so that it is not deployed again.
func (c *Controller) setSecrets(r *call, values map[string]*string) (*appSecrets, error) {
	names := slices.Sorted(maps.Keys(values))
	for _, name := range names {
		if err := secret.CheckName(name); err != nil {
			return nil, err
		}
		if v := values[name]; v != nil {
			if err := secret.CheckValue(name, *v); err != nil {
				return nil, err
			}
		}
	}
	return c.changeSecrets(r.Context(), r.app(), func(s *appSecrets, k secret.AppKey) error {
		changed := false
		for _, name := range names {
			v, old := values[name], s.Secrets[name]
			switch {
			case v == nil && old == nil:
			case v == nil:
				delete(s.Secrets, name)
				changed = true
			default:
				d := k.Digest(name, []byte(*v))
				if old != nil && old.Digest == d {
					continue
				}
				s.seal(&s.Secrets, k, kindSecret, name, []byte(*v)).Digest = d
				changed = true
			}
		}
		if !changed {
			return errUnchanged
		}
		return nil
	})
}
