package worker

import (
	"path/filepath"
	"sort"
	"time"

	"bulkhead/image"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/room"
)

// collectEvery is the time between two collections of images.
const collectEvery = 10 * time.Minute

// used marks an image as in use now.
func (w *Worker) used(d key.Digest) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lastUsed[d] = w.now()
}

// collect removes images out of use from time to time.
func (w *Worker) collect() {
	t := time.NewTicker(collectEvery)
	defer t.Stop()
	for {
		select {
		case <-w.life.Done():
			return
		case <-t.C:
			w.collectImages()
		case <-w.kick:
			w.collectImages()
		}
	}
}

// makeRoom has images collected soon: an image or a record found no room.
func (w *Worker) makeRoom() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

// shortage is how many bytes the disk that holds the images lacks.
func shortage(all []*image.Image) int64 {
	if len(all) == 0 {
		return 0
	}
	s, err := room.Of(filepath.Dir(all[0].Path))
	if err != nil {
		return 0
	}
	return s.Keep(room.Images) - s.Free
}

// collectImages removes what no Machine refers to and nobody used for ImageAge, and,
// while images take more than ImageBudget or the disk is short of room, what was
// unused the longest. It does nothing while an image is being sealed,
// nor before it is known which Machines there are.
func (w *Worker) collectImages() []key.Digest {
	if w.notWhole() != nil || !w.sealing.TryLock() {
		return nil
	}
	defer w.sealing.Unlock()
	all := w.images.List()
	drop := w.outOfUse(all)
	removed, err := w.images.GC(func(d key.Digest) bool { return !drop[d] })
	if err != nil {
		w.log.Warn("images cannot be removed", "err", err)
	}
	return removed
}

// outOfUse chooses the images to be removed.
func (w *Worker) outOfUse(all []*image.Image) map[key.Digest]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	needed := map[key.Digest]bool{}
	for _, s := range w.seen {
		if s.rec.State == machine.Destroyed {
			continue
		}
		needed[s.rec.Image] = true
		if ref, err := refOf(s.asg); err == nil {
			needed[ref.Digest] = true
		}
	}
	var total int64
	var idle []*image.Image
	for _, img := range all {
		total += img.Size
		if !needed[img.Digest] {
			idle = append(idle, img)
		}
	}
	sort.Slice(idle, func(i, j int) bool { return w.lastUsed[idle[i].Digest].Before(w.lastUsed[idle[j].Digest]) })
	drop := map[key.Digest]bool{}
	short := shortage(idle)
	for _, img := range idle {
		if w.now().Sub(w.lastUsed[img.Digest]) > w.opt.ImageAge || total > w.opt.ImageBudget || short > 0 {
			drop[img.Digest] = true
			total -= img.Size
			short -= img.Size
			delete(w.lastUsed, img.Digest)
		}
	}
	return drop
}
