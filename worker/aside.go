package worker

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/privnet"
)

const (
	// damagedPrefix begins the names under which damaged journals are kept, in order of
	// time; asideMax is how many there are at most.
	damagedPrefix = "journal.db.damaged-"
	asideMax      = 2
	// salvageMax bounds how much of one is searched for slots.
	salvageMax = 256 << 20
)

// mark is in a journal that is not whole: it is new, or stands in for one that was
// lost, and what of the node's Machines belongs in it is not known before the
// controller has said what is assigned. Until then nothing is started or removed.
type mark struct {
	// Aside is the name of the newest damaged journal in the same directory: slots are
	// salvaged from it.
	Aside string `json:"aside,omitempty"`
}

// prepareNew writes what a new journal begins with: its version and its mark.
func (j *journal) prepareNew(meta *bbolt.Bucket) error {
	m := mark{}
	if all := setAside(filepath.Dir(j.path)); len(all) > 0 {
		m.Aside = all[len(all)-1]
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := meta.Put(keyMark, b); err != nil {
		return err
	}
	return meta.Put(keyVersion, binary.BigEndian.AppendUint32(nil, journalVersion))
}

// setAside lists the damaged journals that are kept in dir, oldest first.
func setAside(dir string) (all []string) {
	entries, _ := os.ReadDir(dir) // in order; without them nothing is salvaged, or removed
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), damagedPrefix) {
			all = append(all, e.Name())
		}
	}
	return all
}

// openOrReplace opens the journal in dir and reads it. One that is damaged is kept
// under another name and replaced by a new one, which is marked. Whatever else is
// wrong with it stays an error: it is no less true for that.
func openOrReplace(dir string, now time.Time, log *slog.Logger) (*journal, []entry, error) {
	j, entries, err := openAndLoad(dir)
	if !errors.Is(err, errDamaged) {
		return j, entries, err
	}
	kept, aerr := putAside(dir, now)
	if aerr != nil {
		return nil, nil, errors.Join(err, fault.System(aerr, "it cannot be moved out of the way"))
	}
	log.Error("the worker's journal is damaged: a new one is made from what the controller assigns and from the sandboxes that run; until then nothing is started or removed",
		"journal", filepath.Join(dir, "journal.db"), "kept as", kept, "err", err)
	// Crash point: without a journal, the next worker makes a new one all the same.
	if j, entries, err = openAndLoad(dir); err != nil {
		return nil, nil, err
	}
	return j, entries, nil
}

func openAndLoad(dir string) (*journal, []entry, error) {
	j, err := openJournal(dir)
	if err != nil {
		return nil, nil, err
	}
	entries, err := j.load()
	if err != nil {
		return nil, nil, errors.Join(err, j.close())
	}
	return j, entries, nil
}

// putAside gives a damaged journal another name and removes the oldest of those that
// are too many.
func putAside(dir string, now time.Time) (name string, err error) {
	name = damagedPrefix + now.UTC().Format("20060102T150405.000000000Z")
	if err := os.Rename(filepath.Join(dir, "journal.db"), filepath.Join(dir, name)); err != nil {
		return "", err
	}
	if all := setAside(dir); len(all) > asideMax {
		for _, old := range all[:len(all)-asideMax] {
			if err := os.Remove(filepath.Join(dir, old)); err != nil {
				return "", err
			}
		}
	}
	d, err := os.Open(dir)
	if err != nil {
		return "", err
	}
	return name, errors.Join(d.Sync(), d.Close())
}

// salvage finds, in what is left of a damaged journal, the slots that Machines had. A
// Machine keeps its slot for life, so that an old record is as good as the newest; and
// nothing else is believed of such a file, nor this where it cannot be.
func salvage(path string) (map[key.MachineID]privnet.Slot, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > salvageMax {
		return nil, fmt.Errorf("it has %d bytes", info.Size())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	type found struct {
		seq  int64
		slot privnet.Slot
	}
	newest := map[key.MachineID]found{}
	begin := []byte(`{"machine":"`)
	for at := bytes.Index(b, begin); at >= 0; {
		var r record
		if json.NewDecoder(bytes.NewReader(b[at:])).Decode(&r) == nil && privnet.CheckSlot(r.Slot) == nil {
			if id, err := key.ParseMachineID(string(r.Machine)); err == nil && r.Seq >= newest[id].seq {
				newest[id] = found{r.Seq, r.Slot}
			}
		}
		next := bytes.Index(b[at+1:], begin)
		if next < 0 {
			break
		}
		at += 1 + next
	}
	out := make(map[key.MachineID]privnet.Slot, len(newest))
	for id, f := range newest {
		out[id] = f.slot
	}
	return out, nil
}
