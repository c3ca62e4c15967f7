package client

import (
	"encoding/base64"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"bulkhead/fault"
	"bulkhead/sandbox"
)

// secretSeals keep a file of secrets as it is, whoever gets hold of it: the warden
// passes it on without a look at what is in it.
const secretSeals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// secretFile puts secrets into a file in memory: NAME=value for each variable, the path
// and then the content in base64 for each file, each of these ended by a zero byte. It
// returns no file when there are none.
func secretFile(secrets []string, files []sandbox.SecretFile) ([]*os.File, error) {
	if len(secrets)+len(files) == 0 {
		return nil, nil
	}
	size := 0
	for _, s := range secrets {
		size += len(s) + 1
	}
	for _, f := range files {
		size += len(f.Path) + base64.StdEncoding.EncodedLen(len(f.Content)) + 2
	}
	b := make([]byte, 0, size) // so that no smaller one stays behind uncleared
	for _, s := range secrets {
		b = append(append(b, s...), 0)
	}
	for _, f := range files {
		if !path.IsAbs(f.Path) || strings.ContainsRune(f.Path, 0) {
			return nil, fault.New(fault.Invalid, "the path %q of a secret file is not absolute", fault.Clip(f.Path))
		}
		b = append(append(b, f.Path...), 0)
		b = append(base64.StdEncoding.AppendEncode(b, f.Content), 0)
	}
	defer clear(b)
	if len(b) > sandbox.MaxStrings {
		return nil, fault.New(fault.Unprocessable, "the secrets take %d bytes; at most %d are allowed", len(b), sandbox.MaxStrings)
	}
	fd, err := unix.MemfdCreate("secrets", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fault.System(err, "no file in memory can be made for the secrets")
	}
	f := os.NewFile(uintptr(fd), "secrets")
	if _, err = f.WriteAt(b, 0); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, secretSeals)
	}
	if err != nil {
		f.Close()
		return nil, fault.System(err, "the secrets cannot be put into a file in memory")
	}
	return []*os.File{f}, nil
}

// CheckSecretFile refuses what is not such a file: a reader must not be made to wait, nor
// to read without end.
func CheckSecretFile(f *os.File) error {
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || seals&secretSeals != secretSeals {
		return fault.New(fault.Invalid, "the file of secrets is no sealed file in memory")
	}
	fi, err := f.Stat()
	if err != nil || fi.Size() > sandbox.MaxStrings {
		return fault.New(fault.Invalid, "the file of secrets is over the limit of %d bytes", sandbox.MaxStrings)
	}
	return nil
}
