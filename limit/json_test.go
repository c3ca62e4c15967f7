package limit

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"bulkhead/fault"
)

var bounds = JSON{Depth: 4, Elements: 50}

func TestJSON(t *testing.T) {
	for text, wrong := range map[string]string{
		`{"a":{"b":{"c":[]}},"d":"[[[[[[[[[["}`: "",
		`{"a":{"b":{"c":[[]]}}}`:                "deeper than 4",
		`[[[[]]],[[[]]]]`:                       "",
		strings.Repeat("[", 1<<20):              "deeper",
		strings.Repeat(`{"a":`, 1<<20):          "deeper",
		`[` + strings.Repeat("1,", 48) + `1]`:   "",
		`[` + strings.Repeat("1,", 50) + `1]`:   "more than 50",
		`{"a":1,"b":2,"c":{"a":1,"b":2}}`:       "",
		`{"a":1,"b":{"x":1},"a":2}`:             `"a" twice`,
		`{"a":1,"\u0061":2}`:                    `"a" twice`,
		`{"c":{"a":1,"a":1}}`:                   `"a" twice`,
		`{"Path":1,"PATH":2}`:                   "", // names of a map may differ in case alone
		`[{"a":1},{"a":1}]`:                     "",
		`["a","a","a"]`:                         "",
		`{"a":"a","b":"a","\"":"\\"}`:           "",
		"{\"\xff\":1,\"\xfe\":1}":               "twice", // both are U+FFFD to encoding/json
		`}`:                                     "", `"`: "", `"\`: "", `{"a`: "", ``: "", `null`: "", `]]]]`: "",
	} {
		err := bounds.Check([]byte(text))
		if wrong == "" && err != nil || wrong != "" && (!fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), wrong)) {
			t.Errorf("%.60s: %v, want %q", text, err, wrong)
		}
	}
}

// reference is Check over encoding/json's own tokens, for texts that are JSON.
func reference(b []byte, j JSON) (bad, valid bool) {
	if !json.Valid(b) {
		return false, false
	}
	type level struct {
		names map[string]bool // nil in an array
		name  bool
	}
	var open []level
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return bad, true
		}
		if err != nil {
			return false, false
		}
		n := len(open) - 1
		delim, _ := tok.(json.Delim)
		if s, ok := tok.(string); ok && n >= 0 && open[n].name {
			bad = bad || open[n].names[s]
			open[n].names[s], open[n].name = true, false
			continue
		}
		if n >= 0 && open[n].names != nil && delim != '}' {
			open[n].name = true // after this value
		}
		switch delim {
		case '{':
			open = append(open, level{names: map[string]bool{}, name: true})
		case '[':
			open = append(open, level{})
		case '}', ']':
			open = open[:n]
		}
		bad = bad || len(open) > j.Depth
	}
}

// FuzzJSON holds Check against encoding/json: what is refused is too deep or says
// something twice as its decoder sees it, and what passes does not.
func FuzzJSON(f *testing.F) {
	for _, s := range []string{
		`{"a":{"b":{"c":[]}}}`, `{"a":1,"\u0061":2}`, `[[[[[1]]]]]`, `{"a":"\"","a":1}`, "{\"\xff\":1,\"\xfe\":1}", `{"":{"":1,"":2}}`,
		`{"config":{"image":"a:1","env":{"A":"1","A":"2"}}}`, `{"a":"\ud800","b":[{},{"a":{}}]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		j := JSON{Depth: 4, Elements: 1 << 20}
		err := j.Check(b)
		if bad, valid := reference(b, j); valid && bad != (err != nil) {
			t.Errorf("%q: %v, encoding/json says bad=%v", b, err, bad)
		}
	})
}

// BenchmarkJSON is what Check adds to json.Unmarshal, for a config of 600 KiB.
func BenchmarkJSON(b *testing.B) {
	env := map[string]string{}
	for i := range 6000 {
		env[strings.Repeat("N", 8)+string(rune('a'+i%26))+strings.Repeat("x", i/26)[:i/26%64]+string(rune('A'+i/26%26))] = strings.Repeat("v", 80)
	}
	text, _ := json.Marshal(map[string]any{"config": map[string]any{"env": env, "files": []any{map[string]string{"raw_value": strings.Repeat("QUJD", 50_000)}}}})
	for name, f := range map[string]func() error{
		"Check":     func() error { return JSON{Depth: 32, Elements: 100_000}.Check(text) },
		"Unmarshal": func() error { var v any; return json.Unmarshal(text, &v) },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
