package deployfile

import (
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// index returns where each key of a well-formed TOML document stands. Keys are
// written with dots, and entries of lists with their number: services[0].ports[1].port.
func index(file string, doc []byte) map[string]Position {
	ix := &indexer{file: file, pos: map[string]Position{}, lists: map[string]int{}}
	ix.p.Reset(doc)
	table := ""
	for ix.p.NextExpression() {
		e := ix.p.Expression()
		switch e.Kind {
		case unstable.Table:
			table = ix.header(e, false)
		case unstable.ArrayTable:
			table = ix.header(e, true)
		case unstable.KeyValue:
			ix.keyValue(table, e)
		}
	}
	return ix.pos
}

// indexer walks a document.
type indexer struct {
	p     unstable.Parser
	file  string
	pos   map[string]Position
	lists map[string]int // entries seen of each [[list]]
}

// header notes a [table] or [[list]] header and returns the path that it opens.
func (ix *indexer) header(e *unstable.Node, list bool) string {
	path := ""
	for it := e.Key(); it.Next(); {
		k := it.Node()
		path = join(path, string(k.Data))
		if list && it.IsLast() {
			ix.note(path, k)
			ix.lists[path]++
		}
		if n := ix.lists[path]; n > 0 {
			path = fmt.Sprintf("%s[%d]", path, n-1)
		}
		if it.IsLast() {
			ix.note(path, k)
		}
	}
	return path
}

// keyValue notes key = value below table.
func (ix *indexer) keyValue(table string, e *unstable.Node) {
	path := table
	for it := e.Key(); it.Next(); {
		path = join(path, string(it.Node().Data))
		ix.note(path, it.Node())
	}
	ix.value(path, e.Value())
}

// value notes the keys inside a value.
func (ix *indexer) value(path string, v *unstable.Node) {
	switch v.Kind {
	case unstable.InlineTable:
		for it := v.Children(); it.Next(); {
			ix.keyValue(path, it.Node())
		}
	case unstable.Array:
		i := 0
		for it := v.Children(); it.Next(); {
			if it.Node().Kind == unstable.Comment {
				continue
			}
			ix.value(fmt.Sprintf("%s[%d]", path, i), it.Node())
			i++
		}
	}
}

// note keeps the first position of path.
func (ix *indexer) note(path string, k *unstable.Node) {
	if _, seen := ix.pos[path]; seen {
		return
	}
	s := ix.p.Shape(k.Raw).Start
	ix.pos[path] = Position{File: ix.file, Line: s.Line, Column: s.Column}
}

// join appends a key to a path.
func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// at returns the position of path, or of the nearest enclosing thing that has one.
func at(pos map[string]Position, file, path string) Position {
	for path != "" {
		if p, ok := pos[path]; ok {
			return p
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			break
		}
		path = path[:i]
	}
	return Position{File: file}
}
