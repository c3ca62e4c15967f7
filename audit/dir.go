package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
)

// Report is what VerifyDir found.
type Report struct {
	Checkpoint *Checkpoint
	Records    uint64 // that were read and checked
	Later      uint64 // of these, after the checkpoint
	Orgs       int
	Files      int // that were read; each byte of them is explained
	Problems   []string
}

// maxProblems bounds a report: a log that was wiped has as many problems as records.
const maxProblems = 100

// VerifyDir checks a whole log in a directory, the live one or a copy: every record
// against its leaf, every tile against the records, the checkpoint against the tiles and
// its signature, every index, and, if kept is given, that the log extends it. It reads
// everything once, in order, and needs 16 bytes of memory per record. Problems are what
// is wrong with the log; an error is that it could not be looked at.
//
// A copy of a live log may be torn. VerifyDir says so as it says everything: copy the
// checkpoint first and the records last, or a snapshot of the file system.
func VerifyDir(ctx context.Context, dir, key string, kept *Checkpoint) (*Report, error) {
	if _, err := os.Stat(filepath.Join(dir, LogDir)); err != nil {
		return nil, fmt.Errorf("%s is no directory of an audit log: %w", dir, err)
	}
	d := &dirCheck{
		dir: dir, kept: kept, seen: map[string]bool{}, index: map[string][]byte{},
		roots: map[uint64][]byte{0: rfc6962.DefaultHasher.EmptyRoot()},
		tree:  (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0),
	}
	d.signed(key)
	d.state()
	if err := d.records(ctx); err != nil {
		return nil, err
	}
	d.trees()
	d.indexes()
	d.foreign()
	d.Files, d.Orgs = len(d.seen), len(d.index)
	return &d.Report, nil
}

// dirCheck is a VerifyDir on its way.
type dirCheck struct {
	Report
	dir  string
	kept *Checkpoint
	size uint64 // of the tree as tessera last noted
	root []byte
	seen map[string]bool // files that were read, below dir

	tree   *compact.Range
	levels [][][]byte        // hashes of each level of tiles that no tile was compared with yet
	bundle []byte            // leaves likewise, as a bundle holds them
	ends   []int             // of each leaf in bundle
	roots  map[uint64][]byte // at the sizes that somebody has signed or noted
	index  map[string][]byte // what each organization's index must be
	done   map[string]uint64 // records per organization, at the size that the snapshot names
	snap   snapshot
}

// snapshot is how far organizations' indexes are on disk: OrgsDir/done.
type snapshot struct {
	Next uint64            `json:"next"` // records below this are in their indexes
	Orgs map[string]uint64 `json:"orgs"` // and so many there are
}

// SnapshotPath is the file that says how far indexes are on disk.
const SnapshotPath = OrgsDir + "/done"

// MarshalSnapshot writes what SnapshotPath holds.
func MarshalSnapshot(next uint64, orgs map[string]uint64) []byte {
	b, err := json.Marshal(snapshot{next, orgs})
	if err != nil {
		panic(err) // numbers and strings
	}
	return b
}

// ParseSnapshot reads what MarshalSnapshot wrote, and nothing else.
func ParseSnapshot(b []byte) (next uint64, orgs map[string]uint64, err error) {
	var s snapshot
	if err := json.Unmarshal(b, &s); err != nil {
		return 0, nil, err
	}
	if s.Orgs == nil {
		s.Orgs = map[string]uint64{}
	}
	sum := uint64(0)
	for _, n := range s.Orgs {
		sum += n
	}
	if !bytes.Equal(MarshalSnapshot(s.Next, s.Orgs), b) || sum != s.Next {
		return 0, nil, errors.New("not as it was written")
	}
	return s.Next, s.Orgs, nil
}

func (d *dirCheck) problem(format string, args ...any) {
	if len(d.Problems) < maxProblems {
		d.Problems = append(d.Problems, fmt.Sprintf(format, args...))
	}
}

// file reads a file of the log; one that is missing is a problem when it must be there.
func (d *dirCheck) file(path string, must bool) []byte {
	b, err := os.ReadFile(filepath.Join(d.dir, path))
	if errors.Is(err, fs.ErrNotExist) && !must {
		return nil
	}
	if err != nil {
		d.problem("%s: %v", path, errors.Unwrap(err))
		return nil
	}
	d.seen[path] = true
	return b
}

// signed reads the checkpoint.
func (d *dirCheck) signed(key string) {
	b := d.file(LogDir+"/"+layout.CheckpointPath, true)
	if b == nil {
		return
	}
	cp, err := ParseCheckpoint(b, key)
	if err != nil {
		d.problem("%s/%s: %v", LogDir, layout.CheckpointPath, err)
		return
	}
	d.Checkpoint = cp
}

