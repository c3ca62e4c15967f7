package deployfile

import (
	"errors"
	"strings"
)

// words splits a command as a POSIX shell does, as far as quotes, backslashes and
// comments go; nothing is expanded.
func words(s string) ([]string, error) {
	var out []string
	var w strings.Builder
	inWord := false
	var quote rune
	escaped := false
	comment := false
	for _, r := range s {
		switch {
		case comment:
			comment = r != '\n'
		case escaped:
			if quote == '"' && r != '"' && r != '\\' && r != '$' && r != '`' {
				w.WriteRune('\\')
			}
			w.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, inWord = true, true
		case quote != 0:
			if r == quote {
				quote = 0
			} else {
				w.WriteRune(r)
			}
		case r == '\'' || r == '"':
			quote, inWord = r, true
		case r == ' ' || r == '\t' || r == '\n' || r == '\r':
			if inWord {
				out = append(out, w.String())
				w.Reset()
				inWord = false
			}
		case r == '#' && !inWord:
			comment = true
		default:
			w.WriteRune(r)
			inWord = true
		}
	}
	if quote != 0 {
		return nil, errors.New("has a quote that is not closed")
	}
	if escaped {
		return nil, errors.New("ends in a backslash")
	}
	if inWord {
		out = append(out, w.String())
	}
	return out, nil
}
