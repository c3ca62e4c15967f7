package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/transparency-dev/tessera/api/layout"
)

// The directory of an audit log:
//
//	log/checkpoint, log/tile/…   the transparency log, as tlog-tiles has it
//	log/.state/…                 tessera's own
//	records/…                    the records, SegmentSize to a file, in the log's order
//	orgs/…                       per organization, where its records are
const (
	LogDir     = "log"
	RecordsDir = "records"
	OrgsDir    = "orgs"
)

// SegmentSize is how many records one file holds: as many as a tile has leaves.
const SegmentSize = layout.TileWidth

// SegmentPath is where the records from n·SegmentSize on lie, below the log's directory.
func SegmentPath(n uint64) string {
	return RecordsDir + "/" + strings.TrimPrefix(layout.EntriesPath(n, 0), "tile/entries/") + ".jsonl"
}

// indexExt is the extension of organizations' files.
const indexExt = ".idx"

// IndexPath is where an organization's index lies, below the log's directory. The empty
// name is the cluster's.
func IndexPath(org string) string { return OrgsDir + "/@" + url.PathEscape(org) + indexExt }

// OrgOf is the organization whose index has the file name given.
func OrgOf(name string) (string, error) {
	rest, at := strings.CutPrefix(name, "@")
	rest, ext := strings.CutSuffix(rest, indexExt)
	org, err := url.PathUnescape(rest)
	if !at || !ext || err != nil || IndexPath(org) != OrgsDir+"/"+name {
		return "", fmt.Errorf("%q is no index of an organization", name)
	}
	return org, nil
}

// Place says where a record lies: its number, and the bytes in its segment.
type Place struct {
	N            uint64
	Offset, Size uint32
}

// PlaceSize is the size of a Place in an index.
const PlaceSize = 16

// Append adds the place as an index holds it.
func (p Place) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, p.N)
	b = binary.BigEndian.AppendUint32(b, p.Offset)
	return binary.BigEndian.AppendUint32(b, p.Size)
}

// ParsePlace reads a place of an index.
func ParsePlace(b []byte) (Place, error) {
	if len(b) < PlaceSize {
		return Place{}, errors.New("an index is cut short")
	}
	p := Place{binary.BigEndian.Uint64(b), binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:])}
	if p.Size == 0 || p.Size > maxLine || p.Offset > SegmentSize*maxLine {
		return p, fmt.Errorf("an index names %d bytes at %d", p.Size, p.Offset)
	}
	return p, nil
}
