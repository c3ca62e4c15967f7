package route

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"google.golang.org/protobuf/proto"

	"bulkhead/api/internalpb"
)

// Cache keeps routes in one file so that the edge can start without a controller.
//
// The file is a log: each record is a length, a CRC-32C and a RouteUpdate; later
// records win. Save appends and syncs; when the log is several times what is live
// it is rewritten beside and renamed. A crash costs the last unsynced records; a
// torn or damaged tail is cut off at the next Open. What is lost comes again from
// the controller: the cache is a convenience, never the owner of a fact.
type Cache struct {
	path string

	mu   sync.Mutex
	f    *os.File
	size int64
	live map[string]int64 // app → bytes of its last record
	sum  int64            // of live
	// behind says that a Save failed: what live and sum say is not on disk, and the
	// next Save writes everything.
	behind bool
}

const (
	cacheMagic  = "bulkhead routes 1\n"
	maxRecord   = 4 << 20
	compactFrom = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// OpenCache opens or makes the cache at path and calls fn for every route in it.
func OpenCache(path string, fn func(*internalpb.Route)) (*Cache, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the route cache: %w", err)
	}
	c := &Cache{path: path, f: f, live: map[string]int64{}}
	routes, good, err := readLog(f, c.live)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("read the route cache %s: %w", path, err)
	}
	if good == 0 {
		if err := c.restart(); err != nil {
			f.Close()
			return nil, err
		}
		return c, nil
	}
	if err := f.Truncate(good); err != nil {
		f.Close()
		return nil, fmt.Errorf("cut the damaged tail off the route cache %s: %w", path, err)
	}
	if _, err := f.Seek(good, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	c.size = good
	for _, n := range c.live {
		c.sum += n
	}
	for _, r := range routes {
		fn(r)
	}
	return c, nil
}

// restart makes the file empty but for its magic.
func (c *Cache) restart() error {
	if err := c.f.Truncate(0); err != nil {
		return fmt.Errorf("start the route cache %s: %w", c.path, err)
	}
	if _, err := c.f.WriteAt([]byte(cacheMagic), 0); err != nil {
		return fmt.Errorf("start the route cache %s: %w", c.path, err)
	}
	c.size = int64(len(cacheMagic))
	_, err := c.f.Seek(c.size, io.SeekStart)
	return err
}

// readLog returns the live routes and the offset up to which the log is sound; 0
// when it is not even a log.
func readLog(f io.Reader, live map[string]int64) (map[string]*internalpb.Route, int64, error) {
	r := bufio.NewReaderSize(f, 1<<16)
	magic := make([]byte, len(cacheMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != cacheMagic {
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, 0, err
		}
		return nil, 0, nil
	}
	routes := map[string]*internalpb.Route{}
	at := int64(len(cacheMagic))
	for {
		var head [8]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return routes, at, nil
		}
		n := binary.LittleEndian.Uint32(head[:4])
		if n > maxRecord {
			return routes, at, nil
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(r, body); err != nil {
			return routes, at, nil
		}
		var u internalpb.RouteUpdate
		if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(head[4:]) || proto.Unmarshal(body, &u) != nil {
			return routes, at, nil
		}
		at += int64(8 + n)
		if app := u.GetRemovedApp(); app != "" {
			delete(routes, app)
			delete(live, app)
		} else if app := u.GetRoute().GetApp(); app != "" {
			routes[app] = u.GetRoute()
			live[app] = int64(8 + n)
		}
	}
}

func appendRecord(b []byte, u *internalpb.RouteUpdate) ([]byte, int, error) {
	body, err := proto.Marshal(u)
	if err != nil {
		return b, 0, err
	}
	if len(body) > maxRecord {
		return b, 0, fmt.Errorf("a route of %d bytes is more than the cache takes", len(body))
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(body, castagnoli))
	return append(b, body...), 8 + len(body), nil
}

// Save writes the current routes of apps, as t has them, and syncs them to disk.
// It is slow: never call it on the way of a request.
func (c *Cache) Save(t *Table, apps []string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b []byte
	for _, app := range apps {
		u := &internalpb.RouteUpdate{RemovedApp: app}
		if a := t.Lookup(app); a != nil {
			u = &internalpb.RouteUpdate{Route: a.Route}
		} else if _, ok := c.live[app]; !ok {
			continue
		}
		var n int
		var err error
		if b, n, err = appendRecord(b, u); err != nil {
			return fmt.Errorf("save the route of %s: %w", app, err)
		}
		c.sum -= c.live[app]
		if u.Route == nil {
			delete(c.live, app)
			continue
		}
		c.live[app] = int64(n)
		c.sum += int64(n)
	}
	if c.behind || c.size+int64(len(b)) > compactFrom && c.size+int64(len(b)) > 4*c.sum {
		return c.compact(t)
	}
	// On an error the tail may be torn: go back to the last sound end.
	if _, err := c.f.WriteAt(b, c.size); err != nil {
		c.behind = true
		return errors.Join(fmt.Errorf("append to the route cache: %w", err), c.f.Truncate(c.size))
	}
	c.size += int64(len(b))
	return c.f.Sync()
}

// compact rewrites the log with the live routes only.
func (c *Cache) compact(t *Table) error {
	tmp := c.path + ".new"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("compact the route cache: %w", err)
	}
	w := bufio.NewWriterSize(f, 1<<16)
	w.WriteString(cacheMagic)
	live, size, sum := map[string]int64{}, int64(len(cacheMagic)), int64(0)
	var buf []byte
	t.All(func(a *App) bool {
		var n int
		if buf, n, err = appendRecord(buf[:0], &internalpb.RouteUpdate{Route: a.Route}); err != nil {
			return false
		}
		w.Write(buf)
		live[a.Name] = int64(n)
		size += int64(n)
		sum += int64(n)
		return true
	})
	err = errors.Join(err, w.Flush(), f.Sync())
	if err == nil {
		err = os.Rename(tmp, c.path)
	}
	if err != nil {
		f.Close()
		_ = os.Remove(tmp)
		return fmt.Errorf("compact the route cache: %w", err)
	}
	c.f.Close()
	c.f, c.size, c.live, c.sum, c.behind = f, size, live, sum, false
	return syncDir(filepath.Dir(c.path))
}

// Close closes the file.
func (c *Cache) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.f.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return err
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
