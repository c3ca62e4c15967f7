package worker

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/secret"
)

// vault holds the secrets that this node's Machines were last started with, so that they
// start again while the controller is away: encrypted with a key of the node's own, key
// and ciphertexts in a file system in memory. They outlive this process and not the
// machine's power: the disk holds neither. Without a directory they live in the process.
type vault struct {
	dir string
	key []byte
	log *slog.Logger

	mu  sync.Mutex
	all map[key.MachineID]opened // without a directory
}

// Files of a vault.
const (
	vaultKey   = "node.key"
	vaultEnd   = ".sealed"
	vaultTmp   = ".tmp"
	vaultBound = secret.MaxTotal*8 + 4096 // JSON may write a byte as six
)

// openVault opens the vault in dir, which must be in memory.
func openVault(dir string, log *slog.Logger) (*vault, error) {
	v := &vault{dir: dir, log: log, all: map[key.MachineID]opened{}}
	if dir == "" {
		return v, nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil, fault.System(err, "the directory of the machines' secrets, %s, cannot be used", dir)
	}
	if st.Type != unix.TMPFS_MAGIC && st.Type != unix.RAMFS_MAGIC {
		log.Warn("the directory of the machines' secrets is not in memory; they are kept in this process only", "dir", dir)
		v.dir = ""
		return v, nil
	}
	if err := v.sweep(); err != nil {
		return nil, fault.System(err, "what a worker that died left in %s cannot be removed", dir)
	}
	path := filepath.Join(dir, vaultKey)
	b, err := os.ReadFile(path)
	if err == nil && len(b) == secret.KeySize {
		v.key = b
		return v, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.System(err, "the node's key %s cannot be read", path)
	}
	// No key, or half of one: what there is cannot be opened any more.
	v.key = secret.NewAppKey()
	if err := errors.Join(v.clear(), v.write(vaultKey, v.key)); err != nil {
		return nil, fault.System(err, "the node's key cannot be kept in %s", dir)
	}
	return v, nil
}

// clear removes what is kept of all Machines, and sweep the files that a worker was
// writing when it died: nothing else would, once their Machine is gone.
func (v *vault) clear() error { return v.removeAll("*" + vaultEnd) }
func (v *vault) sweep() error { return v.removeAll(".*" + vaultTmp) }

func (v *vault) removeAll(pattern string) error {
	files, err := filepath.Glob(filepath.Join(v.dir, pattern))
	for _, f := range files {
		err = errors.Join(err, os.Remove(f))
	}
	return err
}

// write replaces a file whole.
func (v *vault) write(name string, b []byte) error {
	tmp := filepath.Join(v.dir, "."+name+vaultTmp)
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		os.Remove(tmp)
		return err
	}
	return os.Rename(tmp, filepath.Join(v.dir, name))
}

func vaultAD(id key.MachineID, version uint64) []byte {
	return []byte("vault " + string(id) + " " + strconv.FormatUint(version, 10))
}

// put keeps what a Machine is started with. Without room it is not kept, and the
// Machine will have to wait for the controller.
func (v *vault) put(id key.MachineID, h opened) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.dir == "" {
		v.all[id] = h
		return
	}
	b := binary.BigEndian.AppendUint64(nil, h.Version)
	b = append(b, secret.Seal(v.key, h.values, vaultAD(id, h.Version))...)
	if err := v.write(string(id)+vaultEnd, b); err != nil {
		v.log.Warn("a machine's secrets cannot be kept for a start without the controller", "machine", id, "err", err)
		os.Remove(filepath.Join(v.dir, string(id)+vaultEnd))
	}
}

// get returns what a Machine was last started with.
func (v *vault) get(id key.MachineID) (opened, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.dir == "" {
		h, ok := v.all[id]
		return h, ok
	}
	f, err := os.Open(filepath.Join(v.dir, string(id)+vaultEnd))
	if err != nil {
		return opened{}, false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, vaultBound))
	if err != nil || len(b) < 8 {
		return opened{}, false
	}
	h := opened{Version: binary.BigEndian.Uint64(b)}
	if h.values, err = secret.Open(v.key, b[8:], vaultAD(id, h.Version)); err != nil {
		v.log.Warn("a machine's kept secrets do not open", "machine", id, "err", err)
		return opened{}, false
	}
	if len(h.values) == 0 {
		h.values = nil
	}
	return h, true
}

// drop forgets a Machine's.
func (v *vault) drop(id key.MachineID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.all, id)
	if v.dir == "" {
		return
	}
	if err := os.Remove(filepath.Join(v.dir, string(id)+vaultEnd)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		v.log.Warn("a machine's kept secrets cannot be removed", "machine", id, "err", err)
	}
}

// keepOnly forgets those of Machines that are none of this node's any more.
func (v *vault) keepOnly(mine func(key.MachineID) bool) {
	if v.dir == "" {
		return
	}
	files, _ := filepath.Glob(filepath.Join(v.dir, "*"+vaultEnd))
	for _, f := range files {
		if id := key.MachineID(strings.TrimSuffix(filepath.Base(f), vaultEnd)); !mine(id) {
			v.drop(id)
		}
	}
}
