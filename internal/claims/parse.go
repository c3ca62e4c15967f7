package main

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// kind is what a table of the threat model lists, by the word its first column has.
type kind string

const (
	claim    kind = "Claim"          // it cannot, and a test shows it
	promise  kind = "Promise"        // the design's promises, the same way
	weakness kind = "Weakness"       // of forerunners, closed here, the same way
	remains  kind = "Still possible" // what the attacker has all the same: no claim
	open     kind = "Open"           // the list at the end of what is not shown or not built
)

// header has the columns of each kind of table.
var header = map[kind][]string{
	claim:    {"Claim", "How", "Test"},
	promise:  {"Promise", "How", "Test"},
	weakness: {"Weakness", "How it is closed", "Test"},
	remains:  {"Still possible", "What bounds it"},
	open:     {"Open", "Until"},
}

// proven reports whether rows of this kind need a test.
func (k kind) proven() bool { return k == claim || k == promise || k == weakness }

// row is one row of a table.
type row struct {
	kind    kind
	section string // the heading above it
	line    int
	text    string
	tests   []string
	// until says what has to come before the row can be proven. A row has tests or this.
	until string
}

// attackers is the heading below which every section is an attacker.
const attackers = "Attackers and what holds them"

var (
	testName   = regexp.MustCompile("`(Test[A-Z]\\w*(?:/[^`]+)?)`")
	openUntil  = regexp.MustCompile(`^\*{0,2}open\*{0,2} until (.+)$`)
	looksOpen  = regexp.MustCompile(`(?i)\*\*open\*\*`)
	separators = regexp.MustCompile(`^[\s|:-]+$`)
)

// parse reads the rows of all tables of a document. It returns all that is wrong
// with them at once.
func parse(name, text string) (rows []row, err error) {
	var errs []error
	wrong := func(line int, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s:%d: %s", name, line, fmt.Sprintf(format, args...)))
	}
	var section, chapter string
	var table kind // of the table that the line before was in
	inTable := false
	sections := map[string]int{} // attackers, with the line of the heading
	var order []string
	for i, line := range strings.Split(text, "\n") {
		n := i + 1
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			inTable = false
			switch {
			case strings.HasPrefix(line, "## "):
				chapter, section = strings.TrimSpace(line[3:]), strings.TrimSpace(line[3:])
			case strings.HasPrefix(line, "### "):
				section = strings.TrimSpace(line[4:])
				if chapter == attackers {
					sections[section] = n
					order = append(order, section)
				}
			case looksOpen.MatchString(line):
				wrong(n, "something is open and stands in prose: make it a row of a table | Open | Until |, or of | Still possible | What bounds it |")
			}
			continue
		}
		cells := split(line)
		if !inTable {
			inTable, table = true, kind(cells[0])
			want, ok := header[table]
			if !ok {
				wrong(n, "a table begins with the column %q: it must be Claim, Promise, Weakness, Still possible or Open", cells[0])
			} else if strings.Join(cells, "|") != strings.Join(want, "|") {
				wrong(n, "the columns are %q, must be %q", cells, want)
			}
			continue
		}
		if separators.MatchString(line) {
			continue
		}
		want, ok := header[table]
		if !ok {
			continue // said at its first line
		}
		if len(cells) != len(want) {
			wrong(n, "the row has %d cells, must have %d", len(cells), len(want))
			continue
		}
		r := row{kind: table, section: section, line: n, text: cells[0]}
		if r.text == "" || cells[1] == "" {
			wrong(n, "a cell is empty")
		}
		if table == open {
			r.until = cells[1]
		}
		if table.proven() {
			last := cells[len(cells)-1]
			for _, m := range testName.FindAllStringSubmatch(last, -1) {
				r.tests = append(r.tests, m[1])
			}
			if m := openUntil.FindStringSubmatch(last); m != nil {
				r.until = m[1]
			}
			switch {
			case len(r.tests) == 0 && r.until == "":
				wrong(n, "the claim %q names no test: write `TestX`, or \"open until ...\"", r.text)
			case len(r.tests) > 0 && r.until != "":
				wrong(n, "the claim %q has tests and is open: make two rows of what is shown and what is not", r.text)
			}
		}
		rows = append(rows, r)
	}
	for _, s := range order {
		has := map[kind]bool{}
		for _, r := range rows {
			if r.section == s {
				has[r.kind] = true
			}
		}
		for _, k := range []kind{claim, remains} {
			if !has[k] {
				wrong(sections[s], "the attacker %q has no table %q: say what it cannot do, with tests, and what it still can", s, strings.Join(header[k], " | "))
			}
		}
	}
	if len(rows) == 0 {
		wrong(1, "there is no claim in it")
	}
	return rows, errors.Join(errs...)
}

// split returns the cells of a row, trimmed. A bar in backticks or after a backslash
// belongs to its cell.
func split(line string) (cells []string) {
	var b strings.Builder
	code, escaped := false, false
	for _, r := range strings.TrimPrefix(line, "|") {
		switch {
		case escaped:
			escaped = false
			b.WriteRune(r)
		case r == '\\':
			escaped = true
		case r == '|' && !code:
			cells = append(cells, strings.TrimSpace(b.String()))
			b.Reset()
		default:
			if r == '`' {
				code = !code
			}
			b.WriteRune(r)
		}
	}
	if rest := strings.TrimSpace(b.String()); rest != "" {
		cells = append(cells, rest)
	}
	return cells
}
