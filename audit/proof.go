package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

// Proof is a record with all it takes to prove that it is in the log, but the log's key.
type Proof struct {
	Key        string   `json:"key"` // whose log it says it is of
	Checkpoint string   `json:"checkpoint"`
	Entry      Entry    `json:"entry"`
	Hashes     [][]byte `json:"hashes"`
}

// Prove makes a proof for an entry, and checks it.
func (v *Verifier) Prove(ctx context.Context, e Entry, key string) (*Proof, error) {
	if err := v.Included(ctx, e); err != nil {
		return nil, err
	}
	nodes, err := proof.Inclusion(e.N, v.cp.Size)
	if err != nil {
		return nil, err
	}
	hashes, err := v.hashes(ctx, nodes)
	return &Proof{Key: key, Checkpoint: string(v.cp.Note), Entry: e, Hashes: hashes}, err
}

// Verify checks a proof by the log's key, which is the caller's own and not the proof's,
// and returns the entry that is proven.
func (p *Proof) Verify(key string) (Entry, error) {
	cp, err := ParseCheckpoint([]byte(p.Checkpoint), key)
	if err != nil {
		return p.Entry, err
	}
	e := p.Entry
	var exact bytes.Buffer // a proof may have been indented
	if err := json.Compact(&exact, e.Record); err != nil {
		return e, err
	}
	e.Record = exact.Bytes()
	leaf := rfc6962.DefaultHasher.HashLeaf(e.Leaf())
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, e.N, cp.Size, leaf, p.Hashes, cp.Root); err != nil {
		return e, fmt.Errorf("record %d is not in the log: %w", e.N, err)
	}
	return e, nil
}
