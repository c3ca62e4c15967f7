package secret

import (
	"context"
	"errors"

	"bulkhead/fault"
)

// purposeCheck is what the check record is wrapped for.
const purposeCheck = "check"

// checkText is what the check record holds.
const checkText = "this cluster key is the right one"

// OpenRing opens a cluster's ring. check is what the store keeps to know the right key
// by, wrapped; nil when the store has none yet: then a first key is made if the keeper
// has none, and made durable before the ring is returned, with the check to be stored
// before anything is wrapped.
//
// A key that is lost, wrong or damaged is an error; nothing is written then.
func OpenRing(ctx context.Context, cluster string, k Keeper, check []byte) (*Ring, []byte, error) {
	keys, err := k.Load(ctx)
	switch {
	case errors.Is(err, ErrNoKey) && check != nil:
		id, _, _, _ := split(check)
		return nil, nil, fault.New(fault.Internal, "the cluster key is lost: %s holds none, and this cluster's secrets are wrapped with key %s. Restore it from the copy that you keep apart from the data directory. Nothing was changed", k, id)
	case errors.Is(err, ErrNoKey):
		keys = []Key{NewKey()}
		if err := k.Save(ctx, keys); err != nil {
			return nil, nil, err
		}
	case err != nil:
		return nil, nil, err
	}
	r := NewRing(cluster, k.String(), keys)
	if check == nil {
		check, err = r.Wrap(purposeCheck, []byte(checkText))
		return r, check, err
	}
	if _, err := r.Unwrap(purposeCheck, check); err != nil {
		return nil, nil, err
	}
	return r, check, nil
}
