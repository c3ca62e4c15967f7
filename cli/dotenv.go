package cli

import (
	"strings"
)

// parseDotenv reads lines of NAME=VALUE as the dotenv libraries do. Errors name the line
// and never show a value.
func parseDotenv(text string) (map[string]*string, error) {
	text = strings.TrimPrefix(text, "\ufeff") // a byte order mark of an editor
	text = strings.ReplaceAll(strings.ReplaceAll(text, "\r\n", "\n"), "\r", "\n")
	values := map[string]*string{}
	n := 1 // the line that text begins at
	for text != "" {
		line, rest, _ := strings.Cut(text, "\n")
		at := n
		name, value, ok := strings.Cut(line, "=")
		name = dotenvName(name)
		switch {
		case strings.TrimSpace(line) == "" || strings.TrimSpace(line)[0] == '#':
			text, n = rest, n+1
			continue
		case !ok || name == "" || strings.ContainsAny(name, " \t#"):
			return nil, usagef("line %d is not of the form NAME=VALUE", at)
		case values[name] != nil:
			return nil, usagef("line %d: %s is given twice", at, name)
		}
		text = text[len(line)-len(value):]
		quoted := strings.TrimLeft(text, " \t")
		quote := ""
		for _, q := range []string{`"""`, `'''`, `"`, `'`, "`"} {
			if strings.HasPrefix(quoted, q) {
				quote = q
				break
			}
		}
		if quote == "" {
			value = strings.TrimSpace(uncommented(value))
			values[name], text, n = &value, rest, n+1
			continue
		}
		value, after, ok := unquote(quoted[len(quote):], quote)
		if !ok {
			return nil, usagef("line %d: the value of %s begins with a quote and does not end with one", at, name)
		}
		line, rest, _ = strings.Cut(after, "\n")
		if more := strings.TrimSpace(line); more != "" && more[0] != '#' {
			return nil, usagef("line %d: more follows the quoted value of %s", at, name)
		}
		n += strings.Count(text[:len(text)-len(rest)], "\n")
		values[name], text = &value, rest
	}
	return values, nil
}

// dotenvName is a name without the word export before it.
func dotenvName(s string) string {
	s = strings.TrimSpace(s)
	if rest, ok := strings.CutPrefix(s, "export"); ok && rest != strings.TrimLeft(rest, " \t") {
		return strings.TrimSpace(rest)
	}
	return s
}

// uncommented cuts a comment off: a # at the beginning that a blank precedes, or after a
// blank.
func uncommented(s string) string {
	for i := range s {
		if s[i] == '#' && i > 0 && (s[i-1] == ' ' || s[i-1] == '\t') {
			return s[:i]
		}
	}
	return s
}

// dotenvEscapes are what a backslash means between double quotes; any other stays.
var dotenvEscapes = map[byte]string{'n': "\n", 't': "\t", 'r': "\r", '"': `"`, '\\': `\`, '$': "$", '`': "`"}

// unquote reads up to the closing quote, over several lines if need be, and returns what
// follows it. A line break directly after three quotes does not count.
func unquote(s, quote string) (value, after string, ok bool) {
	if len(quote) == 3 {
		s = strings.TrimPrefix(s, "\n")
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if strings.HasPrefix(s[i:], quote) {
			return b.String(), s[i+len(quote):], true
		}
		if quote == `"` && s[i] == '\\' && i+1 < len(s) {
			if r, known := dotenvEscapes[s[i+1]]; known {
				b.WriteString(r)
				i++
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}
