package deployfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"bulkhead/fault"
	"bulkhead/machine"
)

// OutsideHint says what to do about a path that leads out of the deploy file's folder.
const OutsideHint = "give --allow-outside if you trust this deploy file with the files of your computer"

// ErrOutside says that a path of a deploy file leads out of the file's folder. A deploy
// file comes with a repository, and whoever wrote that does not get the files of the
// developer's computer.
var ErrOutside = errors.New("it leads out of the deploy file's folder")

// Open opens a file that the deploy file names. Relative paths start at its folder.
// Without AllowOutside a path that leads out of the folder is ErrOutside, through a link
// too.
func (f *File) Open(name string) (*os.File, error) {
	dir := filepath.Dir(f.Path)
	if f.AllowOutside {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		return os.Open(name)
	}
	if filepath.IsAbs(name) {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return nil, err
		}
		if name, err = filepath.Rel(abs, name); err != nil {
			return nil, ErrOutside
		}
	}
	if !filepath.IsLocal(name) {
		return nil, ErrOutside
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	file, err := root.OpenFile(name, os.O_RDONLY|openNonblock, 0)
	var pe *fs.PathError
	if errors.As(err, &pe) && pe.Err.Error() == "path escapes from parent" { // os has no exported error for it
		return nil, ErrOutside
	}
	return file, err
}

// readLocal reads the local_path of the i-th of [[files]].
func (f *File) readLocal(i int) ([]byte, error) {
	name := f.Files[i].LocalPath
	bad := func(cause error, format string, args ...any) error {
		place := f.At(join(entry("files", i, len(f.Files), f), "local_path"))
		return fault.Wrap(fault.Invalid, cause, "%s: local_path %q %s", place, name, fmt.Sprintf(format, args...))
	}
	file, err := f.Open(name)
	if errors.Is(err, ErrOutside) {
		return nil, bad(err, "leads out of the folder of %s; %s", filepath.Base(f.Path), OutsideHint)
	}
	if err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return nil, bad(err, "cannot be read: %v", err)
	}
	defer file.Close()
	st, err := file.Stat()
	switch {
	case err != nil:
		return nil, bad(err, "cannot be read: %v", err)
	case !st.Mode().IsRegular():
		return nil, bad(nil, "is not a regular file")
	case st.Size() > machine.MaxFilesBytes:
		return nil, bad(nil, "has %d bytes; files of a Machine have at most %d", st.Size(), machine.MaxFilesBytes)
	}
	content, err := io.ReadAll(io.LimitReader(file, machine.MaxFilesBytes+1))
	if err != nil {
		return nil, bad(err, "cannot be read: %v", err)
	}
	return content, nil
}
