package secret

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"bulkhead/failpoint"
	"bulkhead/fault"
)

// MaxKeyFile bounds what a Keeper reads.
const MaxKeyFile = 64 << 10

// ErrNoKey is a Keeper's answer when it holds no key and one may be made.
var ErrNoKey = errors.New("there is no cluster key yet")

// ErrReadOnly is the answer of a Keeper that cannot keep what it is given.
var ErrReadOnly = errors.New("the cluster key is kept by the operator")

// Keeper is the port through which cluster keys are kept outside of the store.
type Keeper interface {
	// Load returns the keys, the newest first; ErrNoKey when there is none and Save
	// may keep the first. Damage is an error that says what to do.
	Load(ctx context.Context) ([]Key, error)
	// Save replaces all keys: when it returns nil they are durable, and after a crash
	// the old ones are there or the new. ErrReadOnly when the keeper cannot.
	Save(ctx context.Context, keys []Key) error
	// String says where the keys are, for people.
	String() string
}

// Sealer encrypts a key file for a FileKeeper with a key of its own: a key management
// service. Both methods are called at the start and at a rotation, and never
// per request.
type Sealer interface {
	Seal(ctx context.Context, plaintext []byte) ([]byte, error)
	Unseal(ctx context.Context, sealed []byte) ([]byte, error)
	String() string
}

// FileKeeper keeps the keys in a file of mode 0600.
type FileKeeper struct {
	Path   string
	Sealer Sealer // nil: the file holds the keys as they are
}

// String implements Keeper.
func (f FileKeeper) String() string {
	if f.Sealer != nil {
		return f.Path + " (sealed by " + f.Sealer.String() + ")"
	}
	return f.Path
}

// Load implements Keeper.
func (f FileKeeper) Load(ctx context.Context) ([]Key, error) {
	file, err := os.Open(f.Path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNoKey
	}
	if err != nil {
		return nil, fault.System(err, "the cluster key %s cannot be read", f.Path)
	}
	defer file.Close()
	fi, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return nil, fault.New(fault.Internal, "the cluster key %s can be opened by other users (mode %04o): find out who had it, then run chmod 600 %s and start again", f.Path, fi.Mode().Perm(), f.Path)
	}
	b, err := io.ReadAll(io.LimitReader(file, MaxKeyFile))
	if err != nil {
		return nil, fault.System(err, "the cluster key %s cannot be read", f.Path)
	}
	defer clear(b)
	if f.Sealer != nil {
		if b, err = f.Sealer.Unseal(ctx, b); err != nil {
			return nil, fmt.Errorf("the cluster key %s cannot be unsealed by %s: %w", f.Path, f.Sealer, err)
		}
		defer clear(b)
	}
	return ParseKeys(b, f.String())
}

// Save implements Keeper.
func (f FileKeeper) Save(ctx context.Context, keys []Key) (err error) {
	b := FormatKeys(keys)
	defer clear(b)
	if f.Sealer != nil {
		if b, err = f.Sealer.Seal(ctx, b); err != nil {
			return fmt.Errorf("the cluster key cannot be sealed by %s: %w", f.Sealer, err)
		}
	}
	return failpoint.Write("secret/write", func() error { return replace(f.Path, b) })
}

// replace writes a file whole or not at all, durably.
func replace(path string, b []byte) error {
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	file, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, werr := file.Write(b)
	if err := errors.Join(werr, file.Sync(), file.Close()); err != nil {
		os.Remove(tmp)
		return err
	}
	if err := failpoint.Write("secret/rename", func() error { return os.Rename(tmp, path) }); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// CredentialKeeper reads the keys from an open file that the service manager gave and
// the operator keeps, such as a systemd credential.
type CredentialKeeper struct {
	Name string
	File io.ReaderAt
}

// String implements Keeper.
func (c CredentialKeeper) String() string { return "the credential " + c.Name }

// Load implements Keeper.
func (c CredentialKeeper) Load(context.Context) ([]Key, error) {
	if c.File == nil {
		return nil, fault.New(fault.Internal, "%s was not handed over", c)
	}
	b, err := io.ReadAll(io.NewSectionReader(c.File, 0, MaxKeyFile))
	if err != nil {
		return nil, fault.System(err, "%s cannot be read", c)
	}
	defer clear(b)
	return ParseKeys(b, c.String())
}

// Save implements Keeper: it refuses.
func (c CredentialKeeper) Save(context.Context, []Key) error { return ErrReadOnly }
