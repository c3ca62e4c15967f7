package wire

import (
	"fmt"
	"strings"
)

// Meter is what a sandbox says of its own limits: how much is used, and how often
// each was hit. It is believed for this Machine alone.
type Meter struct {
	DiskUsed      int64 `json:"disk_used"` // bytes of the writable layer
	DiskLimit     int64 `json:"disk_limit"`
	InodesUsed    int64 `json:"inodes_used"`
	InodesLimit   int64 `json:"inodes_limit"`
	Processes     int64 `json:"processes"` // and threads
	ProcessLimit  int64 `json:"process_limit"`
	DiskHits      int64 `json:"disk_hits"`
	InodeHits     int64 `json:"inode_hits"`
	ProcessHits   int64 `json:"process_hits"`
	OpenFilesHits int64 `json:"open_files_hits"`
}

// MeterPrefix begins the lines of a sandbox's error log that are a Meter, and MaxMeter
// is their length, at most, without the newline.
const (
	MeterPrefix = "meter "
	MaxMeter    = 255
)

// ParseMeter reads a Meter's line.
func ParseMeter(b []byte) (m Meter, err error) {
	line, _, _ := strings.Cut(string(b), "\n")
	fields := []*int64{&m.DiskUsed, &m.DiskLimit, &m.InodesUsed, &m.InodesLimit, &m.Processes, &m.ProcessLimit, &m.DiskHits, &m.InodeHits, &m.ProcessHits, &m.OpenFilesHits}
	args := make([]any, len(fields))
	for i := range fields {
		args[i] = fields[i]
	}
	if _, err := fmt.Sscanf(line, MeterPrefix+strings.TrimSpace(strings.Repeat("%d ", len(fields))), args...); err != nil {
		return Meter{}, fmt.Errorf("a sandbox's meter cannot be read: %w", err)
	}
	for _, f := range fields {
		if *f < 0 {
			return Meter{}, fmt.Errorf("a sandbox's meter has the value %d", *f)
		}
	}
	return m, nil
}
