package controller

import (
	"context"
	"path/filepath"

	"bulkhead/controller/record"
	"bulkhead/secret"
	"bulkhead/store"
)

// clusterKey is what the store keeps to know the right cluster key by.
type clusterKey struct {
	Check []byte `json:"check"` // see secret.OpenRing
}

// keeper is where the cluster key lies.
func (c *Controller) keeper() secret.Keeper {
	path := c.cfg.Role.ClusterKeyFile
	if path == "" {
		path = filepath.Join(c.cfg.Role.DataDir, "cluster.key")
	}
	if name := c.cfg.Role.ClusterCredential; name != "" {
		return secret.CredentialKeeper{Name: name, File: c.cfg.ClusterKey}
	}
	if socket := c.cfg.Role.ClusterKMS; socket != "" {
		return secret.FileKeeper{Path: path, Sealer: secret.KMS{Socket: socket}}
	}
	return secret.FileKeeper{Path: path}
}

// openRing opens the ring of cluster keys; the first time it makes one. The key is on
// the disk before the record that asks for it: killed in between, the next start
// takes up the key that is there.
func (c *Controller) openRing(ctx context.Context) error {
	rec, rev, err := record.Get[clusterKey](ctx, c.store, record.KeyClusterKey)
	if err != nil {
		return err
	}
	var check []byte
	if rec != nil {
		check = rec.Check
	}
	ring, check, err := secret.OpenRing(ctx, c.cfg.Role.Cluster, c.keeper(), check)
	if err != nil {
		return err
	}
	if rec == nil {
		if _, err := c.store.Txn(ctx, []store.Cond{record.At(record.KeyClusterKey, rev)}, []store.Op{record.Put(record.KeyClusterKey, clusterKey{Check: check})}); err != nil {
			return err
		}
	}
	c.ring = ring
	c.store = newestKey{Store: c.store, ring: ring, mu: &c.keysMu}
	return nil
}
