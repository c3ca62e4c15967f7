// Package deployfile reads bulkhead.toml and fly.toml: what an app is made of, in
// the words of its developer.
//
// The two files have one grammar, fly.toml's, older forms of it included (normalize.go).
// Reading is strict: an unknown key that asks for something is an error with its file,
// line and column. A key that Bulkhead cannot honour yet is an error where leaving it out
// would lose data or change what the app does, and a warning elsewhere. Values are checked
// by the platform's own rules (judge.go). Nothing is ignored in silence.
//
// A deploy file comes with a repository and is not trusted with the developer's computer:
// its paths stay in its folder (local.go).
//
// Load reads a file; File.MachineConfig then says what the Machines of a process
// group are to run, as flyctl would build it.
package deployfile

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"

	"github.com/pelletier/go-toml/v2"

	"bulkhead/fault"
)

// Names are the file names that Find looks for, in this order.
var Names = []string{"bulkhead.toml", "fly.toml"}

// MaxSize bounds a deploy file, in bytes.
const MaxSize = 1 << 20

// Position is a place in a file. Line and Column start at 1; 0 means unknown.
type Position struct {
	File   string
	Line   int
	Column int
}

// String gives file:line:column.
func (p Position) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
}

// Note is something to tell about one place of a file.
type Note struct {
	Pos Position
	Msg string // one lower-case sentence
}

// String gives the position and the message.
func (n Note) String() string { return n.Pos.String() + ": " + n.Msg }

// Error is everything that is wrong with a file; Notes is never empty and in the
// order of the file.
type Error struct{ Notes []Note }

// Error gives the first thing that is wrong.
func (e *Error) Error() string { return e.Notes[0].String() }

// File is a deploy file that has been read and found to be in order.
type File struct {
	Config
	Path string
	// Warnings name what Bulkhead leaves out, in the order of the file.
	Warnings []Note
	// AllowOutside lets paths in the file lead out of its folder.
	AllowOutside bool

	positions map[string]Position
}

// Find returns the path of the deploy file in dir, "" when there is none. It also returns a
// name that is a folder or a broken link: Load says so, and no deploy goes on without the file.
func Find(dir string) string {
	for _, name := range Names {
		p := filepath.Join(dir, name)
		if _, err := os.Lstat(p); err == nil {
			return p
		}
	}
	return ""
}

// Load reads the file at path. What is wrong with its contents is an *Error; that it
// cannot be read is fault.NotFound or fault.Invalid.
func Load(path string) (*File, error) {
	st, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Lstat(path); err == nil {
			return nil, fault.New(fault.Invalid, "%s is a link to a file that does not exist", path)
		}
		return nil, fault.New(fault.NotFound, "there is no file %s", path)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "cannot read %s: %v", path, errors.Unwrap(err))
	}
	if !st.Mode().IsRegular() {
		return nil, fault.New(fault.Invalid, "%s is not a regular file", path)
	}
	if st.Size() > MaxSize {
		return nil, fault.New(fault.Invalid, "%s has %d bytes; a deploy file has at most %d", path, st.Size(), MaxSize)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "cannot read %s: %v", path, errors.Unwrap(err))
	}
	f, err := Parse(path, b)
	if err != nil {
		return nil, err
	}
	other := filepath.Join(filepath.Dir(path), "fly.toml")
	if _, err := os.Stat(other); err == nil && filepath.Base(path) == "bulkhead.toml" {
		f.Warnings = append(f.Warnings, Note{Pos: Position{File: path}, Msg: "this file is used, and not " + other + " in the same folder"})
	}
	return f, nil
}

// Parse reads b as the file at path, which positions name and beside which
// local files are looked for.
func Parse(path string, b []byte) (*File, error) {
	if bytes.HasPrefix(b, []byte("\xff\xfe")) || bytes.HasPrefix(b, []byte("\xfe\xff")) {
		return nil, &Error{Notes: []Note{{Pos: Position{File: path}, Msg: "the file is in UTF-16; save it as UTF-8"}}}
	}
	b = bytes.TrimPrefix(b, []byte("\xef\xbb\xbf")) // editors on Windows put it before UTF-8
	var raw map[string]any
	if err := toml.Unmarshal(b, &raw); err != nil {
		var de *toml.DecodeError
		if !errors.As(err, &de) {
			return nil, &Error{Notes: []Note{{Pos: Position{File: path}, Msg: err.Error()}}}
		}
		line, col := de.Position()
		msg := de.Error()
		if len(msg) > 6 && msg[:6] == "toml: " {
			msg = msg[6:]
		}
		return nil, &Error{Notes: []Note{{Pos: Position{File: path, Line: line, Column: col}, Msg: "not TOML: " + msg}}}
	}
	f := &File{Path: path, positions: index(path, b)}
	bd := &binder{file: path, positions: f.positions}
	bd.normalize(raw)
	bd.table("", raw, &f.Config)
	f.check(bd)
	f.support(bd)
	f.judge(bd)
	if len(bd.errors) > 0 {
		return nil, &Error{Notes: inOrder(bd.errors)}
	}
	f.Warnings = inOrder(bd.warnings)
	return f, nil
}

// At returns the position of a key, such as "http_service.internal_port", or of
// the nearest thing around it that was written down.
func (f *File) At(key string) Position { return at(f.positions, f.Path, key) }

// inOrder sorts notes by position.
func inOrder(ns []Note) []Note {
	sort.SliceStable(ns, func(i, j int) bool {
		a, b := ns[i].Pos, ns[j].Pos
		if a.Line != b.Line {
			return a.Line < b.Line
		}
		return a.Column < b.Column
	})
	return ns
}