// state reads what tessera keeps for itself.
func (d *dirCheck) state() {
	const dir = LogDir + "/.state/"
	var tree struct {
		Size uint64 `json:"size"`
		Root []byte `json:"root"`
	}
	b := d.file(dir+"treeState", true)
	if err := exactJSON(b, &tree); b != nil && err != nil {
		d.problem("%streeState: %v", dir, err)
	}
	d.size, d.root = tree.Size, tree.Root
	var gc struct {
		FromSize uint64 `json:"fromSize"`
	}
	b = d.file(dir+"gcState", false)
	if err := exactJSON(b, &gc); b != nil && (err != nil || gc.FromSize > d.size || gc.FromSize%layout.TileWidth != 0) {
		d.problem("%sgcState: not what the log would note (%v)", dir, err)
	}
	if b = d.file(dir+"version", true); b != nil && string(b) != "1" {
		d.problem("%sversion: not 1", dir)
	}
	for _, lock := range []string{"treeState.lock", "publish.lock", "gcState.lock"} {
		if b = d.file(dir+lock, false); len(b) > 0 {
			d.problem("%s%s: not empty", dir, lock)
		}
	}
}

// exactJSON reads v from what json.Marshal would write of it, and from nothing else.
func exactJSON(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return err
	}
	if again, err := json.Marshal(v); err != nil || !bytes.Equal(again, b) {
		return errors.New("not as it was written")
	}
	return nil
}

// records reads every segment and builds the tree anew.
func (d *dirCheck) records(ctx context.Context) error {
	b := d.file(SnapshotPath, false)
	if b != nil {
		var err error
		if d.snap.Next, d.snap.Orgs, err = ParseSnapshot(b); err != nil {
			d.problem("%s: %v", SnapshotPath, err)
		}
	}
	for i := uint64(0); ; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		path := SegmentPath(i)
		b := d.file(path, false)
		if b == nil {
			return nil
		}
		n, offset := 0, 0
		for line := range bytes.Lines(b) {
			whole, ended := bytes.CutSuffix(line, []byte("\n"))
			e, err := ParseLine(whole)
			switch {
			case !ended && i*SegmentSize+uint64(n) >= d.size:
				return nil // being written
			case !ended:
				err = errors.New("cut short")
			case err == nil && e.N != i*SegmentSize+uint64(n):
				err = fmt.Errorf("it says it is record %d", e.N)
			}
			if err != nil {
				d.problem("%s, line %d: %v", path, n+1, err)
				return nil // nothing after it can be placed
			}
			d.record(path, e, Place{e.N, uint32(offset), uint32(len(line))})
			n, offset = n+1, offset+len(line)
		}
		if n != SegmentSize {
			if _, err := os.Stat(filepath.Join(d.dir, SegmentPath(i+1))); err == nil || n > SegmentSize {
				d.problem("%s: %d records, and another file after it", path, n)
			}
			return nil
		}
	}
}

// record takes one record into the tree and the indexes.
func (d *dirCheck) record(path string, e Entry, p Place) {
	r, err := e.Open()
	if err != nil {
		d.problem("%s: %v", path, err)
	}
	seq := uint64(len(d.index[r.Org])/PlaceSize) + 1
	if r.Seq != seq {
		d.problem("%s: record %d is number %d of organization %q, and %d is due: there is one too few, or too many", path, e.N, r.Seq, r.Org, seq)
	}
	d.index[r.Org] = p.Append(d.index[r.Org])
	if d.Records++; d.Records == d.snap.Next {
		d.done = map[string]uint64{}
		for org, b := range d.index {
			d.done[org] = uint64(len(b) / PlaceSize)
		}
	}
	if e.N >= d.size {
		return // not in the log yet: the next start of the controller takes it there
	}
	leaf := e.Leaf()
	d.bundle = append(append(d.bundle, 0, byte(len(leaf))), leaf...)
	d.ends = append(d.ends, len(d.bundle))
	d.tree.Append(rfc6962.DefaultHasher.HashLeaf(leaf), d.node)
	if len(d.ends) == layout.TileWidth {
		d.compareBundle(e.N/layout.TileWidth, true)
	}
	switch size := e.N + 1; {
	case size == d.size, d.Checkpoint != nil && size == d.Checkpoint.Size, d.kept != nil && size == d.kept.Size:
		d.roots[size], _ = d.tree.GetRootHash(nil)
	}
}

// node takes a full subtree's hash into the tile that holds it.
func (d *dirCheck) node(id compact.NodeID, hash []byte) {
	if id.Level%layout.TileHeight != 0 {
		return
	}
	l := int(id.Level / layout.TileHeight)
	for len(d.levels) <= l {
		d.levels = append(d.levels, nil)
	}
	d.levels[l] = append(d.levels[l], hash)
	if len(d.levels[l]) == layout.TileWidth {
		d.compareTile(uint64(l), id.Index/layout.TileWidth, true)
	}
}

