package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"
)

// Sealer encrypts for the operator, in the format of age (age-encryption.org), so that
// what is sealed can be opened without this program.
type Sealer struct {
	Recipients     []string // age1...
	PassphraseFile string
}

// Opener opens what a Sealer sealed.
type Opener struct {
	IdentityFile   string // as age-keygen writes it
	PassphraseFile string
}

// maxSealed bounds a sealed file, in bytes.
const maxSealed = 64 << 10

// scryptWork is what opening a passphrase's file costs, as a power of two: a second or so,
// and 256 MiB. It is less in tests alone.
var scryptWork = 18

func (s Sealer) recipients() ([]age.Recipient, error) {
	switch {
	case len(s.Recipients) > 0 && s.PassphraseFile != "":
		return nil, errors.New("--recipient and --passphrase-file exclude each other")
	case s.PassphraseFile != "":
		pass, err := readPassphrase(s.PassphraseFile)
		if err != nil {
			return nil, err
		}
		r, err := age.NewScryptRecipient(pass)
		if err != nil {
			return nil, err
		}
		r.SetWorkFactor(scryptWork)
		return []age.Recipient{r}, nil
	}
	var out []age.Recipient
	for _, text := range s.Recipients {
		r, err := age.ParseX25519Recipient(text)
		if err != nil {
			return nil, fmt.Errorf("--recipient %q: %w; age-keygen makes one", text, err)
		}
		out = append(out, r)
	}
	if len(out) == 0 {
		return nil, errors.New("whom is the key sealed for? --recipient age1... or --passphrase-file FILE")
	}
	return out, nil
}

// write seals b into a new file, synced; it replaces none.
func (s Sealer) write(path string, b []byte) error {
	to, err := s.recipients()
	if err != nil {
		return err
	}
	if path == "" {
		return errors.New("where is the sealed key to be written? --out FILE")
	}
	var buf bytes.Buffer
	text := armor.NewWriter(&buf)
	w, err := age.Encrypt(text, to...)
	if err != nil {
		return err
	}
	_, werr := w.Write(b)
	if err := errors.Join(werr, w.Close(), text.Close()); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s exists; a sealed key replaces no file: name another", path)
	}
	if err != nil {
		return err
	}
	_, werr = f.Write(buf.Bytes())
	if err := errors.Join(werr, f.Sync(), f.Close()); err != nil {
		os.Remove(path)
		return err
	}
	return syncDir(filepath.Dir(path))
}

// read opens a sealed file.
func (o Opener) read(path string) ([]byte, error) {
	ids, err := o.identities()
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := age.Decrypt(armor.NewReader(io.LimitReader(f, maxSealed)), ids...)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be opened: %w", path, err)
	}
	return io.ReadAll(io.LimitReader(r, maxSealed))
}

func (o Opener) identities() ([]age.Identity, error) {
	switch {
	case o.PassphraseFile != "" && o.IdentityFile != "":
		return nil, errors.New("--identity-file and --open-passphrase-file exclude each other")
	case o.PassphraseFile != "":
		pass, err := readPassphrase(o.PassphraseFile)
		if err != nil {
			return nil, err
		}
		i, err := age.NewScryptIdentity(pass)
		return []age.Identity{i}, err
	case o.IdentityFile != "":
		b, err := os.ReadFile(o.IdentityFile)
		if err != nil {
			return nil, err
		}
		return age.ParseIdentities(bytes.NewReader(b))
	}
	return nil, errors.New("how is the sealed root key opened? --identity-file FILE or --open-passphrase-file FILE")
}

// readPassphrase reads the first line of a file.
func readPassphrase(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	if len(line) < 12 {
		return "", fmt.Errorf("%s: a passphrase has at least 12 bytes", path)
	}
	return line, nil
}
