package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/api/layout"
)

// ReadFunc reads a file of the log, by its path below LogDir.
type ReadFunc func(ctx context.Context, path string) ([]byte, error)

// Verifier proves things about the tree of one checkpoint from the log's tiles. It
// believes nothing but the checkpoint: a tile that was tampered with makes a proof fail.
// It is not safe for concurrent use.
type Verifier struct {
	cp    *Checkpoint
	read  ReadFunc
	tiles map[tileID]*tile
	order []tileID // of arrival, for forgetting
}

type tileID struct{ level, index uint64 }

// tile is a tile's hashes with the nodes between them that were asked for.
type tile struct{ rows [][][]byte }

// maxTiles bounds the tiles that are remembered: the upper levels and the last few.
const maxTiles = 64

// NewVerifier returns a Verifier of the checkpoint's tree.
func NewVerifier(cp *Checkpoint, read ReadFunc) *Verifier {
	return &Verifier{cp: cp, read: read, tiles: map[tileID]*tile{}}
}

// Included proves that the entry is in the tree, where it says.
func (v *Verifier) Included(ctx context.Context, e Entry) error {
	if e.N >= v.cp.Size {
		return fmt.Errorf("record %d is not in the log: the checkpoint has %d records", e.N, v.cp.Size)
	}
	nodes, err := proof.Inclusion(e.N, v.cp.Size)
	if err != nil {
		return err
	}
	hashes, err := v.hashes(ctx, nodes)
	if err != nil {
		return fmt.Errorf("record %d: %w", e.N, err)
	}
	leaf := rfc6962.DefaultHasher.HashLeaf(e.Leaf())
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, e.N, v.cp.Size, leaf, hashes, v.cp.Root); err != nil {
		return fmt.Errorf("record %d is not what the log has at its place, or the log was changed: %w", e.N, err)
	}
	return nil
}

// Extends proves that the tree is the one of an older checkpoint with nothing but
// records added after it.
func (v *Verifier) Extends(ctx context.Context, old *Checkpoint) error {
	switch {
	case old.Origin != v.cp.Origin:
		return fmt.Errorf("the kept checkpoint is of the log %q, this is %q", old.Origin, v.cp.Origin)
	case old.Size > v.cp.Size:
		return fmt.Errorf("the log was rolled back: the kept checkpoint has %d records, the log of today %d", old.Size, v.cp.Size)
	case old.Size == v.cp.Size && !bytes.Equal(old.Root, v.cp.Root):
		return fmt.Errorf("the log was rewritten: at %d records it has another hash than the kept checkpoint", old.Size)
	case old.Size == 0 || old.Size == v.cp.Size:
		return nil
	}
	nodes, err := proof.Consistency(old.Size, v.cp.Size)
	if err != nil {
		return err
	}
	hashes, err := v.hashes(ctx, nodes)
	if err != nil {
		return err
	}
	if err := proof.VerifyConsistency(rfc6962.DefaultHasher, old.Size, v.cp.Size, hashes, old.Root, v.cp.Root); err != nil {
		return fmt.Errorf("the log was rewritten: its first %d records are not those of the kept checkpoint: %w", old.Size, err)
	}
	return nil
}

func (v *Verifier) hashes(ctx context.Context, nodes proof.Nodes) ([][]byte, error) {
	out := make([][]byte, 0, len(nodes.IDs))
	for _, id := range nodes.IDs {
		h, err := v.node(ctx, id)
		if err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	return nodes.Rehash(out, rfc6962.DefaultHasher.HashChildren)
}

// node is the hash of a full subtree, out of its tile.
func (v *Verifier) node(ctx context.Context, id compact.NodeID) ([]byte, error) {
	level, index, row, at := layout.NodeCoordsToTileAddress(uint64(id.Level), id.Index)
	t, err := v.tile(ctx, tileID{level, index})
	if err != nil {
		return nil, err
	}
	for uint(len(t.rows)) <= row {
		last := t.rows[len(t.rows)-1]
		next := make([][]byte, 0, len(last)/2)
		for i := 0; i+1 < len(last); i += 2 {
			next = append(next, rfc6962.DefaultHasher.HashChildren(last[i], last[i+1]))
		}
		t.rows = append(t.rows, next)
	}
	if at >= uint64(len(t.rows[row])) {
		return nil, fmt.Errorf("tile %d/%d of the log is too short", level, index)
	}
	return t.rows[row][at], nil
}

func (v *Verifier) tile(ctx context.Context, id tileID) (*tile, error) {
	if t := v.tiles[id]; t != nil {
		return t, nil
	}
	p := layout.PartialTileSize(id.level, id.index, v.cp.Size)
	b, err := v.read(ctx, layout.TilePath(id.level, id.index, p))
	if err != nil && p > 0 { // the log may have filled it meanwhile
		b, err = v.read(ctx, layout.TilePath(id.level, id.index, 0))
	}
	if err != nil {
		return nil, fmt.Errorf("a tile of the log cannot be read: %w", err)
	}
	want := layout.TileWidth
	if p > 0 {
		want = int(p)
	}
	var h api.HashTile
	if err := h.UnmarshalText(b); err != nil {
		return nil, err
	}
	if len(h.Nodes) < want {
		return nil, errors.New("a tile of the log is too short")
	}
	t := &tile{rows: [][][]byte{h.Nodes[:want]}}
	if id.level == 0 {
		if len(v.order) >= maxTiles {
			delete(v.tiles, v.order[0])
			v.order = v.order[1:]
		}
		v.order = append(v.order, id)
	}
	v.tiles[id] = t
	return t, nil
}