// compareTile compares the files of one tile with its hashes, and forgets these.
func (d *dirCheck) compareTile(level, index uint64, full bool) {
	h := d.levels[level]
	d.levels[level] = nil
	d.compare(layout.TilePath(level, index, 0), full, len(h), func(n int) []byte { return slices.Concat(h[:n]...) })
}

func (d *dirCheck) compareBundle(index uint64, full bool) {
	b, ends := d.bundle, d.ends
	d.bundle, d.ends = nil, nil
	d.compare(layout.EntriesPath(index, 0), full, len(ends), func(n int) []byte { return b[:ends[n-1]] })
}

// compare compares a tile's or bundle's file, and those of it when it was not full.
func (d *dirCheck) compare(path string, full bool, n int, want func(n int) []byte) {
	path = LogDir + "/" + path
	check := func(path string, n int) {
		if b := d.file(path, true); b != nil && !bytes.Equal(b, want(n)) {
			d.problem("%s: not what the records make it", path)
		}
	}
	if full {
		check(path, n)
	}
	parts, err := os.ReadDir(filepath.Join(d.dir, path+".p"))
	if err != nil && !full {
		d.problem("%s.p: %v", path, err)
	}
	last := false
	for _, p := range parts {
		if k, err := strconv.Atoi(p.Name()); err == nil && k > 0 && k < layout.TileWidth && k <= n && strconv.Itoa(k) == p.Name() {
			check(path+".p/"+p.Name(), k)
			last = last || k == n
		}
	}
	if !full && !last {
		d.problem("%s.p/%d: missing", path, n)
	}
}

// trees compares the right edge of the tree, and the hashes at the sizes that matter.
func (d *dirCheck) trees() {
	for l, h := range d.levels {
		if len(h) > 0 {
			d.compareTile(uint64(l), d.size>>(layout.TileHeight*(l+1)), false)
		}
	}
	if len(d.ends) > 0 {
		d.compareBundle(d.size/layout.TileWidth, false)
	}
	at := func(what string, size uint64, root []byte) {
		switch r, ok := d.roots[size]; {
		case !ok:
			d.problem("%s has %d records, and %d are here: the log was rolled back, or records were taken away", what, size, d.Records)
		case !bytes.Equal(r, root):
			d.problem("%s has another hash than the first %d records here: the log was rewritten, or a record changed", what, size)
		}
	}
	at("the tree on disk", d.size, d.root)
	if d.Checkpoint != nil {
		at("the checkpoint", d.Checkpoint.Size, d.Checkpoint.Root)
		d.Later = max(d.Records, d.Checkpoint.Size) - d.Checkpoint.Size
	}
	if d.kept != nil {
		at("the kept checkpoint", d.kept.Size, d.kept.Root)
		if d.Checkpoint != nil && d.Checkpoint.Origin != d.kept.Origin {
			d.problem("the kept checkpoint is of the log %q, this is %q", d.kept.Origin, d.Checkpoint.Origin)
		}
		if d.Checkpoint != nil && d.Checkpoint.Size < d.kept.Size {
			d.problem("the log was rolled back: the kept checkpoint has %d records, the log's own %d", d.kept.Size, d.Checkpoint.Size)
		}
	}
}

// indexes compares each organization's index. One may lag behind by what came after the
// snapshot: the next start completes it.
func (d *dirCheck) indexes() {
	if d.snap.Next > d.Records {
		d.problem("%s: it knows of %d records, and %d are here", SnapshotPath, d.snap.Next, d.Records)
	}
	if d.done == nil {
		d.done = map[string]uint64{}
	}
	for org, n := range d.snap.Orgs {
		if d.done[org] != n {
			d.problem("%s: it counts %d records of organization %q, and there are %d", SnapshotPath, n, org, d.done[org])
		}
	}
	for org, want := range d.index {
		path := IndexPath(org)
		b := d.file(path, false)
		due := int(d.done[org]) * PlaceSize
		if len(b) < due || len(b) > len(want) || !bytes.Equal(b, want[:len(b)]) {
			d.problem("%s: not what the records make it", path)
		}
	}
}

// foreign looks for files that nothing explains.
func (d *dirCheck) foreign() {
	err := filepath.WalkDir(d.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(d.dir, path)
		if rel = filepath.ToSlash(rel); err == nil && !d.seen[rel] && !d.torn(rel) {
			d.problem("%s: no file of an audit log of %d records", rel, d.Records)
		}
		return err
	})
	if err != nil {
		d.problem("%v", err)
	}
}

// torn reports whether a file belongs to a record that is being written: a segment that
// holds no whole line yet.
func (d *dirCheck) torn(rel string) bool {
	return rel == SegmentPath(d.Records/SegmentSize) || strings.HasPrefix(rel, LogDir+"/tile/") && d.size < d.Records
}
