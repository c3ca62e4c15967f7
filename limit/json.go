package limit

import (
	"bytes"
	"encoding/json"
	"slices"
	"unicode/utf8"

	"bulkhead/fault"
)

// JSON bounds a JSON text. encoding/json has no bounds of its own but a depth of
// 10,000, and takes the last of two equal names of an object, unseen.
type JSON struct {
	Depth    int // of objects and arrays inside each other
	Elements int // commas, objects and arrays: members and elements of all of them
}

// Check refuses a text that is too deep or too large, or has an object with the same
// name twice; the error is Invalid and says where. A text that is no JSON may pass:
// whoever decodes it says so. It takes memory for the names of the objects that are
// open at one time, and does not recurse.
func (j JSON) Check(b []byte) error {
	var (
		open     []frame
		names    [][]byte // of the open objects, the innermost last
		elements int
	)
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			end, ok := stringEnd(b, i)
			if !ok {
				return nil // cut short: no JSON
			}
			if n := len(open); n > 0 && open[n-1].name {
				open[n-1].name = false
				names = append(names, unquote(b[i:end]))
			}
			i = end - 1
		case '{', '[':
			if len(open) == j.Depth {
				return fault.New(fault.Invalid, "the JSON is nested deeper than %d objects and arrays, at byte %d", j.Depth, i)
			}
			open = append(open, frame{object: b[i] == '{', name: b[i] == '{', first: len(names)})
			elements++
		case '}', ']':
			n := len(open)
			if n == 0 {
				return nil // no JSON
			}
			own := names[open[n-1].first:]
			if twice := duplicate(own); twice != nil {
				return fault.New(fault.Invalid, "the JSON has the name %q twice in the object that ends at byte %d", fault.Clip(string(twice)), i)
			}
			names, open = names[:open[n-1].first], open[:n-1]
		case ',':
			if n := len(open); n > 0 {
				open[n-1].name = open[n-1].object
			}
			elements++
		}
		if elements > j.Elements {
			return fault.New(fault.Invalid, "the JSON has more than %d members and elements", j.Elements)
		}
	}
	return nil
}

// frame is an object or an array whose end has not come.
type frame struct {
	object bool
	name   bool // the next string is a name
	first  int  // index of its first name
}

// stringEnd returns the index behind the string that starts at b[i].
func stringEnd(b []byte, i int) (int, bool) {
	for i++; ; i++ {
		n := bytes.IndexAny(b[i:min(len(b), i+16)], `"\`)
		if n < 0 {
			if n = indexQuote(b[i:]); n < 0 {
				return 0, false
			}
		}
		if i += n; b[i] == '"' {
			return i + 1, true
		}
		if i++; i >= len(b) { // what follows a backslash ends nothing
			return 0, false
		}
	}
}

// indexQuote returns where the first quotation mark or backslash is, or -1.
func indexQuote(b []byte) int {
	quote := bytes.IndexByte(b, '"')
	if quote < 0 {
		return bytes.IndexByte(b, '\\')
	}
	if slash := bytes.IndexByte(b[:quote], '\\'); slash >= 0 {
		return slash
	}
	return quote
}

// unquote returns the name as encoding/json reads it.
func unquote(quoted []byte) []byte {
	plain := quoted[1 : len(quoted)-1]
	if bytes.IndexByte(plain, '\\') < 0 && utf8.Valid(plain) {
		return plain
	}
	var s string
	if json.Unmarshal(quoted, &s) != nil {
		return plain // no JSON
	}
	return []byte(s)
}

// duplicate returns a name that is there twice, or nil. It sorts the names.
func duplicate(names [][]byte) []byte {
	slices.SortFunc(names, bytes.Compare)
	for i := 1; i < len(names); i++ {
		if bytes.Equal(names[i-1], names[i]) {
			return names[i]
		}
	}
	return nil
}
